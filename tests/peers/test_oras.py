"""oras (the Python client) pulls what we pushed and pushes what we pull."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from artifact.layout import LayoutRepository
from artifact.manifest import Manifest
from artifact.progress import Quiet
from artifact.remote import RemoteRepository
from artifact.transfer import copy_artifact

oras_client = pytest.importorskip("oras.client", reason="oras is not installed")
pytestmark = pytest.mark.peer


@pytest.fixture
def oras(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    logging.getLogger("oras").setLevel(logging.ERROR)
    return oras_client.OrasClient(insecure=True)


def test_oras_pulls_every_file_under_its_name(packed: Any, oras: Any, tmp_path: Path) -> None:
    oras.pull(target=f"{packed.host}/{packed.name}:{packed.tag}", outdir=str(tmp_path / "out"))
    pulled = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert pulled == packed.files


def test_oras_pushes_files_and_we_pull_them(packed: Any, own: str, oras: Any, tmp_path: Path) -> None:
    names = []
    for name, content in packed.files.items():
        (tmp_path / name).write_bytes(content)
        names.append(f"{name}:application/vnd.cncf.model.weight.v1.raw")
    oras.push(target=f"{packed.host}/{own}:t", files=names, disable_path_validation=True)
    repository = RemoteRepository(packed.host, own)
    layout = LayoutRepository(tmp_path / "layout")
    descriptor = copy_artifact(repository, layout, repository.resolve("t").digest, tag="t", progress=Quiet())
    layers = Manifest.parse(layout.manifest(descriptor.digest)[1]).layers
    contents = {
        layer.annotations["org.opencontainers.image.title"]: layout.blob_path(layer.digest).read_bytes()
        for layer in layers
    }
    assert contents == packed.files


def test_what_we_copied_oras_still_pulls(packed: Any, own: str, oras: Any, tmp_path: Path) -> None:
    """Registry -> our layout -> registry, then oras."""
    source, target = RemoteRepository(packed.host, packed.name), RemoteRepository(packed.host, own)
    layout = LayoutRepository(tmp_path / "layout")
    copy_artifact(source, layout, packed.digest, tag=packed.tag, progress=Quiet())
    copy_artifact(layout, target, packed.digest, tag=packed.tag, progress=Quiet())
    oras.pull(target=f"{packed.host}/{own}:{packed.tag}", outdir=str(tmp_path / "out"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == packed.files
