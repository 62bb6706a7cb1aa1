"""Tensors on their way: cut into chunks of rows, read, reordered and re-encoded in parallel, handed on in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Protocol

import numpy as np

from artifact.errors import Malformed
from packager.convert.checkpoint import StoredTensor
from packager.convert.encoding import (
    Q8_0_BLOCK,
    WIDTHS,
    Bytes,
    Elements,
    Floats,
    OutOfRange,
    encoded_length,
    floats,
    recode,
    stored_dtype,
)
from packager.convert.errors import Unsupported
from packager.convert.family import Placement
from packager.convert.gguf_header import TensorEntry

_CHUNK = 1 << 20
"""Elements per chunk: 2 to 4 MiB read, at most 4 MiB written. A matrix that is transposed is one chunk: those are
GPT-2's, of 10 million elements at most."""

_MAX_WORKERS = 8

_ALWAYS_F32 = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_inp_shexp.weight",
    "position_embd.weight",
    "token_types.weight",
)


@dataclass(frozen=True)
class Range:
    """`length` bytes of the file at `path`, from `offset`; `what` they are called in errors."""

    path: Path
    offset: int
    length: int
    what: str

    def read_into(self, buffer: Bytes) -> None:
        """Fill `buffer`, which is as long. Raises `Malformed` if the file has become shorter."""
        view, done = memoryview(buffer.data), 0
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while done < self.length:
                count = os.preadv(descriptor, [view[done:]], self.offset + done)
                if not count:
                    raise Malformed(f"{self.path} ended inside {self.what}: was it changed meanwhile?")
                done += count
        finally:
            os.close(descriptor)


class Witness(Protocol):
    """Somebody who wants to see the bytes that are read, besides what is made of them."""

    def saw(self, path: Path, offset: int, data: memoryview) -> None:
        """`data` was read at `offset` of the file; it is gone afterwards. Called in the order of the output."""


@dataclass(frozen=True)
class Chunk:
    """How to make `length` bytes of the output: they are those of `origin`; or what `make` makes of them, which is
    handed them, and where to put the result; or what it makes of nothing."""

    length: int
    origin: Range | None = None
    make: Callable[[Bytes, Bytes], None] | None = None


@dataclass(frozen=True)
class Planned:
    """A tensor of the output and how to make its bytes, chunk by chunk."""

    entry: TensorEntry
    chunks: Sequence[Chunk]


def plan(placement: Placement, precision: str) -> Planned:
    """What stored tensors become at `precision`: vectors, norms, routers of experts and tables of positions stay F32,
    and rows that are no whole number of Q8_0's blocks become F16, as with llama.cpp's converter."""
    shape = placement.shape
    dtype = precision
    if len(shape) <= 1 or not placement.target.endswith(".weight") or placement.target.endswith(_ALWAYS_F32):
        dtype = "F32"
    elif dtype == "Q8_0" and shape[-1] % Q8_0_BLOCK:
        dtype = "F16"
    entry = TensorEntry(placement.target, dtype, shape, encoded_length(dtype, prod(shape)))
    return Planned(entry, [chunk for part in placement.parts for chunk in _chunks(placement, part, dtype)])


