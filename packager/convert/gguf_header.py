"""The head of a GGUF file, written: metadata in the order given, then the tensor table.

Source: ggml, docs/gguf.md, version 3. Tensor data is aligned to 32 bytes, the format's default.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from artifact.errors import Malformed
from artifact.weights import gguf

ALIGNMENT = 32
TENSOR_TYPES = {name: number for number, (name, _, _) in gguf.TENSOR_TYPES.items()}
FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}
"""`general.file_type` of a file whose matrices have this type (llama.cpp, enum llama_ftype)."""

QUANTIZATION_VERSION = 2

_MAGIC = struct.pack("<4sI", b"GGUF", 3)
_UINT16, _UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 2, 4, 5, 6, 7, 8, 9


@dataclass(frozen=True)
class TensorEntry:
    """One line of the tensor table. `shape` has the outermost dimension first; `length` is in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    length: int

    @property
    def padding(self) -> int:
        """Zero bytes that follow the tensor's own."""
        return -self.length % ALIGNMENT


class Metadata:
    """Key-value pairs, encoded as they are added. Raises `Malformed` for text that is not Unicode, and for a
    number that its type does not hold.

    It may begin with pairs that are `encoded` already, whose names are `keys`.
    """

    def __init__(self, encoded: bytes = b"", keys: Iterable[str] = ()) -> None:
        self._encoded = bytearray(encoded)
        self._keys = set(keys)

    def copy(self) -> Metadata:
        """The same pairs, to add others to."""
        return Metadata(bytes(self._encoded), self._keys)

    def uint16(self, key: str, value: int) -> None:
        self._add(key, _UINT16, _numbers(key, "H", value))

    def int32(self, key: str, value: int) -> None:
        self._add(key, _INT32, _numbers(key, "i", value))

    def uint32(self, key: str, value: int) -> None:
        self._add(key, _UINT32, _numbers(key, "I", value))

    def float32(self, key: str, value: float) -> None:
        self._add(key, _FLOAT32, _numbers(key, "f", value))

    def flag(self, key: str, value: bool) -> None:
        self._add(key, _BOOL, struct.pack("<?", value))

    def string(self, key: str, value: str) -> None:
        self._add(key, _STRING, _string(value))

    def strings(self, key: str, values: Sequence[str]) -> None:
        self._array(key, _STRING, len(values), b"".join(map(_string, values)))

    def int32s(self, key: str, values: Sequence[int]) -> None:
        self._array(key, _INT32, len(values), _numbers(key, "i", *values))

    def float32s(self, key: str, values: Sequence[float]) -> None:
        self._array(key, _FLOAT32, len(values), _numbers(key, "f", *values))

    def header(self, tensors: Iterable[TensorEntry]) -> bytes:
        """All bytes before the first tensor's, padding included."""
        table = bytearray()
        count = offset = 0
        for entry in tensors:
            table += _string(entry.name) + struct.pack("<I", len(entry.shape))
            table += struct.pack(f"<{len(entry.shape)}Q", *reversed(entry.shape))
            table += struct.pack("<IQ", TENSOR_TYPES[entry.dtype], offset)
            offset += entry.length + entry.padding
            count += 1
        head = _MAGIC + struct.pack("<QQ", count, len(self._keys)) + self._encoded + table
        return head + bytes(-len(head) % ALIGNMENT)

    def _array(self, key: str, kind: int, count: int, encoded: bytes) -> None:
        self._add(key, _ARRAY, struct.pack("<IQ", kind, count) + encoded)

    def _add(self, key: str, kind: int, encoded: bytes) -> None:
        assert key not in self._keys, f"{key} is written twice"
        self._keys.add(key)
        self._encoded += _string(key) + struct.pack("<I", kind) + encoded


def _numbers(key: str, form: str, *values: float) -> bytes:
    try:
        return struct.pack(f"<{len(values)}{form}", *values)
    except (struct.error, OverflowError):
        shown = ", ".join(map(str, values))
        raise Malformed(f"{key} cannot be {shown:.80}: numbers there have {struct.calcsize(form)} bytes") from None


def _string(text: str) -> bytes:
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        raise Malformed(f"text with half a character in it cannot be written to GGUF: {text!r:.80}") from None
    return struct.pack("<Q", len(raw)) + raw
