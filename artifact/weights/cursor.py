"""Reading a header front to back from something that can be opened at any offset: a file, or a ranged download.

Every read is checked against the stated size first, so that no number in a header can ask for more than is there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from artifact.errors import Malformed
from artifact.source import Reader, Source

_BUFFER = 256 * 1024
_READ_THROUGH = 1024 * 1024
"""Gaps up to this many bytes are read and dropped: cheaper than opening the source again."""

_U64 = struct.Struct("<Q")


class Cursor:
    """A position in `size` bytes of `source`, moving forward only. `name` stands in errors.

    Raises `Malformed` wherever the bytes end before what is asked for. Memory is one buffer.
    """

    def __init__(self, source: Source, size: int, name: str) -> None:
        self.name = name
        self.size = size
        self._source = source
        self._stack = ExitStack()
        self._stream: Reader | None = None
        self._stream_at = 0
        self._buffer = bytearray(_BUFFER)
        self._start = 0  # offset in the content of the buffer's first byte
        self._filled = 0
        self._at = 0  # position in the buffer; may lie behind its end after a skip

    @property
    def position(self) -> int:
        """Bytes from the start of the content."""
        return self._start + self._at

    def malformed(self, what: str) -> Malformed:
        """The error that says `what` is wrong with this file."""
        return Malformed(f"{self.name}: {what}")

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        self._need(count)
        if count <= _BUFFER:
            self._fill(count)
            piece = bytes(memoryview(self._buffer)[self._at : self._at + count])
            self._at += count
            return piece
        pieces = []
        while count:
            step = min(count, _BUFFER)
            pieces.append(self.take(step))
            count -= step
        return b"".join(pieces)

    def skip(self, count: int) -> None:
        """Go past the next `count` bytes without looking at them."""
        self._need(count)
        self._at += count

    def skip_strings(self, count: int, longest: int) -> None:
        """Go past `count` strings, each preceded by its length in a little-endian uint64, at most `longest` bytes
        (a buffer's size where that is more)."""
        unpack, length = _U64.unpack_from, 0
        while count:
            self._need(8)
            self._fill(8)
            at, last, buffer = self._at, self._filled - 8, self._buffer
            while count and at <= last:
                (length,) = unpack(buffer, at)
                at += 8 + length
                count -= 1
            # A length of a buffer or more leads out of it, so it is the last one seen: checking once is enough.
            if length > max(longest, _BUFFER):
                raise self.malformed(f"a string of {length} bytes, more than {longest}")
            if self._start + at > self.size:
                raise self.malformed("a string reaches behind the end of the file")
            self._at = at

    def close(self) -> None:
        """Close the stream."""
        self._stack.close()
        self._stream = None

    def _need(self, count: int) -> None:
        if count > self.size - self.position:
            raise self.malformed(f"ends early: {count} bytes wanted at offset {self.position} of {self.size}")

    def _fill(self, count: int) -> None:
        """Have `count` bytes (at most a buffer) at the position."""
        if self._at + count <= self._filled:
            return
        if self._at < self._filled:  # keep the unread rest
            rest = self._filled - self._at
            self._buffer[:rest] = self._buffer[self._at : self._filled]
        else:
            rest = 0
        self._start += self._at
        self._at, self._filled = 0, rest
        self._seek(self._start + rest)
        stream, view = self._stream, memoryview(self._buffer)
        assert stream is not None
        while self._filled < count:
            got = stream.readinto(view[self._filled :])
            if not got:
                raise self.malformed(f"ends at {self._stream_at} bytes, {self.size} were stated")
            self._filled += got
            self._stream_at += got

    def _seek(self, offset: int) -> None:
        if self._stream is not None and 0 <= offset - self._stream_at <= _READ_THROUGH:
            scratch = memoryview(self._buffer)[self._filled :]
            while self._stream_at < offset:
                got = self._stream.readinto(scratch[: offset - self._stream_at])
                if not got:
                    raise self.malformed(f"ends at {self._stream_at} bytes, {self.size} were stated")
                self._stream_at += got
        elif self._stream is None or offset != self._stream_at:
            self._stack.close()
            self._stream = self._stack.enter_context(self._source(offset))
            self._stream_at = offset


@contextmanager
def cursor(source: Source, size: int, name: str) -> Iterator[Cursor]:
    """A `Cursor` that is closed afterwards."""
    opened = Cursor(source, size, name)
    try:
        yield opened
    finally:
        opened.close()