def _chunks(placement: Placement, part: StoredTensor, dtype: str) -> Iterator[Chunk]:
    rows, columns = part.tensor.shape[0], prod(part.tensor.shape[1:])
    unit = rows // placement.heads if placement.heads else rows if placement.transposed else 1
    step = max(1, _CHUNK // (unit * columns)) * unit
    for first in range(0, rows, step):
        count = min(step, rows - first)
        yield _chunk(placement, part, dtype, first, count)


def given(name: str, values: Elements) -> Planned:
    """A tensor of F32 values that no file stores."""
    entry = TensorEntry(name, "F32", values.shape, values.nbytes)
    raw = values.astype("<f4").reshape(-1).view(np.uint8)
    return Planned(entry, [Chunk(entry.length, make=lambda _, result: np.copyto(result, raw))])


def encoded(
    tensors: Sequence[Planned], offset: int = 0, witness: Witness | None = None
) -> Generator[Bytes, None, None]:
    """The bytes of all `tensors` from `offset`, in order, padding included, a bounded number of chunks in memory at a
    time. Chunks before `offset` are not made. What is yielded is overwritten once the next is asked for."""
    workers = max(1, min(_MAX_WORKERS, len(os.sched_getaffinity(0))))
    with ThreadPoolExecutor(workers, "convert") as pool, ThreadPoolExecutor(1, "witness") as beside:
        free = [_Slot() for _ in range(workers + 2)]
        waiting: deque[tuple[Future[_Slot], Chunk, int]] = deque()

        def finished() -> Iterator[Bytes]:
            future, chunk, start = waiting.popleft()
            slot, seen = future.result(), None
            if witness is not None and chunk.origin is not None:
                origin = chunk.origin
                seen = beside.submit(witness.saw, origin.path, origin.offset, slot.source_of(chunk).data)
            yield slot.result[start : chunk.length]
            if seen is not None:
                seen.result()
            free.append(slot)

        try:
            for chunk, start in _from(tensors, offset):
                if not free:
                    yield from finished()
                waiting.append((pool.submit(free.pop().fill, chunk), chunk, start))
            while waiting:
                yield from finished()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _from(tensors: Sequence[Planned], offset: int) -> Iterator[tuple[Chunk, int]]:
    """Every chunk that reaches behind `offset`, with where in it to start."""
    for planned in tensors:
        padding = planned.entry.padding
        for chunk in (*planned.chunks, *([_zeros(padding)] if padding else [])):
            if offset < chunk.length:
                yield chunk, offset
            offset = max(0, offset - chunk.length)


def _zeros(length: int) -> Chunk:
    return Chunk(length, make=lambda _, result: result.fill(0))


class _Slot:
    """Memory for one chunk at a time, used again and again: what is read, and what is made of it."""

    def __init__(self) -> None:
        self._source = self.result = np.empty(0, np.uint8)

    def fill(self, chunk: Chunk) -> _Slot:
        """Read and make `chunk`."""
        self.result = _at_least(self.result, chunk.length)
        if chunk.origin is not None:
            if chunk.make is not None:
                self._source = _at_least(self._source, chunk.origin.length)
            chunk.origin.read_into(self.source_of(chunk))
        if chunk.make is not None:
            chunk.make(self.source_of(chunk), self.result[: chunk.length])
        return self

    def source_of(self, chunk: Chunk) -> Bytes:
        """The bytes that were read for `chunk`."""
        length = chunk.origin.length if chunk.origin is not None else 0
        return (self.result if chunk.make is None else self._source)[:length]


def _at_least(buffer: Bytes, length: int) -> Bytes:
    return buffer if buffer.size >= length else np.empty(length, np.uint8)


def _chunk(placement: Placement, part: StoredTensor, dtype: str, first: int, rows: int) -> Chunk:
    tensor, source = part.tensor, part.tensor.dtype
    columns = prod(tensor.shape[1:])
    width = WIDTHS[source] * columns
    origin = Range(part.path, tensor.offset + first * width, rows * width, f"tensor {tensor.name!r}")
    length = encoded_length(dtype, rows * columns)
    if source == dtype and not (placement.heads or placement.transposed or placement.plus_one):
        return Chunk(length, origin)

    def make(data: Bytes, result: Bytes) -> None:
        elements: Elements = data.view(stored_dtype(source)).reshape(rows, columns)
        if placement.heads:
            elements = interleave(elements, tensor.shape[0] // placement.heads)
        if placement.transposed:
            elements = np.ascontiguousarray(elements.T)
        flat, held = elements.reshape(-1), source
        if placement.plus_one:
            flat, held = plus_one(flat, source), "F32"
        try:
            recode(flat, held, dtype, result)
        except OutOfRange:
            raise Unsupported(
                f"{part.path}: tensor {tensor.name!r} holds values that {dtype} cannot (too large, or not numbers): "
                "choose BF16 or F32"
            ) from None

    return Chunk(length, origin, make)


def interleave(rows: Elements, head: int) -> Elements:
    """The rows of whole heads of `head` rows each, reordered from two halves to neighbouring pairs: transformers
    rotates element i with i + head/2, llama.cpp rotates 2i with 2i + 1."""
    return rows.reshape(-1, 2, head // 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def plus_one(elements: Elements, dtype: str) -> Floats:
    """Norms as llama.cpp has them, from their distance from one."""
    return floats(elements, dtype) + np.float32(1)
