"""Tensors of a file that still arrives: whole ones, and those of which a tensor-parallel rank needs only some rows."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch.utils._pytree import tree_map

from .client import Entry, StreamError, WeightFile

_TYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip

_METHODS = ("size", "dim", "numel", "nelement", "ndimension", "element_size", "is_floating_point", "is_complex",
            "is_contiguous", "stride", "storage_offset", "__len__")  # fmt: skip
_PROPERTIES = ("shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_meta", "is_cuda", "is_cpu",
               "is_sparse", "is_quantized", "is_nested")  # fmt: skip
_DESCRIBING = {
    *(getattr(torch.Tensor, name) for name in _METHODS),
    *(getattr(torch.Tensor, name).__get__ for name in _PROPERTIES),
}
"""What is answered without reading anything."""


def dtype_of(entry: Entry) -> torch.dtype:
    """The type of a tensor. Raises `StreamError` for one that torch does not have."""
    name = _TYPES.get(entry.dtype, "")
    found = getattr(torch, name, None) if name else None
    if found is None:
        raise StreamError(f"tensor {entry.name} has the type {entry.dtype}, which cannot be streamed: serve without it")
    return found


def whole(file: WeightFile, entry: Entry) -> torch.Tensor:
    """A tensor with all its bytes."""
    return _rows(file, entry, dtype_of(entry), 0, entry.shape)


def _rows(file: WeightFile, entry: Entry, dtype: torch.dtype, first: int, shape: tuple[int, ...]) -> torch.Tensor:
    """The part of a tensor that begins with row `first` and has this `shape`."""
    row = prod(entry.shape[1:]) * dtype.itemsize
    length = prod(shape) * dtype.itemsize
    # vLLM loads inside a context that puts new tensors on the GPU.
    held = torch.empty(length, dtype=torch.uint8, device="cpu")
    if length:
        file.read_into(memoryview(held.numpy()), entry.offset + first * row)
    return held.view(dtype).reshape(shape)


class Lazy(torch.Tensor):  # type: ignore[misc]
    """A tensor, or some of its rows, whose bytes are read when something else is asked than what it looks like.

    Rows taken from it are lazy too: of a weight that is cut along its first dimension, which is how column-parallel
    layers and embeddings are, a rank waits for its own part only. Anything else works on the tensor itself.
    """

    _file: WeightFile
    _entry: Entry
    _first: int
    _value: torch.Tensor | None

    @staticmethod
    def __new__(cls: type[Lazy], file: WeightFile, entry: Entry, first: int = 0, rows: int | None = None) -> Lazy:
        shape = entry.shape if rows is None else (rows, *entry.shape[1:])
        made: Lazy = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype_of(entry), device="cpu")
        made._file, made._entry, made._first, made._value = file, entry, first, None
        return made

    def part(self, start: int, length: int) -> Lazy:
        """`length` rows from `start` on."""
        return Lazy(self._file, self._entry, self._first + start, length)

    def value(self) -> torch.Tensor:
        """The tensor itself, read now if it was not."""
        if self._value is None:
            with torch._C.DisableTorchFunctionSubclass():
                shape = tuple(self.shape)
            self._value = _rows(self._file, self._entry, dtype_of(self._entry), self._first, shape)
        return self._value

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _DESCRIBING:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        part = _taken(func, args, kwargs)
        return part if part is not None else func(*tree_map(_real, args), **tree_map(_real, kwargs))

    @classmethod
    def __torch_dispatch__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*tree_map(_real, args), **tree_map(_real, kwargs or {}))

    def __repr__(self, **_: Any) -> str:
        return f"Lazy({self._entry.name})"


def _real(value: Any) -> Any:
    return value.value() if isinstance(value, Lazy) else value


def _taken(func: Callable[..., Any], args: Any, kwargs: Any) -> Lazy | None:
    """The rows that a call takes from a lazy tensor and does nothing else with, or None."""
    if not args or not isinstance(args[0], Lazy) or not args[0]._entry.shape:
        return None
    if func in (torch.Tensor.narrow, torch.narrow):
        given = dict(zip(("input", "dim", "start", "length"), args, strict=False)) | kwargs
        wanted = given.get("dim"), given.get("start"), given.get("length")
    elif func is torch.Tensor.__getitem__ and isinstance(args[1], slice) and args[1].step in (None, 1):
        start, stop, _ = args[1].indices(args[0].size(0))
        wanted = 0, start, max(0, stop - start)
    else:
        return None
    dim, start, length = wanted
    plain = all(type(item) is int for item in wanted)
    if not plain or dim != 0 or start < 0 or length < 0 or start + length > args[0].size(0):
        return None
    return args[0].part(start, length)
