"""The official conformance suite of the distribution-spec, where its program is at hand.

The suite is a Go program; its README says how it is built. `OCI_CONFORMANCE` names the result, and
`OCI_CONFORMANCE_1_1` the test program of the older suite that was released with version 1.1:

    OCI_CONFORMANCE=/path/to/conformance python -m pytest tests/registry/conformance/test_official.py -s
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.registry.access.test_certificates import Authority
from tests.registry.conftest import Backend
from tests.registry.replicas import replicas
from tests.registry.secured import AUTH, PASSWORDS, RULES, TOKEN, configure
from tests.registry.servers import StartRegistry

pytestmark = [pytest.mark.peer, pytest.mark.timeout(900)]

_DRAFTS = ("BLOBS_UPLOAD_CANCEL", "BLOBS_DIGEST_HEADER", "MANIFESTS_DIGEST_HEADER", "MANIFESTS_TAG_PARAM")
_SETTINGS = {
    "1.1": {"OCI_VERSION": "1.1"},
    "1.1 and every draft": {"OCI_VERSION": "1.1", **{f"OCI_API_{name}": "true" for name in _DRAFTS}},
    "dev": {"OCI_VERSION": "dev"},
}
# What the suite itself leaves out: what came after 1.1, and manifests whose blobs were never pushed, which the
# specification lets a registry refuse ("Pushing Manifests").
_SPARSE = {"Sparse Manifests"}
_LATER = {"Blob upload cancel", "Manifest put with tag params", "Tag Param", "Tag Param sha512"}
_LEFT_OUT = {"1.1": _LATER | _SPARSE, "1.1 and every draft": _SPARSE, "dev": _SPARSE}


def _program(variable: str) -> Path:
    path = os.environ.get(variable)
    if not path:
        pytest.skip(f"{variable} does not name the suite's program: THE OFFICIAL CONFORMANCE SUITE WAS NOT RUN")
    return Path(path).resolve(strict=True)


def _run(command: list[str], folder: Path, settings: dict[str, str]) -> str:
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), **settings}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return done.stdout


def _check(folder: Path, host: str, version: str, unsupported: frozenset[str] = frozenset(), **login: str) -> None:
    """Run the suite: nothing fails, and nothing is left out but what `_LEFT_OUT` says. `unsupported` are the interfaces
    that the suite finds missing, which it counts as skipped."""
    settings = {
        "OCI_REGISTRY": host,
        "OCI_TLS": "disabled",
        "OCI_REPO1": "conformance/one",
        "OCI_REPO2": "conformance/two",
        "OCI_RESULTS_DIR": str(folder / "results"),
        **_SETTINGS[version],
        **login,
    }
    said = _run([str(_program("OCI_CONFORMANCE"))], folder, settings)
    counts = dict(re.findall(r"^ +(Disabled|Skip|Pass|FAIL|Error|Total)\.+: +(\d+)$", said, re.MULTILINE))
    print(f"\n{version}: {counts}")
    assert (counts["FAIL"], counts["Error"]) == ("0", "0")
    assert unsupported or counts["Skip"] == "0"
    results = yaml.safe_load((folder / "results" / "results.yaml").read_text())
    for name, outcome in (*results["apis"].items(), *results["data"].items()):
        expected = "Disabled" if name in _LEFT_OUT[version] else "Skip" if name in unsupported else "Pass"
        assert (name, outcome) == (name, expected)


@pytest.mark.parametrize("redirect", ["--redirect", "--no-redirect"])
@pytest.mark.parametrize("version", _SETTINGS)
def test_suite(backend: Backend, registry_server: StartRegistry, tmp_path: Path, version: str, redirect: str) -> None:
    _program("OCI_CONFORMANCE")
    server = registry_server(backend.storage, redirect, env=backend.env)
    _check(tmp_path, server.host, version)


@pytest.mark.parametrize("auth", [AUTH, AUTH + TOKEN], ids=["basic", "token"])
def test_suite_with_a_login(backend: Backend, registry_server: StartRegistry, tmp_path: Path, auth: str) -> None:
    _program("OCI_CONFORMANCE")
    config = configure(tmp_path, auth + RULES)
    server = registry_server(backend.storage, "--config", str(config), env=backend.env)
    # A token reaches no further than what it was asked for: not to a blob of whichever repository has it.
    unsupported = frozenset({"Blob anonymous mount"} if "[auth.token]" in auth else ())
    _check(tmp_path, server.host, "dev", unsupported, OCI_USERNAME="alice", OCI_PASSWORD=PASSWORDS["alice"])


def test_suite_over_tls(backend: Backend, registry_server: StartRegistry, tmp_path: Path) -> None:
    """Three workers that speak TLS themselves."""
    _program("OCI_CONFORMANCE")
    Authority(tmp_path, "servers").issue("server", "registry")
    config = configure(tmp_path, '[server.tls]\ncertificate = "server.crt"\nkey = "server.key"\n')
    server = registry_server(backend.storage, "--config", str(config), "--workers", "3", env=backend.env)
    _check(tmp_path, server.host, "dev", OCI_TLS="enabled", SSL_CERT_FILE=str(tmp_path / "servers.crt"))


def test_suite_over_replicas(backend: Backend, registry_server: StartRegistry, tmp_path: Path) -> None:
    """Three behind nginx, round-robin by request."""
    _program("OCI_CONFORMANCE")
    with replicas(registry_server, tmp_path, backend.storage, backend.env) as these:
        _check(tmp_path, these.host, "dev")


@pytest.mark.parametrize("redirect", ["--redirect", "--no-redirect"])
@pytest.mark.parametrize("order", ["0", "1"], ids=["blobs-first", "manifests-first"])
def test_older_suite(
    backend: Backend, registry_server: StartRegistry, tmp_path: Path, redirect: str, order: str
) -> None:
    """All four workflows. What it skips are the alternatives to what it runs: a registry that does not mount by
    itself, content that was there before."""
    program = _program("OCI_CONFORMANCE_1_1")
    server = registry_server(backend.storage, redirect, env=backend.env)
    settings = {
        "OCI_ROOT_URL": server.url,
        "OCI_NAMESPACE": "conformance/one",
        "OCI_CROSSMOUNT_NAMESPACE": "conformance/two",
        "OCI_AUTOMATIC_CROSSMOUNT": "1",
        "OCI_DELETE_MANIFEST_BEFORE_BLOBS": order,
        "OCI_REPORT_DIR": str(tmp_path),
        **{f"OCI_TEST_{name}": "1" for name in ("PULL", "PUSH", "CONTENT_DISCOVERY", "CONTENT_MANAGEMENT")},
    }
    said = _run([str(program), "--ginkgo.no-color"], tmp_path, settings)
    found = re.search(r"(\d+) Passed \| (\d+) Failed \| (\d+) Pending \| (\d+) Skipped", said)
    assert found, said[-4000:]
    print(f"\n1.1.1: {found[0]}")
    assert (found[2], found[3], found[4]) == ("0", "0", "4")
