"""skopeo pulls what we pushed and pushes what we pull, byte for byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from artifact.layout import LayoutRepository
from artifact.manifest import Manifest
from artifact.progress import Quiet
from artifact.remote import RemoteRepository
from artifact.transfer import copy_artifact
from tests.peers.programs import program

pytestmark = pytest.mark.peer


@pytest.fixture
def skopeo(shell: Callable[..., str]) -> Callable[..., str]:
    binary = program("skopeo")
    return lambda *arguments: shell(binary, *arguments)


def test_skopeo_pulls_into_a_layout_that_we_read(packed: Any, skopeo: Callable[..., str], tmp_path: Path) -> None:
    source = f"docker://{packed.host}/{packed.name}:{packed.tag}"
    skopeo("copy", "--src-tls-verify=false", source, f"oci:{tmp_path}/layout:{packed.tag}")
    layout = LayoutRepository(tmp_path / "layout")
    descriptor, raw = layout.manifest(packed.tag)
    assert (descriptor.digest, raw) == (packed.digest, packed.manifest)
    for blob in Manifest.parse(raw).blobs:
        assert layout.blob_path(blob.digest).read_bytes() == packed.blobs[str(blob.digest)]


def test_skopeo_pushes_our_layout_and_we_read_it_back(
    packed: Any, own: str, skopeo: Callable[..., str], tmp_path: Path
) -> None:
    layout = LayoutRepository(tmp_path / "layout")
    source = RemoteRepository(packed.host, packed.name)
    copy_artifact(source, layout, packed.digest, tag=packed.tag, progress=Quiet())
    target = f"docker://{packed.host}/{own}:{packed.tag}"
    skopeo("copy", "--dest-tls-verify=false", f"oci:{tmp_path}/layout:{packed.tag}", target)
    repository = RemoteRepository(packed.host, own)
    assert repository.manifest(packed.tag)[1] == packed.manifest
    for blob in Manifest.parse(packed.manifest).blobs:
        with repository.open_blob(blob) as reader:
            buffer = bytearray(blob.size + 1)
            filled = 0
            while filled < blob.size and (count := reader.readinto(memoryview(buffer)[filled:])):
                filled += count
        assert bytes(buffer[:filled]) == packed.blobs[str(blob.digest)]


def test_skopeo_lists_and_deletes(packed: Any, own: str, skopeo: Callable[..., str]) -> None:
    source, target = RemoteRepository(packed.host, packed.name), RemoteRepository(packed.host, own)
    copy_artifact(source, target, packed.digest, tag=packed.tag, progress=Quiet())
    listed = skopeo("list-tags", "--tls-verify=false", f"docker://{packed.host}/{own}")
    assert packed.tag in listed
    raw = skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{packed.host}/{own}:{packed.tag}")
    assert raw.encode() == packed.manifest
    skopeo("delete", "--tls-verify=false", f"docker://{packed.host}/{own}:{packed.tag}")
    assert packed.tag not in target.tags()


def test_skopeo_carries_a_model_to_another_registry_and_back(
    packed: Any, skopeo: Callable[..., str], docker_registry: str
) -> None:
    reference = f"{packed.name}:{packed.tag}"
    skopeo(
        "copy", "--src-tls-verify=false", "--dest-tls-verify=false",
        f"docker://{packed.host}/{reference}", f"docker://{docker_registry}/{reference}",
    )  # fmt: skip
    assert RemoteRepository(docker_registry, packed.name).resolve(packed.tag).digest == packed.digest
