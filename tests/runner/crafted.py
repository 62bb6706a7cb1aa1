"""Artifacts made by hand, so that they can be wrong in ways `packager` refuses to be."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.layout import LayoutRepository
from artifact.manifest import Manifest
from artifact.progress import Quiet
from artifact.source import bytes_source

MODEL = "safetensors"


def safetensors_bytes(name: str = "w", dtype: str = "F16", count: int = 64) -> bytes:
    """A whole safetensors file with one tensor of two-byte elements."""
    header = json.dumps({name: {"dtype": dtype, "shape": [count], "data_offsets": [0, 2 * count]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(2 * count)


def gguf_without_tensors_it_needs(path: Path) -> bytes:
    """A GGUF whose header is in order, and which llama.cpp cannot load."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_file_type(1)
    writer.add_tensor("token_embd.weight", np.zeros((8, 8), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def blob(layout: LayoutRepository, data: bytes, media_type: str, **annotations: str) -> Descriptor:
    """Store `data`; return its descriptor with `annotations`, underscores in keys read as dots."""
    plain = Descriptor.of(data, media_type)
    layout.push_blob(plain, bytes_source(data), Quiet())
    named = {key.replace("__", "."): value for key, value in annotations.items()}
    return Descriptor(media_type, plain.digest, plain.size, named)


def file_layer(layout: LayoutRepository, path: str, data: bytes, media_type: str | None = None) -> Descriptor:
    """A layer for one file, of the type its name suggests unless stated."""
    weights = path.endswith((".safetensors", ".gguf"))
    guessed = mediatypes.MODEL_WEIGHT if weights else mediatypes.MODEL_WEIGHT_CONFIG
    return blob(layout, data, media_type or guessed, org__cncf__model__filepath=path)


def push_model(
    root: Path,
    layers: Sequence[Descriptor],
    *,
    tag: str = "v1",
    format_: str = "safetensors",
    precision: str = "float16",
    annotations: Mapping[str, str] | None = None,
) -> Digest:
    """Store a ModelPack manifest over `layers` and point `tag` at it."""
    layout = LayoutRepository(root)
    config = json.dumps(
        {
            "descriptor": {"name": "crafted"},
            "config": {"format": format_, "precision": precision},
            "modelfs": {"type": "layers", "diffIds": [str(layer.digest) for layer in layers]},
        }
    ).encode()
    manifest = Manifest(
        blob(layout, config, mediatypes.MODEL_CONFIG), layers, mediatypes.MODEL_MANIFEST, None, annotations or {}
    )
    return layout.push_manifest(manifest.to_bytes(), manifest.media_type, tag).digest


def model_of(root: Path, files: Mapping[str, bytes], **options: str) -> Digest:
    """A model of `files`, beside one good weight file where it has none."""
    layout = LayoutRepository(root)
    given = dict(files)
    if not any(path.endswith((".safetensors", ".gguf")) for path in given):
        given["model.safetensors"] = safetensors_bytes()
    return push_model(root, [file_layer(layout, path, data) for path, data in given.items()], **options)


def flip_byte(path: Path, at: int = -1) -> None:
    """Damage one byte of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
