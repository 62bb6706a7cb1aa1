"""A repository with one artifact in it, keys, and policies over them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import settings

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.layout import LayoutRepository
from artifact.manifest import Manifest
from artifact.progress import Quiet
from artifact.source import bytes_source
from supplychain.keys import PrivateKey, PublicKey
from supplychain.policy import Policy
from tests.supplychain.sigstore_services import Sigstore

# How long an example takes is up to whatever else the machine does.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

ROOT = Path(__file__).parents[2]
PACKAGES = ["@sigstore/verify@3.1.1", "@sigstore/bundle@4.0.0"]
"""Another project's verifier, which the peer tests ask."""

ANY_OF = """
version: 1
authorities: {release: {key: release}, ops: {key: ops}, audit: {key: audit}}
rules:
  - name: everything
    match: ["**"]
    require: {any-of: [release]}
"""


@pytest.fixture
def repository(tmp_path: Path) -> LayoutRepository:
    return LayoutRepository(tmp_path / "layout", "registry.example/acme/model")


@pytest.fixture
def push() -> Callable[..., Descriptor]:
    def push(repository: LayoutRepository, content: bytes = b"weights", tag: str | None = "v1") -> Descriptor:
        blobs = [Descriptor.of(b"{}", mediatypes.MODEL_CONFIG), Descriptor.of(content, mediatypes.MODEL_WEIGHT)]
        for blob, data in zip(blobs, (b"{}", content), strict=True):
            repository.push_blob(blob, bytes_source(data), Quiet())
        manifest = Manifest(blobs[0], (blobs[1],), artifact_type=mediatypes.MODEL_MANIFEST)
        return repository.push_manifest(manifest.to_bytes(), manifest.media_type, tag)

    return push


@pytest.fixture
def subject(repository: LayoutRepository, push: Callable[..., Descriptor]) -> Descriptor:
    return push(repository)


@pytest.fixture(scope="session")
def keys() -> dict[str, PrivateKey]:
    return {name: PrivateKey.new() for name in ("release", "ops", "audit", "stranger")}


@pytest.fixture
def policy(keys: dict[str, PrivateKey]) -> Callable[[str], Policy]:
    def read_key(location: str) -> PublicKey:
        return keys[location].public

    return lambda text=ANY_OF: Policy.parse(text.encode(), "policy.yaml", read_key)


@pytest.fixture(scope="session")
def sigstore_services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sigstore]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: there is no timestamp authority for keyless signatures")
    with Sigstore.running(tmp_path_factory.mktemp("sigstore")) as services:
        yield services


@pytest.fixture
def sigstore(sigstore_services: Sigstore) -> Iterator[Sigstore]:
    """A local Sigstore whose clock is right at the beginning of every test."""
    sigstore_services.clock.offset = timedelta()
    yield sigstore_services
    sigstore_services.clock.offset = timedelta()


@pytest.fixture(scope="session")
def modules() -> Path:
    """The folder the npm packages are installed in, once; the cache lasts between runs."""
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed: bundles are not checked with @sigstore/verify")
    folder = Path(os.environ.get("STOWAGE_TEST_CACHE", ROOT / ".cache")) / "npm"
    installed = folder / "node_modules" / "@sigstore" / "verify" / "package.json"
    if not installed.exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text('{"private": true}')
        command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200)
        if result.returncode != 0:
            pytest.skip(f"npm install failed: {result.stderr.strip().splitlines()[-1:]}")
    return folder
