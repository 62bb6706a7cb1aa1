"""Holding the bytes of a file against the chunks that its tensor index names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

from artifact.layout.plan import Part, parts
from artifact.tensorindex.format import Chunk, FileIndex

_BUFFER = 1024 * 1024


class WrongChunk(Exception):
    """A chunk arrived whole, and is other bytes."""

    def __init__(self, chunk: Chunk) -> None:
        super().__init__(chunk)
        self.chunk = chunk


class ChunkCheck:
    """Checks bytes that arrive in order, from `position` on, against the chunks among them."""

    def __init__(self, chunks: Sequence[Chunk], position: int) -> None:
        self._left = [chunk for chunk in reversed(chunks) if chunk.offset >= position]
        self._hasher = hashlib.sha256()
        self._position = position

    @property
    def proven(self) -> int:
        """How far the bytes are what they have to be: to the end of a chunk, or to where no chunk says anything."""
        return min(self._position, self._left[-1].offset) if self._left else self._position

    @property
    def room(self) -> int | None:
        """How many bytes there are to the next border of a chunk; None if there is none."""
        if not self._left:
            return None
        chunk = self._left[-1]
        return (chunk.offset if self._position < chunk.offset else chunk.end) - self._position

    def update(self, data: memoryview) -> None:
        """Take the next bytes, at most `room` of them. Raises `WrongChunk`."""
        inside = bool(self._left) and self._position >= self._left[-1].offset
        self._position += len(data)
        if not inside:
            return
        self._hasher.update(data)
        chunk = self._left[-1]
        if self._position == chunk.end:
            found, self._hasher = self._hasher.digest(), hashlib.sha256()
            if found != chunk.digest:
                self._position = chunk.offset
                raise WrongChunk(chunk)
            self._left.pop()


def wrong_parts(file: int, index: FileIndex) -> list[Part]:
    """The parts of an open file that are not what the index says: chunks, and holes that are not zero."""
    buffer = memoryview(bytearray(_BUFFER))
    return [part for part in parts(index) if not _is_right(file, part, buffer)]


def _is_right(file: int, part: Part, buffer: memoryview) -> bool:
    hasher, position = hashlib.sha256(), part.start
    while position < part.end:
        count = os.preadv(file, [buffer[: min(len(buffer), part.end - position)]], position)
        if not count or (part.hole and bytes(buffer[:count]).count(0) != count):
            return False
        if not part.hole:
            hasher.update(buffer[:count])
        position += count
    return part.chunk is None or hasher.digest() == part.chunk.digest
