"""Byte ranges: of what is asked for (RFC 9110, section 14) and of what is sent (distribution-spec, "Pushing a blob in
chunks")."""

from __future__ import annotations

import re

_RANGE = re.compile(r"bytes\s*=\s*(\d{0,19})\s*-\s*(\d{0,19})\s*", re.IGNORECASE)
_CHUNK = re.compile(r"(?:bytes[ =])?(\d{1,19})-(\d{1,19})(?:/(?:\d{1,19}|\*))?")


class Unsatisfiable(ValueError):
    """No byte of the content lies in the range."""


def requested(header: str | None, size: int) -> tuple[int, int] | None:
    """First byte and number of bytes that a Range header asks for, of content of `size` bytes.

    None means the whole: no header, another unit, several ranges, or something unreadable. Raises `Unsatisfiable`,
    also where the range ends before it begins.
    """
    found = _RANGE.fullmatch(header) if header else None
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        start, end = max(size - int(found[2]), 0), size - 1
    else:
        start = int(found[1])
        end = min(int(found[2]), size - 1) if found[2] else size - 1
        if found[2] and int(found[2]) < start:
            raise Unsatisfiable
    if start > end:
        raise Unsatisfiable
    return start, end - start + 1


def chunk(header: str) -> tuple[int, int]:
    """First byte and number of bytes of a chunk, from its Content-Range. Raises `ValueError` if it is none."""
    found = _CHUNK.fullmatch(header.strip())
    if found is None or int(found[2]) < int(found[1]):
        raise ValueError(f"not a chunk range: {header[:80]!r} (want START-END)")
    return int(found[1]), int(found[2]) - int(found[1]) + 1
