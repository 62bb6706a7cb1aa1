"""What every weight format has in common: named, typed, shaped ranges of one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any


@dataclass(frozen=True)
class Tensor:
    """One tensor of a weight file.

    `dtype` is the format's own name in upper case (``BF16``, ``F8_E4M3``, ``Q4_K``). `shape` has the outermost
    dimension first, for GGUF too (whose headers write it the other way round). `offset` is in bytes from the start of
    the file; `length` is in bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True)
class WeightFile:
    """The header of one weight file. `format` is ``safetensors`` or ``gguf``; `metadata` is what the header states,
    tensors apart. Long arrays in GGUF metadata (vocabularies) are kept only by their length: see `gguf.read_header`."""

    format: str
    tensors: Sequence[Tensor]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    size: int = 0
