"""Where the bytes of a file are: on disk, in memory, in a repository already, or yet to be made."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import Malformed
from artifact.repository import Repository
from artifact.source import Source, bytes_source, file_source

_SMALL = 4 * 1024 * 1024
"""Files and blobs up to this many bytes are kept once they are read or fetched."""


class Content(Protocol):
    """The bytes of one file."""

    @property
    def size(self) -> int:
        """How many bytes there are."""

    @property
    def source(self) -> Source:
        """The bytes, from any offset, as often as wanted."""

    @property
    def digest(self) -> Digest | None:
        """The digest they are held under; None if nobody has looked yet."""


@dataclass(frozen=True)
class OnDisk:
    """A file, as the disk described it when it was first looked at. A small one is read once."""

    location: Path

    @property
    def size(self) -> int:
        return self.state[1]

    @property
    def source(self) -> Source:
        return bytes_source(self.data) if self.size <= _SMALL else file_source(self.location)

    @property
    def digest(self) -> None:
        return None

    @cached_property
    def data(self) -> bytes:
        """All of it, read once. Raises `Malformed` if there are other bytes than there were."""
        with self.location.open("rb") as stream:
            data = stream.read(self.size + 1)
        if len(data) != self.size:
            raise Malformed(f"{self.location}: changed while it was packed; pack again when it is still")
        return data

    @cached_property
    def state(self) -> tuple[int, int, int]:
        """What changes when the file is written to or replaced."""
        return self._look()

    def check_unchanged(self) -> None:
        """Raise `Malformed` if the file was written to since it was first looked at."""
        if not self.location.exists() or self._look() != self.state:
            raise Malformed(f"{self.location}: changed while it was packed; pack again when it is still")

    def _look(self) -> tuple[int, int, int]:
        found = self.location.stat()
        return found.st_ino, found.st_size, found.st_mtime_ns


@dataclass(frozen=True)
class InMemory:
    """Bytes that no file of the source holds by themselves."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def source(self) -> Source:
        return bytes_source(self.data)

    @property
    def digest(self) -> None:
        return None


@dataclass(frozen=True)
class Stored:
    """A blob of a repository. A small one is fetched once, and checked; of a large one what is read is not checked."""

    repository: Repository
    blob: Descriptor

    @property
    def size(self) -> int:
        return self.blob.size

    @property
    def source(self) -> Source:
        if self.size <= _SMALL:
            return bytes_source(self.data)
        return lambda offset: self.repository.open_blob(self.blob, offset)

    @cached_property
    def data(self) -> bytes:
        """All of it. Raises `DigestMismatch` if the repository holds other bytes than it says."""
        return self.repository.read_blob(self.blob, self.size)

    @property
    def digest(self) -> Digest:
        return self.blob.digest


@dataclass(frozen=True)
class Made:
    """Bytes that are made while they are read, as a conversion's."""

    size: int
    source: Source

    @property
    def digest(self) -> None:
        return None


def read(content: Content, limit: int, name: str) -> bytes:
    """All bytes of a small file; `name` stands in errors. Raises `Malformed` if it is larger than `limit` bytes, and
    `DigestMismatch` if a repository holds other bytes than it says."""
    if content.size > limit:
        raise Malformed(f"{name} is larger than {limit} bytes")
    if isinstance(content, Stored) or (isinstance(content, OnDisk) and content.size <= _SMALL):
        return content.data
    data = head(content, content.size + 1)
    if len(data) != content.size:
        raise Malformed(f"{name}: changed while it was packed; pack again when it is still")
    return data


def head(content: Content, count: int) -> bytes:
    """The first `count` bytes, or all if there are fewer."""
    buffer, filled = bytearray(count), 0
    with content.source(0) as reader:
        while filled < count and (got := reader.readinto(memoryview(buffer)[filled:])):
            filled += got
    return bytes(buffer[:filled])
