"""Composing an upload: further bytes of a blob taken from ranges of blobs that the registry holds.

An extension of the distribution specification: a client that changes a few bytes of a large blob sends those bytes and
says where the others are. They are hashed like all others, and the closing digest decides.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from artifact.digest import Digest
from artifact.errors import InvalidInput, Malformed
from artifact.manifest import load_json
from artifact.reference import is_name
from registry.access.rights import Caller, Right
from registry.blobs import BlobRecord, Blobs
from registry.store.protocol import Missing, Stream
from registry.uploads import Ingest

MEDIA_TYPE = "application/vnd.dev.stowage.ranges.v1+json"
"""The Content-Type of a PATCH that names ranges instead of bringing bytes."""

HEADER = {"Stowage-Compose": "v1"}
"""How every answer about an upload says that it may be composed."""

MAX_BODY = 4 * 1024 * 1024
"""Most bytes of the document that names ranges."""

MAX_RANGES = 32_768
"""Most ranges in one request."""

MAX_SOURCES = 256
"""Most different blobs in one request."""

MAX_LENGTH = 4 * 1024**3
"""Most bytes that one request may have copied: a few bytes sent must not keep the registry busy for long."""

_LARGEST = 2**62
_BUFFER = 1024 * 1024
_MEMBERS = {"from", "repository", "offset", "length"}


@dataclass(frozen=True)
class Range:
    """`length` bytes from `offset` of a blob, as `repository` has it."""

    digest: Digest
    repository: str
    offset: int
    length: int


@dataclass(frozen=True)
class Piece:
    """A range of an object of the store."""

    key: str
    offset: int
    length: int


class UnknownSource(Missing):
    """A blob to compose from is not there, or not for this caller to read: which of them is not told."""


class OutOfRange(Malformed):
    """A range reaches beyond the end of its blob."""


def parse(raw: bytes, name: str) -> list[Range]:
    """The ranges a document names; the repository is `name` where it names none. Raises `Malformed`."""
    value = load_json(raw, "the list of ranges", MAX_BODY)
    items = value.get("ranges")
    if set(value) != {"ranges"} or not isinstance(items, list) or not items:
        raise Malformed('want {"ranges":[{"from":"sha256:...","offset":N,"length":N},...]}')
    if len(items) > MAX_RANGES:
        raise Malformed(f"more than {MAX_RANGES} ranges in one request: send them in several")
    found = [_range(item, name) for item in items]
    if len({(item.repository, item.digest) for item in found}) > MAX_SOURCES:
        raise Malformed(f"ranges of more than {MAX_SOURCES} blobs in one request: send them in several")
    if sum(item.length for item in found) > MAX_LENGTH:
        raise Malformed(f"ranges of more than {MAX_LENGTH} bytes in one request: send them in several")
    return found


def _range(item: Any, name: str) -> Range:
    if not isinstance(item, dict) or not {"from", "offset", "length"} <= set(item) <= _MEMBERS:
        raise Malformed("a range has the members from, offset, length, and possibly repository")
    repository = item.get("repository", name)
    if not isinstance(repository, str) or not is_name(repository):
        raise Malformed("a range names something that is no repository")
    try:
        digest = Digest.parse(item["from"]) if isinstance(item["from"], str) else None
    except InvalidInput as error:
        raise Malformed(str(error)) from None
    if digest is None:
        raise Malformed("the member from of a range is a digest")
    offset, length = item["offset"], item["length"]
    if type(offset) is not int or type(length) is not int or not 0 <= offset < _LARGEST or not 0 < length < _LARGEST:
        raise Malformed("offset and length of a range are whole numbers, and no range is empty")
    return Range(digest, repository, offset, length)


def resolve(ranges: Iterable[Range], blobs: Blobs, caller: Caller) -> list[Piece]:
    """Where the bytes of each range lie. The garbage collector's marks are taken off the blobs. Raises `OutOfRange`,
    and `UnknownSource` alike for what is not there and for what the caller may not pull (CVE-2024-39897)."""
    known: dict[tuple[str, Digest], BlobRecord] = {}
    pieces = []
    for item in ranges:
        place = item.repository, item.digest
        if place not in known:
            known[place] = _claim(item, blobs, caller)
        record = known[place]
        if item.offset + item.length > record.size:
            raise OutOfRange(
                f"{item.length} bytes from {item.offset} are not in {item.digest}, which has {record.size}"
            )
        pieces.append(Piece(record.data, item.offset, item.length))
    return pieces


def _claim(item: Range, blobs: Blobs, caller: Caller) -> BlobRecord:
    try:
        if caller.may(Right.PULL, item.repository):
            return blobs.claim(item.repository, item.digest)
    except Missing:
        pass
    raise UnknownSource(f"blob {item.digest} is not in {item.repository}")


class Composer:
    """Pieces on their way into an upload, step by step. The bytes are read once, to be hashed, while the store copies
    them by itself as far as it can."""

    def __init__(self, ingest: Ingest, pieces: Iterable[Piece]) -> None:
        self._ingest = ingest
        self._pieces = iter(pieces)
        self._piece = Piece("", 0, 0)
        self._stream: Stream | None = None
        self._buffer = memoryview(bytearray(_BUFFER))
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="compose")

    def step(self) -> int:
        """Append further bytes; how many, 0 at the end. Blocks. Raises `Missing` if they are gone."""
        if not self._piece.length:
            following = next(self._pieces, None)
            if following is None:
                return 0
            self._begin(following)
        by_write, by_copy = self._ingest.copyable(self._piece.length)
        count = min(by_write, _BUFFER)
        if count:
            self._read(count, write=True)
        else:
            count = by_copy
            copied = self._pool.submit(self._ingest.copy, self._piece.key, self._piece.offset, count)
            try:
                self._read(count, write=False)
            finally:
                copied.result()
        self._piece = Piece(self._piece.key, self._piece.offset + count, self._piece.length - count)
        return count

    def _begin(self, piece: Piece) -> None:
        if self._stream is not None:
            self._stream.close()
        self._piece, self._stream = piece, self._ingest.read(piece.key, piece.offset, piece.length)

    def _read(self, count: int, *, write: bool) -> None:
        assert self._stream is not None
        while count:
            got = self._stream.readinto(self._buffer[:count])
            if not got:
                raise Missing(f"object {self._piece.key} is shorter than its record")
            chunk = self._buffer[:got]
            self._ingest.hash([chunk])
            if write:
                self._ingest.write([chunk])
            count -= got

    def close(self) -> None:
        """Let go of what is read; the upload stays with whoever has it."""
        self._pool.shutdown(wait=True)
        if self._stream is not None:
            self._stream.close()
