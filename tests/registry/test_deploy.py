"""The files in deploy/ are what the registry, systemd and Compose take."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from registry.config.read import load
from tests.registry.servers import ROOT

DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "systemd" / "stowage-registry.service"


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
        assert service["image"] == "stowage-registry" or re.search(r":\d", service["image"]), f"{name}: no version"


def test_what_compose_refers_to_is_there(compose: dict[str, Any]) -> None:
    """Files are in the repository, except the one that holds the users; networks, volumes and services are declared."""
    services = compose["services"]
    for name, service in services.items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source == "./htpasswd":
                continue
            if source.startswith("."):
                assert (DEPLOY / "compose" / source).is_file(), f"{name}: {source}"
            else:
                assert source in compose["volumes"], f"{name}: {source}"
        assert set(service["networks"]) <= set(compose["networks"])
        for other, condition in service.get("depends_on", {}).items():
            assert other in services
            if condition["condition"] == "service_healthy" and services[other]["image"] != "stowage-registry":
                assert "healthcheck" in services[other], other
    build = services["registry-1"]["build"]
    assert (DEPLOY / "compose" / build["context"] / build["dockerfile"]).is_file()


def test_only_nginx_is_reachable_and_only_from_this_machine(compose: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert published == {"nginx": ["127.0.0.1:5000:5000"]}
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


def test_dockerfile_runs_as_nobody() -> None:
    lines = (DEPLOY / "docker" / "registry.Dockerfile").read_text().splitlines()
    final = lines[max(number for number, line in enumerate(lines) if line.startswith("FROM")) :]
    assert "USER 65532:65532" in final
    assert not any(line.startswith("ADD") for line in lines)
    copied = [line.split()[1] for line in lines if line.startswith("COPY ") and "--from" not in line]
    assert {"artifact", "supplychain", "registry"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)


def test_nginx_takes_its_configuration(tmp_path: Path) -> None:
    """As Compose mounts the files, with addresses in place of the names that only Compose's network knows."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed (apt-get install nginx): ITS CONFIGURATION WAS NOT TESTED")
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


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_unit(tmp_path: Path) -> None:
    """No complaint, and an exposure of at most 1.5 out of 10 by systemd's own reckoning."""
    unit = tmp_path / UNIT.name
    assert "ExecReload=/bin/kill -HUP $MAINPID" in UNIT.read_text()
    unit.write_text(UNIT.read_text().replace("/opt/stowage/bin/registry", shutil.which("true") or ""))
    verified = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert (verified.returncode, verified.stderr) == (0, "")
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=15", unit]
    judged = subprocess.run(command, capture_output=True, text=True)
    assert judged.returncode == 0, judged.stdout[-500:]
