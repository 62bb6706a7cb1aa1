"""GGUF headers, read within bounds. Source: ggml's docs/gguf.md, versions 2 and 3, little-endian.

The cost of a GGUF header is its vocabulary: hundreds of thousands of strings between the few values and the tensor
table. They are walked, not built; `read_array` reads one of them in full for who needs it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from artifact.source import Source, file_source
from artifact.weights.cursor import Cursor, cursor
from artifact.weights.tensor import Tensor, WeightFile

MAX_TENSORS = 1 << 17
MAX_KEYS = 1 << 16
MAX_STRING = 1 << 20
"""Longest string, in bytes."""
MAX_KEPT = 1 << 25
"""Most bytes of strings and array elements that are kept from one header, all together, with `OVERHEAD` for each."""
MAX_WHOLE = 1 << 28
"""The same where one array is read in full: room for a vocabulary ten times the largest known."""
OVERHEAD = 64
"""Bytes that a string or a number takes in memory besides its own."""
MAX_ARRAY_STRINGS = 1 << 24
"""Most strings in all arrays of one header together, each of which has to be walked."""
MAX_DIMENSIONS = 4
MAX_NAME = 1024
FIXED = 24
"""Bytes before the metadata: magic, version, number of tensors, number of keys."""
KEPT = 256
"""Longest array whose elements are kept in `WeightFile.metadata`; a longer one is there as a `LongArray`."""

TENSOR_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18),
}  # fmt: skip
"""ggml's tensor types: number to name, elements in a block, bytes of a block (enum ggml_type)."""

_SCALARS = {
    0: struct.Struct("<B"), 1: struct.Struct("<b"), 2: struct.Struct("<H"), 3: struct.Struct("<h"),
    4: struct.Struct("<I"), 5: struct.Struct("<i"), 6: struct.Struct("<f"), 7: struct.Struct("<B"),
    10: struct.Struct("<Q"), 11: struct.Struct("<q"), 12: struct.Struct("<d"),
}  # fmt: skip
_UINT32, _BOOL, _STRING, _ARRAY = 4, 7, 8, 9
_VALUE_NAMES = {
    0: "uint8", 1: "int8", 2: "uint16", 3: "int16", 4: "uint32", 5: "int32", 6: "float32", 7: "bool", 8: "string",
    10: "uint64", 11: "int64", 12: "float64",
}  # fmt: skip
_INT64 = 2**63 - 1


@dataclass(frozen=True)
class LongArray:
    """Stands for a metadata array that was not kept: the name of its element type, and its length."""

    type: str
    count: int


def read_header(path: Path) -> WeightFile:
    """The header of a GGUF file. Arrays of up to `KEPT` elements are tuples in its metadata, longer ones `LongArray`.

    Raises `Malformed`, naming the file.
    """
    return read_source(file_source(path), path.stat().st_size, path.name)


def read_source(source: Source, size: int, name: str) -> WeightFile:
    """The header of `size` bytes of GGUF that `source` opens; `name` stands in errors. Raises `Malformed`."""
    with cursor(source, size, name) as reader:
        header = _Header(reader)
        metadata = dict(header.values())
        tensors = header.tensors(_alignment(reader, metadata, header.alignment_type))
        return WeightFile("gguf", tensors, metadata, size)


def read_array(path: Path, key: str) -> tuple[Any, ...]:
    """All elements of one metadata array of a GGUF file, e.g. ``tokenizer.ggml.tokens``.

    Raises `KeyError` if the file has no array under `key`, `Malformed` if its header is broken up to there.
    """
    with cursor(file_source(path), path.stat().st_size, path.name) as reader:
        for name, value in _Header(reader, whole=key).values():
            if name == key and isinstance(value, tuple):
                return value
    raise KeyError(key)


def read_pooling(source: Source, size: int, name: str) -> int | None:
    """The model's pooling type (llama.h, enum llama_pooling_type), None if its header states none.

    Reads no further than the tokenizer, before which every known writer puts it. Raises `Malformed`.
    """
    architecture = ""
    with cursor(source, size, name) as reader:
        for key, value in _Header(reader).values():
            if key == "general.architecture" and isinstance(value, str):
                architecture = value
            if key == f"{architecture}.pooling_type":
                return value if isinstance(value, int) else None
            if key.startswith("tokenizer."):
                break
    return None


