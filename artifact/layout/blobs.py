"""The blobs of a layout: content that gets its name only after it has been checked.

A blob under way lies in ``ingest/`` under a lock its writer holds. If the writer dies, the next one goes on from the
bytes that are there, after hashing them again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from artifact.descriptor import Descriptor
from artifact.digest import Digest, Hasher
from artifact.errors import DigestMismatch, StorageFull, Unreachable
from artifact.layout.files import sync_folder
from artifact.progress import Progress
from artifact.source import Source

_BUFFER = 1024 * 1024
_ATTEMPTS = 5
"""How often a transfer that makes no headway at all is begun again."""


class Blobs:
    """The blob files of the layout at `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, digest: Digest) -> Path:
        """Where the blob is, or would be."""
        return self._root / "blobs" / digest.algorithm / digest.hex

    def write(self, descriptor: Descriptor, source: Source, progress: Progress) -> bool:
        """Store a blob; False if it was there. Raises `DigestMismatch`, and keeps nothing, if the bytes are not the
        ones the descriptor names; `StorageFull`, and keeps what arrived, if the disk is full."""
        name, final = str(descriptor.digest), self.path(descriptor.digest)
        if self._is_stored(final, descriptor.size):
            progress.finish(name, "exists")
            return False
        partial = self._root / "ingest" / f"{descriptor.digest.algorithm}-{descriptor.digest.hex}"
        for folder in (final.parent, partial.parent):
            folder.mkdir(parents=True, exist_ok=True)
        progress.begin(name, descriptor.size)
        try:
            with _exclusive(partial) as stream:
                if self._is_stored(final, descriptor.size):  # another process was faster
                    partial.unlink(missing_ok=True)
                    progress.finish(name, "exists")
                    return False
                _fill(stream, descriptor, source, progress, partial)
                os.fchmod(stream.fileno(), 0o444)
                os.fsync(stream.fileno())
                partial.replace(final)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull(
                    f"disk full while storing {descriptor.digest.short} ({descriptor.size:,} bytes) in {self._root}: "
                    "free some space and run the same command again, it goes on where it stopped"
                ) from None
            raise
        sync_folder(final.parent)
        progress.finish(name)
        return True

    @staticmethod
    def _is_stored(final: Path, size: int) -> bool:
        try:
            return final.stat().st_size == size
        except FileNotFoundError:
            return False


@contextmanager
def _exclusive(path: Path) -> Iterator[BinaryIO]:
    """Open `path` for writing with every other writer kept out."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "r+b", buffering=0) as stream:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            try:
                current = path.stat().st_ino == os.fstat(descriptor).st_ino
            except FileNotFoundError:
                current = False
            if current:  # else the file was finished or given up by its previous writer while we waited
                yield stream
                return


def _fill(stream: BinaryIO, descriptor: Descriptor, source: Source, progress: Progress, partial: Path) -> None:
    """Bring the file from what it holds to the whole blob, and check it."""
    resumed = _discard_excess(stream, descriptor.size)
    hasher = descriptor.digest.hasher()
    done = _rehash(stream, hasher, resumed)
    progress.advance(str(descriptor.digest), done)
    done = _receive(stream, hasher, done, descriptor, source, progress)
    if done == descriptor.size and hasher.hexdigest() == descriptor.digest.hex:
        return
    if resumed:  # the part left by an earlier attempt may be what is wrong: once more, from nothing
        stream.truncate(0)
        progress.advance(str(descriptor.digest), -done)
        _fill(stream, descriptor, source, progress, partial)
        return
    partial.unlink(missing_ok=True)
    raise DigestMismatch(
        f"the bytes received for {descriptor.digest} are other bytes: they are damaged or were tampered with, "
        "nothing was kept"
    )


def _discard_excess(stream: BinaryIO, size: int) -> int:
    length = os.fstat(stream.fileno()).st_size
    if length > size:
        stream.truncate(0)
        return 0
    return length


def _rehash(stream: BinaryIO, hasher: Hasher, length: int) -> int:
    buffer = memoryview(bytearray(_BUFFER))
    stream.seek(0)
    done = 0
    while done < length:
        count = stream.readinto(buffer[: min(_BUFFER, length - done)])  # type: ignore[attr-defined]
        if not count:
            break
        hasher.update(buffer[:count])
        done += count
    return done


def _receive(
    stream: BinaryIO, hasher: Hasher, done: int, descriptor: Descriptor, source: Source, progress: Progress
) -> int:
    """Append bytes from `source` until the blob has its size or the source ends; start over where a source breaks."""
    buffer = memoryview(bytearray(_BUFFER))
    name, failures = str(descriptor.digest), 0
    stream.seek(done)
    while done < descriptor.size:
        before = done
        try:
            with source(done) as reader:
                while done < descriptor.size:
                    count = reader.readinto(buffer[: min(_BUFFER, descriptor.size - done)])
                    if not count:
                        return done
                    _write_all(stream, buffer[:count])
                    hasher.update(buffer[:count])
                    done += count
                    progress.advance(name, count)
        except Unreachable:
            failures = failures + 1 if done == before else 1
            if failures >= _ATTEMPTS:
                raise
            time.sleep(min(0.2 * 2**failures, 5))
    return done


def _write_all(stream: BinaryIO, data: memoryview) -> None:
    while data:
        data = data[stream.write(data) :]
