"""deploy/compose is what Compose, nginx, Prometheus and Grafana take."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from artifact.reference import Reference
from registry.config.read import load
from registry.metrics import Metrics as RegistryMetrics
from runner.compose.project import load_project
from runner.gateway.metrics import Metrics as GatewayMetrics
from tests.registry.servers import ROOT

DEPLOY = ROOT / "deploy"
IMAGES = ("stowage-registry", "stowage-runner")
MADE = ("./htpasswd", "./tls.crt", "./tls.key", "./models", "./login")
"""What the user makes, as the head of compose.yaml says."""


class NoModels:
    """What the gateway counts where no model is served."""

    deployments: tuple[()] = ()
    loads = evictions = 0


def certificate(folder: Path) -> None:
    """Made with the command that the head of compose.yaml tells."""
    text = (DEPLOY / "compose" / "compose.yaml").read_text()
    command = re.search(r"#   (openssl .*?tls\.crt)\n", text.replace("\\\n#", ""), re.DOTALL)
    assert command is not None
    subprocess.run(command[1].split(), cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())


def test_every_service_is_hardened(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged")
        assert "latest" not in service["image"], name
        assert service["image"] in IMAGES or re.search(r":v?\d", service["image"]), f"{name}: no version"


def test_what_compose_refers_to_is_there(compose: dict[str, Any]) -> None:
    """Files are in the repository, except the one that holds the users; networks, volumes and services are declared."""
    services = compose["services"]
    for name, service in services.items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source in MADE:
                continue
            if source.startswith("."):
                assert (DEPLOY / "compose" / source).exists(), f"{name}: {source}"
            else:
                assert source in compose["volumes"], f"{name}: {source}"
        assert set(service["networks"]) <= set(compose["networks"])
        for other, condition in service.get("depends_on", {}).items():
            assert other in services
            if condition["condition"] == "service_healthy" and services[other]["image"] not in IMAGES:
                assert "healthcheck" in services[other], other
    for name in ("registry-1", "runner"):
        build = services[name]["build"]
        assert (DEPLOY / "compose" / build["context"] / build["dockerfile"]).is_file()


def test_compose_is_of_the_schema(compose: dict[str, Any]) -> None:
    """The Compose specification's own."""
    with as_file(files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json") as path:
        schema = json.loads(path.read_text())
    jsonschema.validate(compose, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(compose | {"services": {"a": {"imagee": "b"}}}, schema)


def test_only_doors_are_reachable_and_only_from_this_machine(compose: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert published == {
        "nginx": ["127.0.0.1:5000:5000"],
        "runner": ["127.0.0.1:12434:12434"],
        "grafana": ["127.0.0.1:3000:3000"],
    }
    assert compose["networks"]["back"]["internal"] is True
    assert compose["services"]["seaweedfs"]["networks"] == ["back"]


def test_no_secret_has_a_default(compose: dict[str, Any]) -> None:
    """CVE-2026-4404: nothing ships that everybody knows."""
    text = (DEPLOY / "compose" / "compose.yaml").read_text()
    assert all(":?" in variable for variable in re.findall(r"\$\{[^}]*\}", text))
    example = (DEPLOY / "compose" / ".env.example").read_text()
    settings = [line for line in example.splitlines() if line and not line.startswith("#")]
    assert settings
    assert all(line.endswith("=") for line in settings)


def test_replicas_agree_with_nginx(compose: dict[str, Any]) -> None:
    listed = (DEPLOY / "compose" / "registry-replicas.conf").read_text()
    replicas = {name for name, service in compose["services"].items() if service["image"] == "stowage-registry"}
    assert len(replicas) == 2
    assert set(re.findall(r"server (\S+):5000", listed)) == replicas


def test_registry_configuration_of_compose(tmp_path: Path) -> None:
    (tmp_path / "htpasswd").write_text("")
    shutil.copy(DEPLOY / "compose" / "registry.toml", tmp_path)
    config = load(tmp_path / "registry.toml")
    assert config.restricted
    assert config.server.listen.endswith(":5000")
    assert not config.server.redirect, "clients cannot reach the store"
    grace = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())["services"]["registry-1"]
    assert grace["stop_grace_period"] == "40s", "longer than the registry drains"


def test_nginx_takes_its_configuration(tmp_path: Path) -> None:
    """As Compose mounts the files, with addresses in place of the names that only Compose's network knows."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed (apt-get install nginx): ITS CONFIGURATION WAS NOT TESTED")
    certificate(tmp_path)
    for file in (*(DEPLOY / "compose").glob("*.conf"), DEPLOY / "nginx" / "registry.conf"):
        text = file.read_text().replace("/etc/nginx", str(tmp_path)).replace("/run/", f"{tmp_path}/")
        (tmp_path / file.name).write_text(re.sub(r"registry-[12]:", "127.0.0.1:", text))
    done = subprocess.run(
        [program, "-t", "-c", tmp_path / "nginx.conf", "-e", "stderr"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr.replace('"user" directive', "")


def test_no_client_certificate_comes_from_a_client() -> None:
    """nginx sets the header on every request, so that what a client sends in it never arrives."""
    text = (DEPLOY / "nginx" / "registry.conf").read_text()
    assert "proxy_set_header X-Client-Cert $ssl_client_escaped_cert;" in text
    assert 'proxy_set_header Client-Cert "";' in text


def test_the_runner_takes_its_models() -> None:
    project = load_project([DEPLOY / "compose" / "models.yaml"], {}, None)
    (model,) = project.models
    assert model.reference == Reference.parse("registry:5000/team/qwen3:4B-Q4_K_M")


def test_prometheus_scrapes_what_is_there(compose: dict[str, Any]) -> None:
    scraped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    targets = {target for job in scraped for group in job["static_configs"] for target in group["targets"]}
    assert targets == {"registry-1:5000", "registry-2:5000", "runner:12434"}
    assert {target.partition(":")[0] for target in targets} <= set(compose["services"])


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    board = json.loads((DEPLOY / "grafana" / "dashboards" / "stowage.json").read_text())
    asked = {
        name
        for panel in board["panels"]
        for target in panel.get("targets", [])
        for name in re.findall(r"stowage_[a-z_]+", target["expr"])
    }
    there = f"{RegistryMetrics().text()}\n{asyncio.run(GatewayMetrics().text(NoModels())).decode()}"
    families = {line.split()[2] for line in there.splitlines() if line.startswith("# TYPE")}
    assert len(asked) > 15
    assert {name.removesuffix("_bucket") for name in asked} <= families
    provider = yaml.safe_load((DEPLOY / "grafana" / "provisioning" / "dashboards" / "stowage.yaml").read_text())
    assert provider["providers"][0]["options"]["path"] == "/var/lib/grafana/dashboards"
    sources = yaml.safe_load((DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yaml").read_text())
    used = {panel["datasource"]["uid"] for panel in board["panels"] if "datasource" in panel}
    assert used == {source["uid"] for source in sources["datasources"]}
