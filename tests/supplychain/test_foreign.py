"""Our bundles before another project's verifier: npm's @sigstore/verify."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from artifact.descriptor import Descriptor
from artifact.layout import LayoutRepository
from artifact.manifest import Manifest
from supplychain.attest import attest
from supplychain.keys import PrivateKey
from supplychain.predicate import CYCLONEDX, PROVENANCE, SCAN
from supplychain.sign import sign
from supplychain.statement import Statement

SCRIPT = Path(__file__).with_name("verify_bundle.mjs")

pytestmark = pytest.mark.peer


@pytest.fixture
def bundle(repository: LayoutRepository, subject: Descriptor, keys: dict[str, PrivateKey], tmp_path: Path) -> Path:
    written, _ = sign(repository, subject, keys["release"])
    layer = Manifest.parse(repository.manifest(written.digest)[1]).layers[0]
    path = tmp_path / "bundle.json"
    path.write_bytes(repository.read_blob(layer))
    return path


@pytest.fixture(params=[PROVENANCE, CYCLONEDX, SCAN])
def attestation(
    request: pytest.FixtureRequest,
    repository: LayoutRepository,
    subject: Descriptor,
    keys: dict[str, PrivateKey],
    tmp_path: Path,
) -> tuple[Path, str]:
    statement = Statement.about(subject.digest, request.param, {"name": "modèle", "files": [{"size": 1}]})
    written = attest(repository, subject, statement, keys["release"])
    layer = Manifest.parse(repository.manifest(written.digest)[1]).layers[0]
    path = tmp_path / "bundle.json"
    path.write_bytes(repository.read_blob(layer))
    return path, request.param


def node(modules: Path, bundle: Path, key: PrivateKey) -> subprocess.CompletedProcess[str]:
    path = bundle.with_name("key.pub")
    path.write_bytes(key.public.pem)
    command = ["node", str(SCRIPT), str(modules), str(bundle), str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_sigstore_accepts_our_bundle(
    modules: Path, bundle: Path, keys: dict[str, PrivateKey], subject: Descriptor
) -> None:
    result = node(modules, bundle, keys["release"])
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["subject"] == [{"digest": {"sha256": subject.digest.hex}}]


def test_sigstore_accepts_our_attestations(
    modules: Path, attestation: tuple[Path, str], keys: dict[str, PrivateKey], subject: Descriptor
) -> None:
    path, type_ = attestation
    result = node(modules, path, keys["release"])
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"digest": {"sha256": subject.digest.hex}}],
        "predicateType": type_,
        "predicate": {"name": "modèle", "files": [{"size": 1}]},
    }
    assert node(modules, path, keys["stranger"]).returncode != 0


def test_sigstore_refuses_it_for_another_key(modules: Path, bundle: Path, keys: dict[str, PrivateKey]) -> None:
    result = node(modules, bundle, keys["stranger"])
    assert result.returncode != 0
    assert "key not found" in result.stderr


def test_sigstore_refuses_it_changed(modules: Path, bundle: Path, keys: dict[str, PrivateKey]) -> None:
    value = json.loads(bundle.read_bytes())
    payload = value["dsseEnvelope"]["payload"]
    value["dsseEnvelope"]["payload"] = payload[:-8] + ("A" if payload[-8] != "A" else "B") + payload[-7:]
    bundle.write_text(json.dumps(value))
    result = node(modules, bundle, keys["release"])
    assert result.returncode != 0
    assert "signature verification failed" in result.stderr
