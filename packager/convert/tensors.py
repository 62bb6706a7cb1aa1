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
class Planned:
    """A tensor of the output and how to make its bytes, chunk by chunk."""

    entry: TensorEntry
    chunks: Sequence[Callable[[], Bytes]]


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


def _chunks(placement: Placement, part: StoredTensor, dtype: str) -> Iterator[Callable[[], Bytes]]:
    rows, columns = part.tensor.shape[0], prod(part.tensor.shape[1:])
    unit = rows // placement.heads if placement.heads else rows if placement.transposed else 1
    step = max(1, _CHUNK // (unit * columns)) * unit
    for first in range(0, rows, step):
        yield _chunk(placement, part, dtype, first, min(step, rows - first))


def given(name: str, values: Elements) -> Planned:
    """A tensor of F32 values that no file stores."""
    return Planned(TensorEntry(name, "F32", values.shape, values.nbytes), [lambda: values.astype("<f4").view(np.uint8)])


def encoded(tensors: Sequence[Planned]) -> Generator[Bytes, None, None]:
    """The bytes of all `tensors` in order, padding included, a bounded number of chunks in memory at a time."""
    workers = max(1, min(_MAX_WORKERS, len(os.sched_getaffinity(0))))
    with ThreadPoolExecutor(workers, "convert") as pool:
        waiting: deque[tuple[Future[Bytes], int]] = deque()
        try:
            for planned in tensors:
                for number, chunk in enumerate(planned.chunks, 1):
                    padding = planned.entry.padding if number == len(planned.chunks) else 0
                    waiting.append((pool.submit(chunk), padding))
                    if len(waiting) > workers + 1:
                        yield from _finished(*waiting.popleft())
            while waiting:
                yield from _finished(*waiting.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _finished(future: Future[Bytes], padding: int) -> Generator[Bytes, None, None]:
    yield future.result()
    if padding:
        yield np.zeros(padding, dtype=np.uint8)


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
