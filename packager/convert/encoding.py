"""Tensor elements from one type to another: safetensors' F32, F16 and BF16 to GGUF's F32, F16, BF16 and Q8_0.

The results are those of llama.cpp's own converter, bit for bit (ggml-impl.h, ggml-quants.c).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}
"""Bytes per element of the types that are read."""

Q8_0_BLOCK = 32
_Q8_0_BYTES = 34
_PIECE = 1 << 16
"""Elements worked on at a time, so that temporary arrays stay in the processor's cache."""

Bytes = npt.NDArray[np.uint8]
Elements = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]


class OutOfRange(ValueError):
    """A value that the target type cannot hold."""


def stored_dtype(dtype: str) -> np.dtype[Any]:
    """The numpy type that holds elements of `dtype` unchanged; BF16, which numpy lacks, as its bits."""
    return np.dtype({"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[dtype])


def encoded_length(dtype: str, elements: int) -> int:
    """Bytes that `elements` take as `dtype`; for Q8_0 a multiple of its block."""
    return elements // Q8_0_BLOCK * _Q8_0_BYTES if dtype == "Q8_0" else elements * WIDTHS[dtype]


def recode(elements: Elements, source: str, target: str) -> Bytes:
    """The bytes of flat `elements`, held as `stored_dtype(source)`, as type `target`.

    Elements whose type stays are passed on untouched. Raises `OutOfRange` where F16 would turn a number into
    infinity, and for Q8_0 on what is no finite number.
    """
    if source == target:
        return elements.view(np.uint8)
    result = np.empty(encoded_length(target, elements.size), dtype=np.uint8)
    position = 0
    for start in range(0, elements.size, _PIECE):
        part = _encode(floats(elements[start : start + _PIECE], source), target)
        result[position : position + part.size] = part
        position += part.size
    return result


def floats(elements: Elements, dtype: str) -> Floats:
    """`elements`, held as `stored_dtype(dtype)`, as float32."""
    if dtype == "BF16":
        return (elements.astype(np.uint32) << 16).view(np.float32)
    return elements.astype(np.float32, copy=False)


def _encode(values: Floats, dtype: str) -> Bytes:
    if dtype == "F32":
        return values.view(np.uint8)
    if dtype == "F16":
        with np.errstate(over="raise"):
            try:
                return values.astype("<f2").view(np.uint8)
            except FloatingPointError:
                raise OutOfRange from None
    return _bf16(values) if dtype == "BF16" else _q8_0(values)


def _bf16(values: Floats) -> Bytes:
    """Rounded to nearest even; a NaN stays one, made quiet."""
    bits = values.view(np.uint32)
    rounded = bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    if nan.any():
        rounded[nan] = bits[nan] | np.uint32(64 << 16)
    return (rounded >> 16).astype("<u2").view(np.uint8)


def _q8_0(values: Floats) -> Bytes:
    """Blocks of 32: the largest magnitude / 127 as F16, then each value over that scale, rounded half away from 0."""
    rows = values.reshape(-1, Q8_0_BLOCK)
    scale = np.abs(rows).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore", over="ignore"):
        stored = scale.astype("<f2")
        inverse = np.float32(1) / scale
    if not np.isfinite(stored).all():
        raise OutOfRange
    inverse[np.isinf(inverse)] = 0  # a block of zeros, or so close to it that its stored scale is zero
    scaled = rows * inverse
    magnitude = np.abs(scaled)
    whole = np.floor(magnitude)
    whole += np.floor(2 * (magnitude - whole))
    blocks = np.empty((rows.shape[0], _Q8_0_BYTES), dtype=np.uint8)
    blocks[:, :2] = stored.view(np.uint8)
    blocks[:, 2:] = np.copysign(whole, scaled).astype(np.int8).view(np.uint8)
    return blocks.reshape(-1)
