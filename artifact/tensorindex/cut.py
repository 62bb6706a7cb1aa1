"""Where a weight file is cut: at the borders of its tensors, so that equal tensors give equal chunks wherever they lie.

A tensor of `JOIN_SIZE` or more stands alone and is cut every `CHUNK_SIZE` from its own start. A run of smaller
neighbours, with the gaps between them, is one chunk until the next one would make it exceed `JOIN_SIZE`. The header
(everything before the first tensor's first byte) is cut by itself. Padding between and behind them is cut too, but such
a part becomes a chunk only if it is not all zeros.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from artifact.errors import Malformed
from artifact.weights.tensor import Tensor

CHUNK_SIZE = 8 * 1024 * 1024
"""Bytes of a large tensor's chunks, but for its last."""

JOIN_SIZE = 1024 * 1024
"""Bytes below which a tensor is joined with its neighbours."""


class Cut(NamedTuple):
    """The part of a file from `offset`, `length` bytes. `padding` says that it belongs to no tensor and not to the
    header: it is a chunk only if one of its bytes is not zero."""

    offset: int
    length: int
    padding: bool

    @property
    def end(self) -> int:
        """The offset behind the last byte."""
        return self.offset + self.length


def cut(
    tensors: Iterable[Tensor], size: int, *, chunk_size: int = CHUNK_SIZE, join_size: int = JOIN_SIZE, name: str = ""
) -> Iterator[Cut]:
    """The parts of a file of `size` bytes with these tensors, in order: every byte is in exactly one of them.

    `name` is the file's, for errors. Raises `Malformed` if two tensors overlap or one lies outside the file.
    """
    ranges = _ranges(tensors, size, name)
    position = ranges[0][0] if ranges else size
    yield from _pieces(0, position, chunk_size, padding=False)
    run: tuple[int, int] | None = None  # of neighbours that are joined
    for start, end in ranges:
        small = end - start < join_size
        if run is not None and small and end - run[0] <= join_size:
            run = run[0], end
            continue
        if run is not None:
            yield Cut(run[0], run[1] - run[0], False)
            position, run = run[1], None
        yield from _pieces(position, start, chunk_size, padding=True)
        if small:
            run = start, end
        else:
            yield from _pieces(start, end, chunk_size, padding=False)
            position = end
    if run is not None:
        yield Cut(run[0], run[1] - run[0], False)
        position = run[1]
    yield from _pieces(position, size, chunk_size, padding=True)


def _ranges(tensors: Iterable[Tensor], size: int, name: str) -> Sequence[tuple[int, int]]:
    """First byte, and the one behind the last, of every tensor that has bytes, in the order of the file."""
    position, ranges = 0, []
    for tensor in sorted(tensors, key=lambda item: (item.offset, item.length, item.name)):
        if tensor.length < 0 or tensor.offset < 0 or tensor.offset + tensor.length > size:
            raise Malformed(f"{name}: tensor {tensor.name!r} lies outside the file")
        if tensor.length:
            if tensor.offset < position:
                raise Malformed(f"{name}: tensor {tensor.name!r} overlaps the one before it")
            position = tensor.offset + tensor.length
            ranges.append((tensor.offset, position))
    return ranges


def _pieces(start: int, end: int, chunk_size: int, *, padding: bool) -> Iterator[Cut]:
    for offset in range(start, end, chunk_size):
        yield Cut(offset, min(chunk_size, end - offset), padding)
