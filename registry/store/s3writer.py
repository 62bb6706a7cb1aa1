"""Writing large objects to S3: multipart uploads that another process can continue."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from registry.store.protocol import Conflict, Entry, Missing, Object, StoreUnavailable, TooLarge

PART = 16 * 1024 * 1024
"""Size of a part, in bytes; all parts but the last are equal, as some services demand."""

LARGEST_PART = 128 * 1024 * 1024
"""The largest parts that are made, in bytes: an upload holds three of them."""

LEAST_PART = 5 * 1024 * 1024
"""The smallest part that S3 takes, but for the last."""

MAX_PARTS = 10_000
"""Most parts an upload may have (S3 limits)."""

FLIGHTS = 2
"""Parts of an upload that are on their way at the same time, while the next is filled."""

COPIES = 8
"""Parts that the service copies by itself at the same time: they take no memory here."""


class Parts(Protocol):
    """What the writer needs of the store: small objects, and the requests of a multipart upload."""

    def get(self, key: str) -> Object: ...
    def head(self, key: str) -> Entry: ...
    def put(
        self, key: str, data: bytes | memoryview, *, if_match: str | None = None, if_none_match: bool = False
    ) -> str: ...
    def delete(self, key: str, *, if_match: str | None = None) -> None: ...

    def begin_parts(self, key: str) -> str:
        """Begin an upload; its id."""

    def put_part(self, key: str, upload: str, number: int, data: bytearray) -> str:
        """Send a part; its ETag."""

    def copy_part(self, key: str, upload: str, number: int, source: str, offset: int, length: int) -> str:
        """Make a part of a range of another object; its ETag. Raises `Missing`."""

    def complete_parts(self, key: str, upload: str, etags: Sequence[str]) -> None:
        """Make the parts an object. Raises `Missing`."""

    def abort_parts(self, key: str, upload: str) -> None:
        """Remove an upload with its parts."""

    def background(self, function: Callable[[], str]) -> Future[str]:
        """Call a function in another thread."""


class S3Writer:
    """A multipart upload: `FLIGHTS` parts are on their way while the next is filled, so three parts of memory. The
    bytes after the last whole part lie in a scratch object between two requests. An object smaller than a part is put
    in one piece. What is copied from another object is copied in whole parts of the same size as all others."""

    def __init__(self, store: Parts, key: str, scratch: str, state: dict[str, Any], expected: int | None) -> None:
        self._store = store
        self._key = key
        self._scratch = scratch
        self._upload: str | None = state.get("upload")
        self._etags: list[str] = list(state.get("parts", ()))
        self._part_size: int = state.get("part_size") or part_size(expected)
        if expected is not None and expected > self._part_size * MAX_PARTS:
            raise self._too_large()
        self._sealed: bool = state.get("sealed", False)
        self._tail: str | None = state.get("tail")
        self._old_tail: str | None = None
        # A ring of buffers for the whole upload, the first being filled. Each grows to a part once, as bytes come: what
        # a client says of their number takes no memory. The system moves the pages of a buffer that grows, not bytes.
        self._buffers = _no_buffers()
        self._filled = 0
        self._flights: deque[Future[str]] = deque()
        if self._tail:
            self.write([store.get(self._tail).data])

    def write(self, chunks: Sequence[bytes | memoryview]) -> None:
        for chunk in chunks:
            view = memoryview(chunk)
            while view:
                count = min(len(view), self._part_size - self._filled)
                self._buffers[0][self._filled : self._filled + count] = view[:count]
                self._filled += count
                view = view[count:]
                if self._filled == self._part_size:
                    self._send_part()

    def _content(self) -> memoryview:
        return memoryview(self._buffers[0])[: self._filled]

    def _send_part(self) -> None:
        self._land(FLIGHTS - 1)
        upload, number = self._next_part()
        data = self._buffers[0]
        del data[self._filled :]  # the last part is cut where it lies, not copied
        self._buffers.rotate(-1)  # parts land in order: the next buffer's has
        self._filled = 0
        self._flights.append(self._store.background(lambda: self._store.put_part(self._key, upload, number, data)))

    def _next_part(self) -> tuple[str, int]:
        """The upload, and the number of the part that comes next."""
        if self._upload is None:
            self._upload = self._store.begin_parts(self._key)
        number = len(self._etags) + len(self._flights) + 1
        if number > MAX_PARTS:
            raise self._too_large()
        return self._upload, number

    def _too_large(self) -> TooLarge:
        most = f"{MAX_PARTS} parts of {self._part_size} bytes"
        if self._part_size < LARGEST_PART:
            return TooLarge(f"the blob is larger than {most}: begin anew with a request that has its Content-Length")
        return TooLarge(f"the blob is larger than {most}, the most that this registry's storage takes")

    def copyable(self, length: int) -> tuple[int, int]:
        lead = -self._filled % self._part_size
        return (lead, self._part_size) if length - lead >= self._part_size else (length, 0)

    def copy(self, key: str, offset: int, length: int) -> None:
        for start in range(offset, offset + length, self._part_size):
            self._land(COPIES - 1)
            upload, number = self._next_part()
            copied = partial(self._store.copy_part, self._key, upload, number, key, start, self._part_size)
            self._flights.append(self._store.background(copied))

    def _land(self, left: int = 0) -> None:
        """Wait until no more than `left` parts are in flight."""
        while len(self._flights) > left:
            self._etags.append(self._flights.popleft().result())

    def _state(self) -> dict[str, Any]:
        return {
            "upload": self._upload, "parts": self._etags, "part_size": self._part_size,
            "tail": self._tail, "sealed": self._sealed,
        }  # fmt: skip

    @property
    def loose(self) -> int:
        return self._filled

    def checkpoint(self) -> dict[str, Any]:
        self._land()
        # A fresh name each time: the state that was saved before must stay valid until the new one is saved.
        self._old_tail = self._tail
        self._tail = f"{self._scratch}tail-{secrets.token_hex(8)}" if self._filled else None
        if self._tail:
            with self._content() as content:  # a view that lived on would keep the buffer from being cut
                self._store.put(self._tail, content)
        return self._state()

    def saved(self) -> None:
        if self._old_tail is not None:
            with suppress(StoreUnavailable):  # it then goes with the upload
                self._store.delete(self._old_tail)
        self._old_tail = None

    def seal(self) -> dict[str, Any]:
        if self._upload is None:
            with self._content() as content:
                self._put_whole(content)
        elif self._filled:
            self._send_part()
        self._land()
        self._tail, self._sealed = None, True
        self._forget_buffers()
        return self._state()

    def _put_whole(self, data: memoryview) -> None:
        """Never over other bytes: a request that came first may have made them a blob."""
        try:
            self._store.put(self._key, data, if_none_match=True)
        except Conflict:
            if self._store.get(self._key).data != data:
                raise

    def complete(self) -> None:
        try:
            if self._upload is not None:
                self._store.complete_parts(self._key, self._upload, self._etags)
        except Missing:
            self._store.head(self._key)  # completed before, by a request whose answer was lost

    def close(self) -> None:
        while self._flights:
            self._flights.popleft().cancel()
        self._forget_buffers()

    def _forget_buffers(self) -> None:
        self._buffers, self._filled = _no_buffers(), 0

    def abort(self) -> None:
        while self._flights:
            self._flights.popleft().exception()
        if self._upload is not None:
            self._store.abort_parts(self._key, self._upload)
        self._store.delete(self._key)
        self.close()


def _no_buffers() -> deque[bytearray]:
    return deque(bytearray() for _ in range(FLIGHTS + 1))


def part_size(expected: int | None) -> int:
    """The size of parts for an object of `expected` bytes: 16 MiB, or up to 128 MiB where 10 000 of them would not
    do."""
    if expected is None or expected <= PART * MAX_PARTS:
        return PART
    mebibyte = 1024 * 1024
    return min(-(-expected // (MAX_PARTS * mebibyte)) * mebibyte, LARGEST_PART)
