"""A checkpoint folder to one GGUF file, tensor by tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path

from artifact.digest import Digest
from artifact.errors import InvalidInput
from artifact.progress import Progress
from artifact.weights.precision import size_label
from packager.convert.checkpoint import Checkpoint, open_checkpoint
from packager.convert.families import FAMILIES
from packager.convert.family import Family, family_of, place
from packager.convert.gguf_header import FILE_TYPES, QUANTIZATION_VERSION, Metadata
from packager.convert.modelcard import describe_card
from packager.convert.pooling import describe_pooling
from packager.convert.tensors import Planned, encoded, given, plan
from packager.convert.tokenizer import describe_tokenizer

PRECISIONS = tuple(FILE_TYPES)
"""What a checkpoint can be converted to."""


@dataclass(frozen=True)
class Conversion:
    """A finished GGUF file. `size` is in bytes; `precision` the one asked for."""

    path: Path
    digest: Digest
    size: int
    precision: str


def convert(folder: Path, precision: str, target: Path, progress: Progress) -> Conversion:
    """Convert the checkpoint in `folder` to GGUF and write it to `target`, which is removed again on any failure.

    The bytes depend on the checkpoint's files and `precision` alone. Raises `InvalidInput` for an unknown precision,
    `NotFound` for a missing file, `Malformed` for a broken one, `Unsupported` for what cannot be carried over.
    """
    if precision not in PRECISIONS:
        raise InvalidInput(f"a checkpoint cannot be converted to {precision!r:.40}: choose {', '.join(PRECISIONS)}")
    checkpoint = open_checkpoint(folder)
    family = family_of(checkpoint.config, FAMILIES)
    dimensions = family.dimensions(checkpoint.config)
    placements = place(family, checkpoint, dimensions)  # first: from here on the dimensions are those of real tensors
    tensors = [given(name, values) for name, values in family.computed(checkpoint.config, dimensions).items()]
    tensors += [plan(placement, precision) for placement in placements]
    metadata = _metadata(checkpoint, family, dimensions, precision, tensors)
    header = metadata.header(tensor.entry for tensor in tensors)
    try:
        digest, size = _write(header, tensors, target, f"{folder.name} to {precision}", progress)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return Conversion(target, digest, size, precision)


def _metadata(
    checkpoint: Checkpoint, family: Family, dimensions: dict[str, int], precision: str, tensors: Sequence[Planned]
) -> Metadata:
    metadata = Metadata()
    metadata.string("general.architecture", family.architecture)
    metadata.string("general.type", "model")
    describe_card(metadata, checkpoint.folder, checkpoint.config)
    metadata.string("general.size_label", size_label(sum(prod(tensor.entry.shape) for tensor in tensors)))
    family.describe(metadata, checkpoint.config, dimensions)
    if family.pooled:
        describe_pooling(metadata, family.architecture, checkpoint.folder)
    metadata.uint32("general.file_type", FILE_TYPES[precision])
    metadata.uint32("general.quantization_version", QUANTIZATION_VERSION)
    describe_tokenizer(metadata, checkpoint.folder, checkpoint.config, dimensions["vocabulary"])
    return metadata


def _write(
    header: bytes, tensors: Sequence[Planned], target: Path, name: str, progress: Progress
) -> tuple[Digest, int]:
    total = len(header) + sum(tensor.entry.length + tensor.entry.padding for tensor in tensors)
    progress.begin(name, total)
    hasher = hashlib.sha256(header)
    with target.open("wb", buffering=0) as stream, closing(encoded(tensors)) as chunks:
        _write_all(stream, memoryview(header), target)
        progress.advance(name, len(header))
        for chunk in chunks:
            hasher.update(chunk.data)
            _write_all(stream, chunk.data, target)
            progress.advance(name, chunk.nbytes)
    progress.finish(name)
    return Digest.from_hasher("sha256", hasher), total


def _write_all(stream: FileIO, view: memoryview, target: Path) -> None:
    try:
        while view:
            view = view[stream.write(view) :]
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error
