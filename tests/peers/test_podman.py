"""podman pushes images and pulls them back, in a storage of its own that needs no privileges."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from artifact.manifest import Index, Manifest
from artifact.remote import RemoteRepository
from tests.peers.programs import program
from tests.registry.servers import RunningRegistry

pytestmark = pytest.mark.peer

CONTENT = os.urandom(3 * 1024 * 1024)


@pytest.fixture
def podman(shell: Callable[..., str], tmp_path: Path) -> Iterator[Callable[..., str]]:
    # podman takes no long path for what it keeps while it runs.
    with tempfile.TemporaryDirectory(prefix="podman-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield _podman(shell, tmp_path, folder)


def _podman(shell: Callable[..., str], tmp_path: Path, folder: str) -> Callable[..., str]:
    storage = ("--root", f"{folder}/root", "--runroot", f"{folder}/run", "--storage-driver", "vfs")
    command = (program("podman"), *storage, "--cgroup-manager", "cgroupfs", "--events-backend", "none")
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    probe = subprocess.run([*command, "info"], env=env, capture_output=True, text=True, timeout=120, check=False)
    if probe.returncode:
        pytest.skip(f"podman cannot run here: NOTHING ABOUT IT WAS TESTED: {probe.stderr.strip()[-300:]}")
    return lambda *arguments: shell(*command, *arguments)


@pytest.fixture
def image(podman: Callable[..., str], tmp_path: Path) -> str:
    """An image of one file, in podman's storage."""
    with tarfile.open(tmp_path / "layer.tar", "w") as archive:
        member = tarfile.TarInfo("model.bin")
        member.size = len(CONTENT)
        archive.addfile(member, io.BytesIO(CONTENT))
    podman("import", f"{tmp_path}/layer.tar", "localhost/small:1")
    return "localhost/small:1"


def test_an_image_there_and_back(
    registry: RunningRegistry, own: str, podman: Callable[..., str], image: str, tmp_path: Path
) -> None:
    reference = f"{registry.host}/{own}:v1"
    podman("push", "--tls-verify=false", "--format", "oci", image, f"docker://{reference}")
    repository = RemoteRepository(registry.host, own)
    descriptor, raw = repository.manifest("v1")
    assert Manifest.parse(raw, descriptor.media_type).layers
    podman("rmi", "--all", "--force")
    by_digest = f"{registry.host}/{own}@{descriptor.digest}"
    for pulled in (reference, by_digest):
        podman("pull", "--tls-verify=false", pulled)
        assert json.loads(podman("image", "inspect", pulled))[0]["Digest"] == str(descriptor.digest)
    podman("save", "--output", f"{tmp_path}/saved.tar", reference)
    with tarfile.open(tmp_path / "saved.tar") as saved:
        layer = next(member for member in saved if member.name.endswith(".tar") and member.isfile())
        content = saved.extractfile(layer)
        assert content is not None
        with tarfile.open(fileobj=io.BytesIO(content.read())) as unpacked:
            file = unpacked.extractfile("model.bin")
            assert file is not None and file.read() == CONTENT


def test_a_list_of_images_and_the_same_layer_again(
    registry: RunningRegistry, own: str, podman: Callable[..., str], image: str
) -> None:
    """An index with its images; a layer that another repository has is mounted or found, not needed again."""
    podman("push", "--tls-verify=false", image, f"docker://{registry.host}/{own}:v1")
    podman("push", "--tls-verify=false", image, f"docker://{registry.host}/{own}/other:v1")
    podman("manifest", "create", "localhost/all:1")
    podman("manifest", "add", "--arch", "arm64", "localhost/all:1", f"containers-storage:{image}")
    podman("manifest", "push", "--all", "--tls-verify=false", "localhost/all:1", f"docker://{registry.host}/{own}:all")
    repository = RemoteRepository(registry.host, own)
    descriptor, raw = repository.manifest("all")
    images = Index.parse(raw, descriptor.media_type).manifests
    assert images
    assert [len(repository.manifest(item.digest)[1]) for item in images] == [item.size for item in images]
    assert sorted(repository.tags()) == ["all", "v1"]
