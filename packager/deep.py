"""What only the weights themselves show: numbers that are none, matrices of zeros, the same matrix twice.

Every tensor is read once. Of block-quantised types the scales are looked at: a block is no number exactly if its scale
is none (ggml-common.h).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from artifact.progress import Progress
from artifact.weights.tensor import Tensor
from packager.checkpoint import Checkpoint
from packager.findings import Finding
from packager.tensors import read_tensors, weights_of

_SCALES = {
    "Q4_0": (18, (0,)), "Q4_1": (20, (0, 2)), "Q5_0": (22, (0,)), "Q5_1": (24, (0, 2)), "Q8_0": (34, (0,)),
    "Q2_K": (84, (80, 82)), "Q3_K": (110, (108,)), "Q4_K": (144, (0, 2)), "Q5_K": (176, (0, 2)), "Q6_K": (210, (208,)),
}  # fmt: skip
"""Bytes of a block, and where in it the scales are, each a 16 bit float."""

_FLOATS: dict[str, tuple[str, int]] = {
    "F64": ("<u8", 0x7FF << 52), "F32": ("<u4", 0xFF << 23), "F16": ("<u2", 0x1F << 10), "BF16": ("<u2", 0xFF << 7),
}  # fmt: skip
"""The integers that elements are read as, and the exponent of what is infinite or no number."""

_F8 = {"F8_E4M3": 0x7F, "F8_E5M2": 0x7C}
Bytes = npt.NDArray[np.uint8]


@dataclass
class _Seen:
    """What has been seen of one tensor. `rest` are bytes of an element or block that the next piece goes on with."""

    count: Callable[[Bytes], int] | None
    unit: int
    hasher: Any = field(default_factory=hashlib.sha256)
    zero: bool = True
    bad: int = 0
    rest: bytes = b""

    def see(self, data: memoryview) -> None:
        self.hasher.update(data)
        array = np.frombuffer(data, np.uint8)
        self.zero = self.zero and not array.any()
        if self.count is None:
            return
        if self.rest:
            array = np.concatenate([np.frombuffer(self.rest, np.uint8), array])
        whole = len(array) // self.unit * self.unit
        self.bad += self.count(array[:whole])
        self.rest = array[whole:].tobytes()


def deep_findings(checkpoint: Checkpoint, progress: Progress) -> list[Finding]:
    """Read all weights, and report what is wrong with them. Raises `Malformed` if a file is shorter than it says."""
    found: list[Finding] = []
    places: dict[tuple[str, tuple[int, ...], str], tuple[str, str]] = {}
    for weights in weights_of(checkpoint):
        path = weights.file.path
        seen = {tensor.name: _Seen(*_counter(tensor.dtype)) for tensor in weights.header.tensors}

        def see(tensor: Tensor, data: memoryview, seen: dict[str, _Seen] = seen) -> None:
            seen[tensor.name].see(data)

        read_tensors(weights, seen.keys(), see, progress)
        for tensor in weights.header.tensors:
            one = seen[tensor.name]
            if one.bad:
                told = f"{tensor.name}: {one.bad:,} of {prod(tensor.shape):,} values are infinite or no numbers"
                if tensor.dtype in _SCALES:
                    told = f"{tensor.name}: {one.bad:,} scales of blocks are infinite or no numbers"
                found.append(Finding("tensor-nonfinite", told, path))
            if len(tensor.shape) < 2 or not tensor.length:
                continue  # norms of ones and biases of zeros are as they should be
            if one.zero:
                found.append(Finding("tensor-zero", f"{tensor.name} holds nothing but zeros", path))
                continue
            twin = places.setdefault((tensor.dtype, tensor.shape, one.hasher.hexdigest()), (path, tensor.name))
            if twin != (path, tensor.name):
                found.append(Finding("tensor-duplicate", f"{tensor.name} holds the same as {twin[1]}", path))
    return found


def _counter(dtype: str) -> tuple[Callable[[Bytes], int] | None, int]:
    """What counts the bad values of a type, and how many bytes it wants at a time; None for types without any."""
    if dtype in _FLOATS:
        kind, exponent = _FLOATS[dtype]
        return lambda data: _bad(data.view(kind), exponent), np.dtype(kind).itemsize
    if dtype in _SCALES:
        size, offsets = _SCALES[dtype]

        def scales(data: Bytes) -> int:
            blocks = data.reshape(-1, size)
            _, exponent = _FLOATS["F16"]
            return sum(
                _bad(np.ascontiguousarray(blocks[:, at : at + 2]).view("<u2").reshape(-1), exponent) for at in offsets
            )

        return scales, size
    if dtype == "F8_E4M3":
        return lambda data: int(((data & 0x7F) == _F8[dtype]).sum()), 1
    if dtype == "F8_E5M2":
        return lambda data: int(((data & 0x7F) >= _F8[dtype]).sum()), 1
    return None, 1


def _bad(values: npt.NDArray[Any], exponent: int) -> int:
    return int(((values & values.dtype.type(exponent)) == exponent).sum())
