"""A range of an S3 object as a stream that outlives its connection."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from botocore.exceptions import BotoCoreError
from urllib3.exceptions import HTTPError

from registry.store.protocol import StoreUnavailable

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer as Buffer

_TRIES = 3  # connections in a row that bring not one byte


class Body(Protocol):
    """What one answer brings. `readinto` returns 0 at the end of the answer and raises if it ends before it should."""

    def readinto(self, view: memoryview) -> int: ...

    def close(self) -> None: ...


class SdkBody:
    """The body of an answer that the SDK has received."""

    def __init__(self, body: Any) -> None:
        self._body = body

    def readinto(self, view: memoryview) -> int:
        data: bytes = self._body.read(len(view))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._body.close()


class ViewBody(io.RawIOBase):
    """What is to be sent, as a file, which is what the SDK reads without a copy of its own of the whole."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, room: Buffer) -> int:
        target = memoryview(room)
        part = self._view[self._at : self._at + len(target)]
        target[: len(part)] = part
        self._at += len(part)
        return len(part)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._view)}[whence]
        self._at = max(0, base + offset)
        return self._at


class S3Stream:
    """`length` bytes from `offset`. `open_` asks for a range and raises what `ObjectStore.read` raises. Where a
    connection breaks off, the rest is asked for: objects that are read in ranges are written once."""

    def __init__(self, open_: Callable[[int, int], Body], offset: int, length: int) -> None:
        self._open = open_
        self._offset = offset
        self._left = length
        self._failures = 0
        self._body: Body | None = open_(offset, length)

    def readinto(self, view: memoryview) -> int:
        while self._left and self._body is not None:
            try:
                count = self._body.readinto(view[: self._left])
            except (OSError, BotoCoreError, HTTPError) as error:
                self._take_up_again(error)
                continue
            self._offset += count
            self._left -= count
            if count:
                self._failures = 0
            return count
        return 0

    def _take_up_again(self, error: Exception) -> None:
        self.close()
        self._failures += 1
        if self._failures > _TRIES:
            raise StoreUnavailable(f"object store: {error}") from None
        self._body = self._open(self._offset, self._left)

    def read(self, count: int) -> bytes:
        data = bytearray(min(count, self._left))
        view, filled = memoryview(data), 0
        while filled < len(data) and (got := self.readinto(view[filled:])):
            filled += got
        return bytes(view[:filled])

    def descriptor(self) -> tuple[int, int] | None:
        return None

    def close(self) -> None:
        body, self._body = self._body, None
        if body is not None:
            body.close()
