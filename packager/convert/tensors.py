"""Tensors on their way: cut into chunks of rows, read, reordered and re-encoded in parallel, handed on in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod

import numpy as np

from packager.convert.encoding import (
    Q8_0_BLOCK,
    WIDTHS,
    Bytes,
    Elements,
    OutOfRange,
    encoded_length,
    recode,
    stored_dtype,
)
from packager.convert.errors import Unsupported
from packager.convert.family import Placement
from packager.convert.gguf_header import TensorEntry

_CHUNK = 1 << 21
"""Elements per chunk: 4 to 8 MiB read, at most 8 MiB written."""

_MAX_WORKERS = 8


@dataclass(frozen=True)
class Planned:
    """A tensor of the output and how to make its bytes, chunk by chunk."""

    entry: TensorEntry
    chunks: Sequence[Callable[[], Bytes]]


def plan(placement: Placement, precision: str) -> Planned:
    """What a stored tensor becomes at `precision`: vectors and norms stay F32, and rows that are no whole number of
    Q8_0's blocks become F16, as with llama.cpp's converter."""
    stored = placement.stored.tensor
    dtype = precision
    if len(stored.shape) <= 1 or not placement.target.endswith(".weight") or placement.target.endswith("_norm.weight"):
        dtype = "F32"
    elif dtype == "Q8_0" and stored.shape[-1] % Q8_0_BLOCK:
        dtype = "F16"
    entry = TensorEntry(placement.target, dtype, stored.shape, encoded_length(dtype, stored.elements))
    columns = prod(stored.shape[1:])
    unit = stored.shape[0] // placement.heads if placement.heads else 1
    step = max(1, _CHUNK // (unit * columns)) * unit
    return Planned(
        entry,
        [
            _chunk(placement, dtype, first, min(step, stored.shape[0] - first), columns)
            for first in range(0, stored.shape[0], step)
        ],
    )


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


def _chunk(placement: Placement, dtype: str, first: int, rows: int, columns: int) -> Callable[[], Bytes]:
    stored = placement.stored
    width = WIDTHS[stored.tensor.dtype] * columns

    def run() -> Bytes:
        data = stored.read(first * width, rows * width)
        elements: Elements = np.frombuffer(data, stored_dtype(stored.tensor.dtype))
        if placement.heads:
            elements = interleave(elements.reshape(rows, columns), stored.tensor.shape[0] // placement.heads)
        try:
            return recode(elements.reshape(-1), stored.tensor.dtype, dtype)
        except OutOfRange:
            raise Unsupported(
                f"{stored.path}: tensor {stored.tensor.name!r} holds values that {dtype} cannot (too large, or not "
                "numbers): choose BF16 or F32"
            ) from None

    return run


def interleave(rows: Elements, head: int) -> Elements:
    """The rows of whole heads of `head` rows each, reordered from two halves to neighbouring pairs: transformers
    rotates element i with i + head/2, llama.cpp rotates 2i with 2i + 1."""
    return rows.reshape(-1, 2, head // 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)
