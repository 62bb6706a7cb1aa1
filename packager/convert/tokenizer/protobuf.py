"""The fields of a protocol buffer message, as far as SentencePiece's files use the format.

Source: protobuf.dev, "Encoding". Groups do not occur in those files and are refused.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from artifact.errors import Malformed

_MAX_VARINT = 10

Value = int | float | memoryview


def fields(message: memoryview, what: str) -> Iterator[tuple[int, Value]]:
    """Each field's number and its value: an int, a float (32 bits) or the bytes of a string or message. `what` names
    the file in errors. Raises `Malformed`."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position, what)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, position = _varint(message, position, what)
            yield number, value
            continue
        if wire == 2:
            length, position = _varint(message, position, what)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise Malformed(f"{what} is no SentencePiece model: a field of unknown type at byte {position}")
        part = message[position : position + length]
        if len(part) != length:
            raise Malformed(f"{what} ends in the middle of a field")
        position += length
        yield number, struct.unpack("<f", part)[0] if wire == 5 else part


def _varint(message: memoryview, position: int, what: str) -> tuple[int, int]:
    value = 0
    for count, byte in enumerate(message[position : position + _MAX_VARINT]):
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, position + count + 1
    raise Malformed(f"{what} ends in the middle of a number, or has one of more than {_MAX_VARINT} bytes")
