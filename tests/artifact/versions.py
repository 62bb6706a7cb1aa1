"""Models in several versions, with their tensor indexes, for tests of what travels."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.layout import LayoutRepository
from artifact.manifest import Manifest
from artifact.source import bytes_source
from artifact.tensorindex import Chunker, FileIndex, TensorIndex
from artifact.tensorindex.attach import annotated, push_index, push_referrer
from artifact.weights.safetensors import read_source
from tests.artifact.exchanges import QUIET

MIB = 1024 * 1024
CONFIG = b'{"config":{},"modelfs":{}}'


def weights(tensors: Mapping[str, bytes], note: str = "") -> bytes:
    """A safetensors file; `note` is metadata, which moves everything behind it."""
    header: dict[str, object] = {"__metadata__": {"note": note}} if note else {}
    position = 0
    for name, data in tensors.items():
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [position, position + len(data)]}
        position += len(data)
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + b"".join(tensors.values())


def tensors(count: int = 6, size: int = 3 * MIB) -> dict[str, bytes]:
    """Tensors of about `size` bytes, always the same ones."""
    return {f"t{number}": random.Random(number).randbytes(size + number) for number in range(count)}


def file_index(data: bytes, path: str = "model.safetensors") -> FileIndex:
    read = read_source(bytes_source(data), len(data), path)
    chunker = Chunker(read.tensors, len(data), name=path)
    chunker.update(data)
    return FileIndex(path, Digest.of(data), len(data), read.tensors, chunker.finish())


def store(folder: Path, tag: str, *files: bytes, indexed: bool = True, index: TensorIndex | None = None) -> Manifest:
    """Put a model of these weight files into the layout `folder`; its manifest. `index` replaces the true one."""
    layout, annotations = LayoutRepository(folder), {}
    layers = []
    for number, data in enumerate(files):
        layers.append(
            Descriptor.of(data, mediatypes.MODEL_WEIGHT, annotations={mediatypes.TITLE: f"m{number}.safetensors"})
        )
        layout.push_blob(layers[-1], bytes_source(data), QUIET)
    config = Descriptor.of(CONFIG, mediatypes.MODEL_CONFIG)
    layout.push_blob(config, bytes_source(CONFIG), QUIET)
    made = index or TensorIndex.of(file_index(data, f"m{number}.safetensors") for number, data in enumerate(files))
    if indexed:
        described = push_index(layout, made.to_bytes())
        annotations = annotated({}, made.to_bytes())
    manifest = Manifest(config, tuple(layers), mediatypes.MODEL_MANIFEST, annotations=annotations)
    subject = layout.push_manifest(manifest.to_bytes(), mediatypes.IMAGE_MANIFEST, tag)
    if indexed:
        push_referrer(layout, subject, described)
    return manifest
