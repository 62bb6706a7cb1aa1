"""A checkpoint folder to one GGUF file, tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
from packager.convert.plan import Plan
from packager.convert.pooling import pooling_of
from packager.convert.tensors import Planned, given, plan
from packager.convert.tokenizer import describe_tokenizer

PRECISIONS = tuple(FILE_TYPES)
"""What a checkpoint can be converted to."""


@dataclass(frozen=True)
class Conversion:
    """A finished GGUF file. `size` is in bytes; `precision` the one asked for; `warning` what a user should know."""

    path: Path
    digest: Digest
    size: int
    precision: str
    warning: str = ""


def plan_conversion(folder: Path, precision: str) -> Plan:
    """What the checkpoint in `folder` becomes at `precision`; no tensor is read yet.

    The bytes depend on the checkpoint's files and `precision` alone. Raises `InvalidInput` for an unknown precision,
    `NotFound` for a missing file, `Malformed` for a broken one, `Unsupported` for what cannot be carried over.
    """
    if precision not in PRECISIONS:
        raise InvalidInput(f"a checkpoint cannot be converted to {precision!r:.40}: choose {', '.join(PRECISIONS)}")
    checkpoint = open_checkpoint(folder)
    family = family_of(checkpoint.config, FAMILIES)
    dimensions = family.dimensions(checkpoint.config)
    pooling = pooling_of(folder) if family.pooled else None
    # First: from here on the dimensions are those of real tensors.
    placements = place(family, checkpoint, dimensions, headless=pooling is not None)
    tensors = [given(name, values) for name, values in family.computed(checkpoint.config, dimensions).items()]
    tensors += [plan(placement, precision) for placement in placements]
    metadata, warning = _metadata(checkpoint, family, dimensions, precision, tensors, pooling)
    return Plan(metadata, tensors, f"{folder.name} to {precision}", warning)


def convert(folder: Path, precision: str, target: Path, progress: Progress) -> Conversion:
    """Convert the checkpoint in `folder` to GGUF and write it to `target`, which is removed again on any failure.

    Raises what `plan_conversion` raises.
    """
    planned = plan_conversion(folder, precision)
    return Conversion(target, planned.write(target, progress), planned.size, precision, planned.warning)


def _metadata(
    checkpoint: Checkpoint, family: Family, dimensions: dict[str, int], precision: str, tensors: Sequence[Planned],
    pooling: int | None,
) -> tuple[Metadata, str]:  # fmt: skip
    metadata = Metadata()
    metadata.string("general.architecture", family.architecture)
    metadata.string("general.type", "model")
    describe_card(metadata, checkpoint.folder, checkpoint.config)
    metadata.string("general.size_label", size_label(sum(prod(tensor.entry.shape) for tensor in tensors)))
    family.describe(metadata, checkpoint.config, dimensions)
    if pooling is not None:
        metadata.uint32(f"{family.architecture}.pooling_type", pooling)
    metadata.uint32("general.file_type", FILE_TYPES[precision])
    metadata.uint32("general.quantization_version", QUANTIZATION_VERSION)
    warning = describe_tokenizer(
        metadata, checkpoint.folder, checkpoint.config, dimensions["vocabulary"], pooled=pooling is not None
    )
    return metadata, warning
