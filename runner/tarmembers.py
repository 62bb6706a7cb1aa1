"""Tar archives read without trust: headers within bounds, plain files only, nothing is ever extracted by its name.

Python's own reader follows extension headers of any size and knows links and devices. This one gives the place of each
plain file's bytes, and refuses everything else (CVE-2026-50163). Sources: POSIX.1-2017 pax, "ustar Interchange Format";
GNU tar, base-256 numbers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from artifact.errors import Malformed, NotFound
from artifact.source import Reader, Source

MAX_MEMBERS = 100_000
"""Most entries of an archive."""

_BLOCK = 512
_MAX_EXTENSION = 64 * 1024
_PLAIN, _FOLDER, _PAX, _PAX_GLOBAL = (b"0", b"\0"), b"5", b"x", b"g"
_KINDS = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe"}


@dataclass(frozen=True)
class Member:
    """A plain file in an archive: its checked name, where its bytes begin, and how many there are."""

    name: str
    offset: int
    size: int


def read_members(path: Path) -> dict[str, Member]:
    """The plain files of an archive by name. Raises `NotFound`, `Malformed` for links, devices, names that are not
    relative and inside, names given twice, and archives that are cut short."""
    members: dict[str, Member] = {}
    try:
        with path.open("rb") as stream:
            for member in _members(stream, path):
                if member.name in members:
                    raise Malformed(f"{path}: {member.name!r} is in the archive twice")
                members[member.name] = member
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}") from None
    return members


def member_source(path: Path, member: Member) -> Source:
    """The bytes of a member."""

    @contextmanager
    def open_at(offset: int) -> Iterator[Reader]:
        with path.open("rb", buffering=0) as stream:
            stream.seek(member.offset + offset)
            yield _Bounded(stream, member.size - offset)

    return open_at


class _Bounded:
    def __init__(self, stream: BinaryIO, left: int) -> None:
        self._stream, self._left = stream, max(0, left)

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill some of `buffer`, with no byte beyond the member's end."""
        count: int = self._stream.readinto(buffer[: min(len(buffer), self._left)])  # type: ignore[attr-defined]
        self._left -= count
        return count


def _members(stream: BinaryIO, path: Path) -> Iterator[Member]:
    end = os.fstat(stream.fileno()).st_size
    extension: dict[str, str] = {}
    for _ in range(MAX_MEMBERS):
        header = stream.read(_BLOCK)
        if not header.strip(b"\0"):
            if len(header) < _BLOCK:
                raise Malformed(f"{path} is not a whole tar archive: it has no end")
            return
        if len(header) < _BLOCK or not _is_sound(header):
            raise Malformed(f"{path} is not a tar archive, or is damaged at byte {stream.tell() - len(header)}")
        kind = header[156:157]
        size = _number(header[124:136], path)
        if kind in (_PAX, _PAX_GLOBAL):
            found = _extension(stream, size, path)
            extension = found if kind == _PAX else extension
            continue
        name = _checked(extension.get("path") or _name(header), path)
        if "size" in extension:
            size = _decimal(extension["size"], path)
        extension = {}
        offset = stream.tell()
        if size < 0 or offset + size > end:
            raise Malformed(f"{path} is cut short: {name!r} goes beyond its end")
        if kind in _PLAIN:
            yield Member(name, offset, size)
        elif kind != _FOLDER:
            raise Malformed(f"{path}: {name!r} is {_KINDS.get(kind, 'no plain file')}: nothing was read")
        stream.seek(offset + (-(-size // _BLOCK)) * _BLOCK)
    raise Malformed(f"{path} has more than {MAX_MEMBERS} entries")


def _is_sound(header: bytes) -> bool:
    """Whether the header's checksum is right: the sum of its bytes with the checksum's own taken as spaces."""
    try:
        stated = int(header[148:156].strip(b" \0") or b"x", 8)
    except ValueError:
        return False
    return stated == sum(header[:148]) + 8 * 32 + sum(header[156:])


def _number(field: bytes, path: Path) -> int:
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        raise Malformed(f"{path}: a size in the archive is no number") from None


def _decimal(text: str, path: Path) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise Malformed(f"{path}: a size in the archive is no number")
    return int(text)


def _name(header: bytes) -> str:
    name, prefix = (field.split(b"\0", 1)[0] for field in (header[:100], header[345:500]))
    joined = prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name
    return joined.decode("utf-8", "surrogateescape")


def _extension(stream: BinaryIO, size: int, path: Path) -> dict[str, str]:
    """The records of a pax extension header: ``LENGTH KEY=VALUE\\n``."""
    if not 0 <= size <= _MAX_EXTENSION:
        raise Malformed(f"{path}: an extension header is larger than {_MAX_EXTENSION} bytes")
    data = stream.read(-(-size // _BLOCK) * _BLOCK)[:size]
    records: dict[str, str] = {}
    while data:
        length, space, _ = data.partition(b" ")
        if not space or not length.isdigit() or len(length) > 6 or not len(length) + 1 < int(length) <= len(data):
            raise Malformed(f"{path}: an extension header is damaged")
        key, _, value = data[len(length) + 1 : int(length)].rstrip(b"\n").partition(b"=")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        data = data[int(length) :]
    return records


def _checked(name: str, path: Path) -> str:
    """A name that is relative, normalised and inside. Raises `Malformed`."""
    parts = name.removeprefix("./").rstrip("/").split("/")
    if name in (".", "./"):
        return "."
    if name.startswith("/") or any(part in ("", ".", "..") for part in parts) or "\0" in name or "\\" in name:
        raise Malformed(f"{path}: the name {name[:80]!r} leads out of the archive: nothing was read")
    return "/".join(parts)
