"""The models that are moved: a Llama with random weights, and two later versions of it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.layout import LayoutRepository
from artifact.manifest import Manifest
from artifact.mediatypes import IMAGE_MANIFEST
from artifact.progress import Quiet
from artifact.source import bytes_source, file_source
from tests.checkpoints.tiny import write_tiny_llama

OURS = str(Path(sys.executable).parent)
"""Where our commands are."""

_HIDDEN, _INTERMEDIATE = 1024, 4096
_LAYER_BYTES = 2 * (4 * _HIDDEN**2 + 3 * _HIDDEN * _INTERMEDIATE)
"""Of one layer, in BF16."""
_TAR = "application/vnd.oci.image.layer.v1.tar"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_PART = 16 * 1024 * 1024


@dataclass(frozen=True)
class Model:
    """A packed model: the layout it lies in, and the bytes of its files. Its tag there is ``v1``."""

    layout: Path
    size: int


def make(folder: Path, size: int, shards: int) -> Model:
    """A model of about `size` bytes in `shards` weight files."""
    checkpoint = _checkpoint(folder, size, shards)
    layout = folder / f"layout-{shards}"
    _pack(checkpoint, layout, "v1")
    size = _size(checkpoint)
    shutil.rmtree(checkpoint)
    return Model(layout, size)


def make_versions(folder: Path, size: int) -> Model:
    """The same in one file, with two further versions: ``note`` has other metadata in the file's header, which moves
    every tensor; ``tenth`` has other bytes in a tenth of the tensors, by their size."""
    checkpoint = _checkpoint(folder, size, 1)
    layout, file = folder / "layout-versions", checkpoint / "model.safetensors"
    _pack(checkpoint, layout, "v1")
    size = _size(checkpoint)
    before = file.stat().st_size
    _note(file, "a longer note than the one before")
    _pack(checkpoint, layout, "note")
    assert file.stat().st_size > before
    _change(file, 0.1)
    _pack(checkpoint, layout, "tenth")
    shutil.rmtree(checkpoint)
    return Model(layout, size)


def _checkpoint(folder: Path, size: int, shards: int) -> Path:
    return write_tiny_llama(
        folder / f"checkpoint-{shards}", layers=max(1, size // _LAYER_BYTES), hidden=_HIDDEN, heads=16, kv_heads=16,
        intermediate=_INTERMEDIATE, shards=shards,
    )  # fmt: skip


def _pack(checkpoint: Path, layout: Path, tag: str) -> None:
    run([f"{OURS}/packager", "pack", str(checkpoint), f"oci:{layout}:{tag}", "--format", "safetensors"])


def _size(checkpoint: Path) -> int:
    return sum(path.stat().st_size for path in checkpoint.iterdir())


def _header(file: Path) -> tuple[dict[str, dict[str, object]], int]:
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        return json.loads(stream.read(length)), 8 + length


def _note(file: Path, note: str) -> None:
    header, data = _header(file)
    text = json.dumps({**header, "__metadata__": {"format": "pt", "note": note}}).encode()
    fresh = file.with_suffix(".new")
    with file.open("rb") as old, fresh.open("wb") as new:
        old.seek(data)
        new.write(len(text).to_bytes(8, "little") + text)
        shutil.copyfileobj(old, new, _PART)
    fresh.replace(file)


def _change(file: Path, share: float) -> None:
    """Overwrite large tensors here and there until `share` of the bytes are others."""
    header, data = _header(file)
    places = [item["data_offsets"] for name, item in header.items() if name != "__metadata__"]
    tensors = sorted((start, end) for start, end in places if end - start >= 1024 * 1024)  # type: ignore[misc]
    left = share * (file.stat().st_size - data)
    with file.open("r+b") as stream:
        for start, end in tensors[:: max(1, int(0.8 / share))]:
            if left <= 0:
                return
            stream.seek(data + start)
            for at in range(start, end, _PART):
                stream.write(os.urandom(min(_PART, end - at)))
            left -= end - start


def run(command: list[str]) -> None:
    """Run a command. Raises `RuntimeError` with what it said if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")


def add_image(model: Model) -> None:
    """Put an image beside a model under the tag ``image``: one layer, a tar of the model's largest file. podman takes
    nothing else."""
    layout = LayoutRepository(model.layout)
    manifest = Manifest.parse(layout.manifest("v1")[1])
    largest = max(manifest.layers, key=lambda layer: layer.size)
    archive = model.layout.parent / "layer.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(layout.blob_path(largest.digest), "model.safetensors")
    hasher = hashlib.sha256()
    with archive.open("rb") as stream:
        while part := stream.read(_PART):
            hasher.update(part)
    layer = Descriptor(_TAR, Digest.from_hasher("sha256", hasher), archive.stat().st_size)
    layout.push_blob(layer, file_source(archive), Quiet())
    archive.unlink()
    value = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [str(layer.digest)]}}
    raw = json.dumps(value).encode()
    config = Descriptor.of(raw, _CONFIG)
    layout.push_blob(config, bytes_source(raw), Quiet())
    layout.push_manifest(Manifest(config, (layer,)).to_bytes(), IMAGE_MANIFEST, "image")
