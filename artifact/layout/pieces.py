"""A large blob, fetched in pieces over as many connections as help, and hashed in order while it arrives.

The file has the blob's length from the start. Behind the blob's bytes stands a `Record` of what is there, so that a
transfer that was killed goes on without fetching or hashing anything twice. It is cut off when the digest is proven.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from artifact.descriptor import Descriptor
from artifact.digest import Hasher
from artifact.errors import Unreachable
from artifact.layout.pace import Pace
from artifact.layout.record import Record
from artifact.midstate import ResumableSha256, supported
from artifact.progress import Progress
from artifact.source import RangedSource, Reader

PIECE = 16 * 1024 * 1024
"""Bytes asked for at a time."""

CONNECTIONS = 4
"""Most connections that one blob uses."""

_BUFFER = 1024 * 1024
"""Bytes a connection reads, and the hash takes, at a time."""

_AHEAD = 32
"""Pieces that may be fetched ahead of the hash: what it reads should still be in the page cache."""

_ATTEMPTS = 5
"""How often a piece that makes no headway at all is asked for again."""


def fetch_pieces(file: int, blob: Descriptor, source: RangedSource, progress: Progress) -> tuple[str, int]:
    """Bring the open `file` from what it holds to the whole blob, without its record.

    Returns the hexadecimal digest of the file, and how many bytes an earlier transfer had left.
    Raises `NoRanges`, with nothing of use in the file; what the source raises, with a record of what arrived.
    """
    transfer = _Transfer(file, blob, source, progress)
    left = transfer.present()
    with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="fetch") as threads:
        found = transfer.run(threads)
    os.ftruncate(file, blob.size)
    return found, left


class _Transfer:
    """One blob on its way. Fetching threads fill pieces; the calling thread hashes them in order."""

    def __init__(self, file: int, blob: Descriptor, source: RangedSource, progress: Progress) -> None:
        self._file, self._size, self._name = file, blob.size, str(blob.digest)
        self._source, self._progress = source, progress
        count = -(-blob.size // PIECE)
        record = Record.read(file, blob.size, PIECE)
        self._filled = [self._length(index) if index in record.done else 0 for index in range(count)]
        self._unclaimed = [index for index in reversed(range(count)) if index not in record.done]
        self._hashed, self._hasher = 0, blob.digest.hasher()
        if blob.digest.algorithm == "sha256" and supported():
            self._hashed, self._hasher = _resumed(record)
        self._arrived = 0
        self._pace = Pace(CONNECTIONS)
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
        self._ended = False
        _allocate(file, blob.size)
        self._save()

    def present(self) -> int:
        """Bytes that are there."""
        return sum(self._filled)

    def run(self, threads: ThreadPoolExecutor) -> str:
        """Fetch and hash what is missing; returns the digest in hexadecimal."""
        self._progress.advance(self._name, self.present())
        try:
            threads.submit(self._fetch_pieces)
            buffer = memoryview(bytearray(_BUFFER))
            while self._hashed < self._size:
                self._hash(self._wait(threads), buffer)
            return self._hasher.hexdigest()
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _wait(self, threads: ThreadPoolExecutor) -> int:
        """Wait for bytes to hash; returns how far they reach. Adds a connection where one more helps."""
        index = self._hashed // PIECE
        with self._changed:
            while self._hashed >= (end := index * PIECE + self._filled[index]):
                if self._failure is not None:
                    raise self._failure
                self._changed.wait(1)
                if self._unclaimed and self._pace.wants_another(time.monotonic(), self._arrived):
                    threads.submit(self._fetch_pieces)
            return end

    def _hash(self, end: int, buffer: memoryview) -> None:
        while self._hashed < end:
            count = os.preadv(self._file, [buffer[: min(len(buffer), end - self._hashed)]], self._hashed)
            if not count:
                raise OSError(errno.EIO, "the file was cut short while it was written")
            self._hasher.update(buffer[:count])
            self._hashed += count
        if self._hashed % PIECE == 0:
            self._save()

    def _save(self) -> None:
        """Write down what is there. Only the hashing thread does."""
        whole = frozenset(index for index, filled in enumerate(self._filled) if filled == self._length(index))
        midstate = self._hasher.state() if isinstance(self._hasher, ResumableSha256) else None
        hashed = self._hashed if midstate is not None else 0
        Record(PIECE, hashed, midstate, whole).write(self._file, self._size)

    def _fetch_pieces(self) -> None:
        """What one connection does until nothing is left to claim."""
        buffer = memoryview(bytearray(_BUFFER))
        try:
            while (index := self._claim()) is not None:
                self._fetch_piece(index, buffer)
        except BaseException as error:
            with self._changed:
                self._failure = self._failure or error
                self._changed.notify_all()

    def _claim(self) -> int | None:
        with self._changed:
            while not self._ended and self._failure is None and self._unclaimed:
                if self._unclaimed[-1] <= self._hashed // PIECE + _AHEAD:
                    return self._unclaimed.pop()
                self._changed.wait(1)
            return None

    def _fetch_piece(self, index: int, buffer: memoryview) -> None:
        failures = 0
        while (left := self._length(index) - self._filled[index]) and not self._ended:
            try:
                with self._source.range(index * PIECE + self._filled[index], left) as reader:
                    while self._take(reader, index, buffer):
                        failures = 0
            except Unreachable:
                failures += 1
                if failures >= _ATTEMPTS:
                    raise
                time.sleep(min(0.2 * 2**failures, 5))

    def _take(self, reader: Reader, index: int, buffer: memoryview) -> bool:
        """Move one buffer from `reader` to its place in the file. False when the piece is whole, or not wanted."""
        filled = self._filled[index]
        count = reader.readinto(buffer[: min(len(buffer), self._length(index) - filled)])
        if not count:
            return False
        _write_all(self._file, buffer[:count], index * PIECE + filled)
        self._progress.advance(self._name, count)
        with self._changed:
            self._filled[index] = filled + count
            self._arrived += count
            self._changed.notify_all()
            return not self._ended and self._filled[index] < self._length(index)

    def _length(self, index: int) -> int:
        return min(PIECE, self._size - index * PIECE)


def _resumed(record: Record) -> tuple[int, Hasher]:
    if record.midstate is not None:
        try:
            return record.hashed, ResumableSha256.resume(record.midstate)
        except ValueError:
            pass
    return 0, ResumableSha256()


def _allocate(file: int, size: int) -> None:
    """Reserve the blob's room, so that a full disk is met now and not after an hour."""
    before = os.fstat(file).st_size
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            os.ftruncate(file, before)  # a longer file would look as if bytes had arrived
            raise
        os.ftruncate(file, max(before, size))


def _write_all(file: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(file, data, offset)
        data, offset = data[count:], offset + count
