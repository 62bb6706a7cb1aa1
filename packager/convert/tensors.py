"""Tensors on their way: cut into chunks of rows, read, reordered and re-encoded in parallel, handed on in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod

import numpy as np

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

_CHUNK = 1 << 21
"""Elements per chunk: 4 to 8 MiB read, at most 8 MiB written. A matrix that is transposed is one chunk: those are
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
class Chunk:
    """How to make `length` bytes of the output."""

    length: int
    make: Callable[[], Bytes]


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
        yield Chunk(encoded_length(dtype, count * columns), _chunk(placement, part, dtype, first, count))


def given(name: str, values: Elements) -> Planned:
    """A tensor of F32 values that no file stores."""
    entry = TensorEntry(name, "F32", values.shape, values.nbytes)
    return Planned(entry, [Chunk(entry.length, lambda: values.astype("<f4").view(np.uint8))])


def encoded(tensors: Sequence[Planned], offset: int = 0) -> Generator[Bytes, None, None]:
    """The bytes of all `tensors` from `offset`, in order, padding included, a bounded number of chunks in memory at a
    time. Chunks before `offset` are not made."""
    workers = max(1, min(_MAX_WORKERS, len(os.sched_getaffinity(0))))
    with ThreadPoolExecutor(workers, "convert") as pool:
        waiting: deque[tuple[Future[Bytes], int]] = deque()
        try:
            for chunk, start in _from(tensors, offset):
                waiting.append((pool.submit(chunk.make), start))
                if len(waiting) > workers + 1:
                    yield _finished(*waiting.popleft())
            while waiting:
                yield _finished(*waiting.popleft())
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
    return Chunk(length, lambda: np.zeros(length, dtype=np.uint8))


def _finished(future: Future[Bytes], start: int) -> Bytes:
    data = future.result()
    return data[start:] if start else data


def _chunk(placement: Placement, part: StoredTensor, dtype: str, first: int, rows: int) -> Callable[[], Bytes]:
    source = part.tensor.dtype
    columns = prod(part.tensor.shape[1:])
    width = WIDTHS[source] * columns

    def run() -> Bytes:
        data = part.read(first * width, rows * width)
        elements: Elements = np.frombuffer(data, stored_dtype(source)).reshape(rows, columns)
        if placement.heads:
            elements = interleave(elements, part.tensor.shape[0] // placement.heads)
        if placement.transposed:
            elements = np.ascontiguousarray(elements.T)
        try:
            if placement.plus_one:
                return recode(plus_one(elements.reshape(-1), source), "F32", dtype)
            return recode(elements.reshape(-1), source, dtype)
        except OutOfRange:
            raise Unsupported(
                f"{part.path}: tensor {part.tensor.name!r} holds values that {dtype} cannot (too large, or not "
                "numbers): choose BF16 or F32"
            ) from None

    return run


def interleave(rows: Elements, head: int) -> Elements:
    """The rows of whole heads of `head` rows each, reordered from two halves to neighbouring pairs: transformers
    rotates element i with i + head/2, llama.cpp rotates 2i with 2i + 1."""
    return rows.reshape(-1, 2, head // 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def plus_one(elements: Elements, dtype: str) -> Floats:
    """Norms as llama.cpp has them, from their distance from one."""
    return floats(elements, dtype) + np.float32(1)
