"""Tensor elements from one type to another: safetensors' F32, F16 and BF16 to GGUF's F32, F16, BF16 and Q8_0.

The results are those of llama.cpp's own converter, bit for bit (ggml-impl.h, ggml-quants.c). Most of the work is done
on the bits, in whole passes over short contiguous arrays: what numpy does fastest, and outside the interpreter's lock.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}
"""Bytes per element of the types that are read."""

Q8_0_BLOCK = 32
_Q8_0_DTYPE = np.dtype([("scale", "<f2"), ("values", "i1", Q8_0_BLOCK)])
_PIECE = 1 << 17
"""Elements worked on at a time, so that temporary arrays stay in the processor's cache. A multiple of `Q8_0_BLOCK`."""

_F32_SIGN, _F32_INFINITY = 0x8000_0000, 0x7F80_0000
_F32_TO_F16_INFINITY = 0x477F_F000
"""From this magnitude on a float32 rounds to an infinity of 16 bits."""
_F32_TO_F16_SUBNORMAL = 0x3880_0000
"""Below this magnitude, 2^-14, a float of 16 bits has fewer digits."""
_HALF = 0x3EFF_FFFF
"""The largest float32 below 0.5: added before a cut, it rounds half away from 0, and 0.5 itself would not (0.49999997
and 0.5 make 1)."""

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
    return elements // Q8_0_BLOCK * _Q8_0_DTYPE.itemsize if dtype == "Q8_0" else elements * WIDTHS[dtype]


def recode(elements: Elements, source: str, target: str, result: Bytes) -> None:
    """Write flat `elements`, held as `stored_dtype(source)`, to `result`, as type `target`.

    Raises `OutOfRange` where F16 would turn a number into infinity, and for Q8_0 on what is no finite number.
    """
    if source == target:
        np.copyto(result, elements.view(np.uint8))
        return
    position = 0
    for start in range(0, elements.size, _PIECE):
        piece = elements[start : start + _PIECE]
        length = encoded_length(target, piece.size)
        _encode(piece, source, target, result[position : position + length], _SPARE.words[:, : piece.size])
        position += length


def floats(elements: Elements, dtype: str) -> Floats:
    """`elements`, held as `stored_dtype(dtype)`, as float32."""
    if elements.dtype == np.float32:
        return elements
    return _widen(elements, dtype, np.empty(elements.size, np.uint32))


class _Spare(threading.local):
    """Each thread's memory for what is between one type and the other."""

    def __init__(self) -> None:
        self.words = np.empty((3, _PIECE), np.uint32)


_SPARE = _Spare()


def _widen(elements: Elements, dtype: str, target: Elements) -> Floats:
    """`elements` as float32, in the memory of `target`."""
    values = target.view(np.float32)
    if dtype == "BF16":
        np.copyto(target, elements)
        np.left_shift(target, 16, out=target)
    else:
        np.copyto(values, elements)
    return values


def _encode(piece: Elements, source: str, target: str, result: Bytes, spare: Elements) -> None:
    """`piece` into `result`. `spare` are three arrays of 32 bits an element, for what is in between."""
    if target == "F32":
        _widen(piece, source, result.view("<u4"))
    elif target == "F16" and source == "BF16":
        _f16_of_bf16(piece, result.view("<u2"), spare)
    elif target == "Q8_0" and source == "BF16":
        magnitudes, again = spare[2].view(np.uint16).reshape(2, -1)
        np.bitwise_and(piece, 0x7FFF, out=magnitudes)
        peaks = floats(_peaks(magnitudes, again), "BF16")
        _q8_0(_widen(piece, source, spare[0]), peaks, result, spare[1:])
    else:
        values = piece if source == "F32" else _widen(piece, source, spare[0])
        if target == "F16":
            _f16(values, result.view("<u2"), spare[1:])
        elif target == "BF16":
            _bf16(values, result.view("<u2"), spare[1:])
        else:
            np.bitwise_and(values.view(np.uint32), ~np.uint32(_F32_SIGN), out=spare[1])
            peaks = _peaks(spare[1], spare[2]).view(np.float32)
            _q8_0(values, peaks, result, spare[1:])


