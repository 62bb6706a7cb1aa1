"""A repository with one artifact in it, keys, and policies over them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.layout import LayoutRepository
from artifact.manifest import Manifest
from artifact.progress import Quiet
from artifact.source import bytes_source
from supplychain.keys import PrivateKey, PublicKey
from supplychain.policy import Policy

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
