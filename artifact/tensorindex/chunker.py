"""Hashing the chunks of a weight file while it goes by on its way to somewhere else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from artifact.errors import Malformed
from artifact.source import Reader, Source
from artifact.tensorindex.cut import CHUNK_SIZE, JOIN_SIZE, Cut, cut
from artifact.tensorindex.format import Chunk
from artifact.weights.tensor import Tensor


class Chunker:
    """The chunks of one weight file of `size` bytes whose header, or whose writer, gives these tensors.

    It is fed the file's bytes in order, in buffers of any length, and keeps none of them: no copy is made, and the
    interpreter lock is released while it hashes (buffers of a few KiB or more), so that it can run beside a thread that
    hashes the whole file. `name` is the file's, for errors. One thread at a time may feed it.
    Raises `Malformed` if the tensors overlap or lie outside the file.
    """

    def __init__(
        self,
        tensors: Iterable[Tensor],
        size: int,
        *,
        name: str = "",
        chunk_size: int = CHUNK_SIZE,
        join_size: int = JOIN_SIZE,
    ) -> None:
        self._name, self._size = name, size
        self._cuts = cut(tuple(tensors), size, chunk_size=chunk_size, join_size=join_size, name=name)
        self._chunks: list[Chunk] = []
        self._position = 0
        self._current = next(self._cuts, None)
        self._hasher = hashlib.sha256()
        self._stained = False  # whether padding has a byte that is not zero

    @property
    def position(self) -> int:
        """How many bytes it was fed."""
        return self._position

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        """Take the next bytes of the file. Raises `Malformed` if they are more than the file has."""
        view = memoryview(data).cast("B")
        while view:
            if self._current is None:
                raise Malformed(f"{self._name}: changed while it was read: it has more than {self._size} bytes now")
            part = view[: self._current.end - self._position]
            self._hasher.update(part)
            if self._current.padding and not self._stained:
                self._stained = bytes(part).count(0) != len(part)
            self._position += len(part)
            view = view[len(part) :]
            if self._position == self._current.end:
                self._close(self._current)

    def finish(self) -> tuple[Chunk, ...]:
        """All chunks, in order. Raises `Malformed` if the file has not been fed to its end."""
        if self._current is not None:
            raise Malformed(f"{self._name}: changed while it was read: it ended at {self._position} of {self._size}")
        return tuple(self._chunks)

    def tap(self, source: Source) -> Source:
        """`source`, of which this chunker is fed whatever is read. Bytes read again (after a broken transfer) count
        once; a reader that jumps ahead of what was read so far raises `ValueError`."""

        @contextmanager
        def open_at(offset: int) -> Iterator[Reader]:
            with source(offset) as reader:
                yield _Tapped(self, reader, offset)

        return open_at

    def _close(self, part: Cut) -> None:
        if not part.padding or self._stained:
            self._chunks.append(Chunk(part.offset, part.length, self._hasher.digest()))
        self._current = next(self._cuts, None)
        self._hasher, self._stained = hashlib.sha256(), False


class _Tapped:
    def __init__(self, chunker: Chunker, reader: Reader, offset: int) -> None:
        self._chunker, self._reader, self._offset = chunker, reader, offset

    def readinto(self, buffer: memoryview, /) -> int:
        count = self._reader.readinto(buffer) or 0
        known = self._chunker.position - self._offset
        if known < 0:
            raise ValueError(f"bytes from {self._chunker.position} to {self._offset} were not read")
        if known < count:
            self._chunker.update(buffer[known:count])
        self._offset += count
        return count
