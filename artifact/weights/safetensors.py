"""Safetensors headers, read within bounds. Source: the safetensors repository, README "Format".

The file is an 8-byte length, a JSON object of that length, and the tensors' bytes. What the format requires is
required here: the tensors cover the data exactly once, without gap or overlap.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from artifact.manifest import load_json
from artifact.source import Source, file_source
from artifact.weights.cursor import Cursor, cursor
from artifact.weights.tensor import Tensor, WeightFile

MAX_HEADER = 16 * 1024 * 1024
"""Longest JSON header that is read, in bytes: room for more than 100,000 tensors in one file."""

MAX_TENSORS = 1 << 17
MAX_VALUES = 1 << 20
"""Most commas in a header, which bound what it takes in memory: eight for each of the tensors there may be."""

_SPARE = 1 << 16  # brackets in the texts of the metadata, which are counted too
MAX_DIMENSIONS = 16
MAX_NAME = 1024

BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32,
    "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
"""Bits of one element of each type the format defines."""

_INT64 = 2**63 - 1


def read_header(path: Path) -> WeightFile:
    """The header of a safetensors file. Raises `Malformed`, naming the file."""
    return read_source(file_source(path), path.stat().st_size, path.name)


def read_source(source: Source, size: int, name: str) -> WeightFile:
    """The header of `size` bytes of safetensors that `source` opens; `name` stands in errors. Raises `Malformed`."""
    with cursor(source, size, name) as reader:
        header, data_start = _read_json(reader)
        metadata = _metadata(reader, header.pop("__metadata__", {}))
        if len(header) > MAX_TENSORS:
            raise reader.malformed(f"{len(header)} tensors, more than {MAX_TENSORS}")
        tensors = [_tensor(reader, key, entry, data_start) for key, entry in header.items()]
        tensors.sort(key=lambda tensor: (tensor.offset, tensor.length))
        _check_cover(reader, tensors, data_start)
        return WeightFile("safetensors", tensors, metadata, size)


def _read_json(reader: Cursor) -> tuple[dict[str, Any], int]:
    if reader.size < 10:
        raise reader.malformed("not a safetensors file: too short")
    (length,) = struct.unpack("<Q", reader.take(8))
    if length > reader.size - 8:
        raise reader.malformed(f"not a safetensors file: its header would have {length} bytes, the file {reader.size}")
    if length > MAX_HEADER:
        raise reader.malformed(f"header of {length} bytes is larger than {MAX_HEADER}")
    raw = reader.take(length)
    if not raw.startswith(b"{"):
        raise reader.malformed("not a safetensors file: the header is not a JSON object")
    objects, lists = MAX_TENSORS + _SPARE, 2 * MAX_TENSORS + _SPARE
    if raw.count(b"{") > objects or raw.count(b"[") > lists or raw.count(b",") > MAX_VALUES:
        raise reader.malformed("header of more values than any model has")  # before they are all in memory
    return load_json(raw, f"{reader.name}: header", MAX_HEADER), 8 + length


def _metadata(reader: Cursor, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) and _is_utf8(text) for text in value.values()):
        raise reader.malformed("__metadata__ must map strings to strings")
    if not all(map(_is_utf8, value)):
        raise reader.malformed("__metadata__ has a key that is not valid Unicode")
    return value


def _tensor(reader: Cursor, name: str, entry: Any, data_start: int) -> Tensor:
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise reader.malformed(f"not a tensor name: {name[:80]!r}")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise reader.malformed(f"tensor {name!r} must have dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise reader.malformed(f"tensor {name!r} has the unknown type {str(dtype)[:40]!r}")
    if not _are_counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise reader.malformed(f"tensor {name!r} has an impossible shape")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise reader.malformed(f"tensor {name!r} has impossible offsets")
    begin, end = offsets
    elements = 1
    for dimension in shape:
        elements *= dimension
        if elements > _INT64:
            raise reader.malformed(f"tensor {name!r} has an impossible shape")
    if not begin <= end <= reader.size - data_start:
        raise reader.malformed(f"tensor {name!r} lies outside the file: its bytes would be {begin} to {end}")
    if (end - begin) * 8 != elements * BITS[dtype]:
        raise reader.malformed(
            f"tensor {name!r} states {end - begin} bytes for {elements} elements of {dtype}: the header lies"
        )
    return Tensor(name, dtype, tuple(shape), data_start + begin, end - begin)


def _check_cover(reader: Cursor, tensors: list[Tensor], data_start: int) -> None:
    end = data_start
    for tensor in tensors:
        if tensor.offset != end:
            kind = "overlaps the tensor before it" if tensor.offset < end else f"leaves a gap before it, at {end}"
            raise reader.malformed(f"tensor {tensor.name!r} {kind}")
        end += tensor.length
    if end != reader.size:
        raise reader.malformed(f"{reader.size - end} bytes belong to no tensor")


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= _INT64 for item in value)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can spell
        return False
    return True
