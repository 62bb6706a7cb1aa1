"""A source of bytes that says what they have to be, and where some of them are already."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from artifact.source import RangedSource, Reader
from artifact.tensorindex.format import FileIndex


class Place(NamedTuple):
    """Bytes of a local file, from `offset` on."""

    path: Path
    offset: int


@dataclass(frozen=True)
class IndexedSource:
    """The `RangedSource` of a weight file of which the tensor index speaks. `local` says by a chunk's digest where the
    chunk can be copied from instead; what is there is not checked, and may be gone."""

    ranges: RangedSource
    file: FileIndex
    local: Mapping[bytes, Place]

    def __call__(self, offset: int, /) -> AbstractContextManager[Reader]:
        """The bytes from `offset` on."""
        return self.ranges(offset)

    def range(self, start: int, length: int, /) -> AbstractContextManager[Reader]:
        """Exactly the bytes from `start` on. Raises `NoRanges`, and what the place raises."""
        return self.ranges.range(start, length)