def metadata_length(path: Path) -> int:
    """Bytes of a GGUF file's metadata, which begin after the first `FIXED` of the file. Raises `Malformed`."""
    with cursor(file_source(path), path.stat().st_size, path.name) as reader:
        for _ in _Header(reader).values():
            pass
        return reader.position - FIXED


class _Header:
    """One pass over a header. `whole` is the key of an array to keep whatever its length."""

    def __init__(self, reader: Cursor, whole: str | None = None) -> None:
        self._reader = reader
        self._whole = whole
        self._room = MAX_KEPT if whole is None else MAX_WHOLE
        self._array_strings_left = MAX_ARRAY_STRINGS
        self.alignment_type = _UINT32
        if reader.size < FIXED or reader.take(4) != b"GGUF":
            raise reader.malformed("not a GGUF file")
        (version,) = struct.unpack("<I", reader.take(4))
        if version not in (2, 3):
            order = " (a big-endian file)" if version and not version & 0xFFFFFF else ""
            raise reader.malformed(f"GGUF version {version}{order} is not supported: 2 and 3, little-endian, are")
        self._tensor_count, self._key_count = struct.unpack("<QQ", reader.take(16))
        for count, limit, what in (
            (self._tensor_count, MAX_TENSORS, "tensors"),
            (self._key_count, MAX_KEYS, "metadata keys"),
        ):
            if count > limit:
                raise reader.malformed(f"{count} {what}, more than {limit}")

    def values(self) -> Iterator[tuple[str, Any]]:
        """The metadata, in file order; no key twice."""
        seen: set[str] = set()
        for _ in range(self._key_count):
            key = self._name("metadata key")
            if key in seen:
                raise self._reader.malformed(f"metadata key {key!r} is given twice")
            seen.add(key)
            type_ = self._u32()
            if key == "general.alignment":
                self.alignment_type = type_
            yield key, self._array(key) if type_ == _ARRAY else self._value(key, type_)

    def tensors(self, alignment: int) -> list[Tensor]:
        """The tensor table, which follows the metadata, in the order of the data; it covers the data exactly once."""
        found = [self._tensor(alignment) for _ in range(self._tensor_count)]
        if len({tensor.name for tensor in found}) != len(found):
            names = sorted(tensor.name for tensor in found)
            twice = next(name for name, other in pairwise(names) if name == other)
            raise self._reader.malformed(f"tensor {twice!r} is given twice")
        reader = self._reader
        header_end, data_start = reader.position, _aligned(reader.position, alignment)
        placed = [Tensor(t.name, t.dtype, t.shape, data_start + t.offset, t.length) for t in found]
        placed.sort(key=lambda tensor: (tensor.offset, tensor.length))
        self._check_cover(placed, header_end, data_start, alignment)
        return placed

    def _check_cover(self, tensors: list[Tensor], header_end: int, data_start: int, alignment: int) -> None:
        reader, end, wanted = self._reader, header_end, data_start
        for tensor in tensors:
            if tensor.offset != wanted:
                kind = "overlaps the tensor before it" if tensor.offset < wanted else "leaves a gap before it"
                raise reader.malformed(f"tensor {tensor.name!r} {kind}: it starts at {tensor.offset}, not {wanted}")
            end = tensor.offset + tensor.length
            wanted = _aligned(end, alignment)
            if end > reader.size:
                raise reader.malformed(f"tensor {tensor.name!r} ends at {end}, the file at {reader.size}")
        if reader.size > wanted:
            raise reader.malformed(f"{reader.size - wanted} bytes belong to no tensor")

    def _tensor(self, alignment: int) -> Tensor:
        reader, name = self._reader, self._name("tensor name")
        dimensions = self._u32()
        if dimensions > MAX_DIMENSIONS:
            raise reader.malformed(f"tensor {name!r} has {dimensions} dimensions, more than {MAX_DIMENSIONS}")
        shape = struct.unpack(f"<{dimensions}Q", reader.take(8 * dimensions))
        number, offset = struct.unpack("<IQ", reader.take(12))
        known = TENSOR_TYPES.get(number)
        if known is None:
            raise reader.malformed(f"tensor {name!r} has the unknown type {number}")
        dtype, block, block_bytes = known
        elements = 1
        for dimension in shape:
            elements *= dimension
            if elements > _INT64 or dimension > _INT64:
                raise reader.malformed(f"tensor {name!r} has an impossible shape")
        if (shape[0] if shape else 1) % block:
            raise reader.malformed(f"tensor {name!r}: rows of {shape[:1]} elements are not whole {dtype} blocks")
        length = elements // block * block_bytes
        if offset % alignment or offset + length > reader.size:
            raise reader.malformed(f"tensor {name!r} lies outside the file or unaligned, at {offset}")
        return Tensor(name, dtype, shape[::-1], offset, length)

    def _array(self, key: str) -> tuple[Any, ...] | LongArray:
        type_, count = struct.unpack("<IQ", self._reader.take(12))
        if type_ == _ARRAY:
            raise self._reader.malformed(f"{key} is an array of arrays, which no known model has")
        if type_ not in _VALUE_NAMES:
            raise self._reader.malformed(f"{key} has the unknown value type {type_}")
        keep = key == self._whole or count <= KEPT
        if type_ == _STRING:
            self._array_strings_left -= count
            if self._array_strings_left < 0:
                raise self._reader.malformed(f"more than {MAX_ARRAY_STRINGS} strings in arrays, with {key}")
            if keep:
                return tuple(self._string(key) for _ in range(count))
            self._reader.skip_strings(count, MAX_STRING)
        else:
            scalar = _SCALARS[type_]
            if keep:
                self._charge(key, count * (scalar.size + OVERHEAD))
                raw = self._reader.take(count * scalar.size)
                return tuple(self._checked(key, type_, item) for (item,) in scalar.iter_unpack(raw))
            self._reader.skip(count * scalar.size)
        return LongArray(_VALUE_NAMES[type_], count)

    def _value(self, key: str, type_: int) -> Any:
        if type_ == _STRING:
            return self._string(key)
        scalar = _SCALARS.get(type_)
        if scalar is None:
            raise self._reader.malformed(f"{key} has the unknown value type {type_}")
        return self._checked(key, type_, scalar.unpack(self._reader.take(scalar.size))[0])

    def _checked(self, key: str, type_: int, item: Any) -> Any:
        if type_ != _BOOL:
            return item
        if item > 1:
            raise self._reader.malformed(f"{key} has a boolean that is neither 0 nor 1")
        return bool(item)

    def _string(self, what: str, longest: int = MAX_STRING) -> str:
        (length,) = struct.unpack("<Q", self._reader.take(8))
        if length > longest:
            raise self._reader.malformed(f"{what} of {length} bytes is longer than {longest}")
        self._charge(what, length + OVERHEAD)
        try:
            return self._reader.take(length).decode()
        except UnicodeDecodeError:
            raise self._reader.malformed(f"{what} is not valid UTF-8") from None

    def _name(self, what: str) -> str:
        name = self._string(what, MAX_NAME)
        if not name or not name.isprintable():
            raise self._reader.malformed(f"not a {what}: {name[:80]!r}")
        return name

    def _charge(self, what: str, count: int) -> None:
        self._room -= count
        if self._room < 0:
            raise self._reader.malformed(f"its metadata is larger than this reader keeps, with {what}")

    def _u32(self) -> int:
        value: int = _SCALARS[_UINT32].unpack(self._reader.take(4))[0]
        return value


def _alignment(reader: Cursor, metadata: dict[str, Any], type_: int) -> int:
    value = metadata.get("general.alignment", 32)
    if type_ != _UINT32 or not 8 <= value <= 1 << 20 or value & (value - 1):
        raise reader.malformed(f"general.alignment must be a power of two from 8 on, not {value!r}")
    return int(value)


def _aligned(offset: int, alignment: int) -> int:
    return (offset + alignment - 1) // alignment * alignment