def _f16_of_bf16(bits: Elements, result: Elements, spare: Elements) -> None:
    """BF16 has fewer digits than F16: but for what is too large or too small, only the exponent's origin moves."""
    magnitudes, signs = spare[0].view(np.uint16).reshape(2, -1)
    np.bitwise_and(bits, 0x7FFF, out=magnitudes)
    if magnitudes.max() > _F32_TO_F16_INFINITY >> 16:
        _f16(_widen(bits, "BF16", spare[0]), result, spare[1:])
        return
    np.left_shift(bits, 3, out=result)
    np.subtract(result, (127 - 15) << 10 & 0xFFFF, out=result)
    np.bitwise_and(result, 0x7FFF, out=result)
    np.bitwise_and(bits, 0x8000, out=signs)
    np.bitwise_or(result, signs, out=result)
    small = np.flatnonzero(magnitudes < _F32_TO_F16_SUBNORMAL >> 16)
    result[small] = _rounded_to_f16(floats(bits[small], "BF16"))


def _f16(values: Floats, result: Elements, spare: Elements) -> None:
    """Rounded to nearest even."""
    bits, (magnitudes, rounded) = values.view(np.uint32), spare
    np.bitwise_and(bits, ~np.uint32(_F32_SIGN), out=magnitudes)
    if magnitudes.max() >= _F32_TO_F16_INFINITY:
        result[:] = _rounded_to_f16(values)
        return
    np.right_shift(magnitudes, 13, out=rounded)
    np.bitwise_and(rounded, 1, out=rounded)
    np.add(rounded, magnitudes, out=rounded)
    np.add(rounded, np.uint32((0xFFF - ((127 - 15) << 23)) & 0xFFFF_FFFF), out=rounded)
    np.right_shift(rounded, 13, out=rounded)
    small = np.flatnonzero(magnitudes < _F32_TO_F16_SUBNORMAL)
    np.right_shift(bits, 16, out=magnitudes)
    np.bitwise_and(magnitudes, 0x8000, out=magnitudes)
    np.bitwise_or(rounded, magnitudes, out=rounded)
    np.copyto(result, rounded, casting="unsafe")
    result[small] = _rounded_to_f16(values[small])


def _rounded_to_f16(values: Floats) -> Elements:
    """Any values, slowly; infinities and what is no number stay so."""
    with np.errstate(over="raise"):
        try:
            return values.astype("<f2").view("<u2")
        except FloatingPointError:
            raise OutOfRange from None


def _bf16(values: Floats, result: Elements, spare: Elements) -> None:
    """Rounded to nearest even; a NaN stays one, made quiet."""
    bits, (rounded, magnitudes) = values.view(np.uint32), spare
    np.right_shift(bits, 16, out=rounded)
    np.bitwise_and(rounded, 1, out=rounded)
    np.add(rounded, bits, out=rounded)
    np.add(rounded, 0x7FFF, out=rounded)
    np.bitwise_and(bits, ~np.uint32(_F32_SIGN), out=magnitudes)
    if magnitudes.max() > _F32_INFINITY:
        np.copyto(rounded, bits | np.uint32(64 << 16), where=magnitudes > _F32_INFINITY)
    np.right_shift(rounded, 16, out=rounded)
    np.copyto(result, rounded, casting="unsafe")


def _peaks(magnitudes: Elements, spare: Elements) -> Elements:
    """The largest of each block of 32, as unsigned bits of floats without their signs: those have the same order.

    A maximum over a window that slides, and doubles until it is as wide as a block: five passes over contiguous memory
    are quicker than a reduction over many short rows. Both arrays are overwritten.
    """
    width = 1
    while width < Q8_0_BLOCK:
        reach = magnitudes.size - width
        magnitudes, spare = np.maximum(magnitudes[:reach], magnitudes[width:], out=spare[:reach]), magnitudes
        width *= 2
    return magnitudes[::Q8_0_BLOCK].copy()


def _q8_0(values: Floats, peaks: Floats, result: Bytes, spare: Elements) -> None:
    """Blocks of 32: the largest magnitude / 127 as F16, then each value over that scale, rounded half away from 0."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        scale = peaks / np.float32(127)
        stored = scale.astype("<f2")
        inverse = np.float32(1) / scale
    if not np.isfinite(stored).all():
        raise OutOfRange
    inverse[np.isinf(inverse)] = 0  # a block of zeros, or so close to it that its stored scale is zero
    scaled, halves = spare
    values = np.multiply(values.reshape(-1, Q8_0_BLOCK), inverse[:, np.newaxis], out=_rows(scaled))
    np.bitwise_and(scaled, np.uint32(_F32_SIGN), out=halves)
    np.bitwise_or(halves, np.uint32(_HALF), out=halves)
    np.add(values, _rows(halves), out=values)
    blocks = result.view(_Q8_0_DTYPE)
    blocks["scale"] = stored
    np.copyto(blocks["values"], values, casting="unsafe")


def _rows(words: Elements) -> Floats:
    return words.view(np.float32).reshape(-1, Q8_0_BLOCK)
