"""What the registry asks of an object store.

All calls block and are safe from several threads; the HTTP side makes them off its event loop. Keys are slash-separated
paths whose components do not begin with a dot. ETags are opaque and change whenever the bytes do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from artifact.errors import InvalidInput, NotFound, StowageError, Unreachable

_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:+=~@-]*(?:/[A-Za-z0-9_][A-Za-z0-9._:+=~@-]*)*")
MAX_KEY = 1024
"""Longest key, in bytes (the limit of S3)."""


class Missing(NotFound):
    """There is no object under the key."""


class Conflict(StowageError):
    """A condition did not hold: the object exists already, or is no longer the one that was read."""

    code = "conflict"


class Busy(Conflict):
    """Another writer holds the object, for as long as it takes."""

    code = "busy"


class TooLarge(StowageError):
    """The store has no object of that size."""

    code = "too-large"


class StoreUnavailable(Unreachable):
    """The store did not answer, or answered with an error of its own."""

    code = "store-unavailable"


@dataclass(frozen=True)
class Object:
    """A small object, whole."""

    data: bytes
    etag: str


@dataclass(frozen=True)
class Entry:
    """One object of a listing: its size in bytes, and when it was last written, in seconds since the epoch."""

    key: str
    size: int
    modified: float


@dataclass(frozen=True)
class Unfinished:
    """A write that was begun and has neither ended nor been given up: a temporary file, a multipart upload. `key` is
    empty where it is not known; `begun` is in seconds since the epoch."""

    key: str
    id: str
    begun: float


class Stream(Protocol):
    """A range of an object being read."""

    def read(self, count: int) -> bytes:
        """At most `count` further bytes; empty at the end of the range."""

    def readinto(self, view: memoryview) -> int:
        """Put further bytes into `view`, as many as there are at once; return how many, 0 at the end of the range."""

    def descriptor(self) -> tuple[int, int] | None:
        """A file descriptor and an offset from which the rest of the range can be read; None if it is no file."""

    def close(self) -> None:
        """Give up the stream; may be called twice."""


class Writer(Protocol):
    """Large data on its way into one object, continued by whichever process holds the last saved state."""

    def write(self, chunks: Sequence[bytes | memoryview]) -> None:
        """Append. Returns before the bytes are safe: `checkpoint` or `seal` makes them so. Raises `TooLarge` beyond
        what an object can have."""

    def copyable(self, length: int) -> tuple[int, int]:
        """How the first of the next `length` bytes, which another object has, are to come: so many by `write`, and
        then so many by one call of `copy`. What is left is to be asked about again."""

    def copy(self, key: str, offset: int, length: int) -> None:
        """Append a range of another object, which the store copies by itself, as `write` would. Raises `Missing` if
        the bytes are not there; it may do so only at the next `checkpoint` or `seal`."""

    @property
    def loose(self) -> int:
        """Bytes that a `checkpoint` would have to write aside now, and which are then written again."""

    def checkpoint(self) -> dict[str, Any]:
        """Make everything written so far durable. Returns the JSON state from which `ObjectStore.writer` continues."""

    def saved(self) -> None:
        """The state that `checkpoint` returned last has been saved: what only an earlier one needs may go."""

    def seal(self) -> dict[str, Any]:
        """Make everything durable when nothing more will follow. Returns the state from which `complete` can be
        called, here or in another process."""

    def complete(self) -> None:
        """Make the object readable under its key, after `seal`. Calling it again changes nothing."""

    def close(self) -> None:
        """Give up the writer; what was saved by `checkpoint` stays."""

    def abort(self) -> None:
        """Remove every byte written."""


class ObjectStore(Protocol):
    """Objects under keys, with compare-and-swap."""

    @property
    def place(self) -> str:
        """The store as a user names it."""

    @property
    def remote(self) -> bool:
        """Whether each call is a request over a network."""

    @property
    def chunk(self) -> int:
        """Bytes below which a piece of an upload is hardly worth a request of its own; 0 where any size is as good."""

    def get(self, key: str) -> Object:
        """A small object. Raises `Missing`."""

    def head(self, key: str) -> Entry:
        """Size and time of an object. Raises `Missing`."""

    def put(
        self, key: str, data: bytes | memoryview, *, if_match: str | None = None, if_none_match: bool = False
    ) -> str:
        """Store a small object, whole or not at all, and return its ETag. Raises `Conflict` if it is not the one
        `if_match` names, or if it exists and `if_none_match` is set."""

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        """Remove an object; one that is not there is no error. Raises `Conflict` if it is not the one `if_match`
        names."""

    def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> list[Entry]:
        """At most `limit` objects whose keys begin with `prefix`, from the first after `start_after`. The order is
        fixed, and by ASCII among the objects of one folder. Fewer than `limit` means that there are no more."""

    def read(self, key: str, offset: int, length: int) -> Stream:
        """A range of an object. Raises `Missing`."""

    def writer(
        self,
        key: str,
        *,
        scratch: str,
        offset: int = 0,
        state: dict[str, Any] | None = None,
        expected: int | None = None,
    ) -> Writer:
        """Begin an object, or continue one at `offset` from `state`. `scratch` is a prefix for leftovers between two
        requests; `expected` the final size in bytes where it is known. Raises `Busy` at once if another writer holds
        it, `Missing` if what `state` describes is gone, `TooLarge` if no object can have `expected` bytes."""

    def unfinished(self) -> Sequence[Unfinished]:
        """Every write that has not ended, those in progress included."""

    def drop_unfinished(self, item: Unfinished) -> None:
        """Remove what such a write has left; one that is gone is no error."""

    def presign(self, key: str, seconds: int) -> str | None:
        """A URL that lets anyone read the object for some seconds; None if the store has no such thing."""


def checked_key(key: str) -> str:
    """`key` if it is one. Raises `InvalidInput`: no key of the registry's own making is refused."""
    if len(key) > MAX_KEY or not _KEY.fullmatch(key):
        raise InvalidInput(f"not an object key: {key[:80]!r}")
    return key
