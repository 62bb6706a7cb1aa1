"""The blobs of a layout: content that gets its name only after it has been checked.

A blob under way lies in ``ingest/`` under a lock its writer holds. If the writer dies, the next one goes on from the
bytes that are there: a small blob's are hashed again, a large one's (`pieces`) are not.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import stat
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from artifact.descriptor import Descriptor
from artifact.digest import Digest, Hasher
from artifact.errors import DigestMismatch, Malformed, StorageFull, Unreachable
from artifact.layout.chunks import wrong_parts
from artifact.layout.files import name_complete, write_all
from artifact.layout.pace import Traffic
from artifact.layout.pieces import PIECE, Brought, fetch_pieces
from artifact.progress import Progress
from artifact.source import NoRanges, RangedSource, Reader, Source
from artifact.tensorindex.format import Chunk
from artifact.tensorindex.indexed import IndexedSource
from artifact.terminal import note

_BUFFER = 1024 * 1024
"""Bytes hashed and written at a time: two such buffers are all the memory a blob takes."""

IN_PIECES = 4 * PIECE
"""Bytes from which on a blob is fetched in pieces side by side, where its place has ranges."""

_ATTEMPTS = 5
"""How often a transfer that makes no headway at all is begun again."""

MAX_SIZE = 16 * 1024**4
"""Largest blob that is stored, in bytes: ext4 has no larger files. What a manifest states decides how much is planned
for, also where room is not really reserved and no disk is full."""


class Blobs:
    """The blob files of the layout at `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._traffic = Traffic()

    def path(self, digest: Digest) -> Path:
        """Where the blob is, or would be."""
        return self._root / "blobs" / digest.algorithm / digest.hex

    def partial(self, digest: Digest) -> Path:
        """Where the blob is while it arrives. Whoever writes there has it `exclusive`."""
        return self._root / "ingest" / f"{digest.algorithm}-{digest.hex}"

    def write(self, descriptor: Descriptor, source: Source, progress: Progress) -> bool:
        """Store a blob; False if it was there. Raises `DigestMismatch`, and keeps nothing, if the bytes are not the
        ones the descriptor names; `StorageFull`, and keeps what arrived, if the disk is full; `Malformed` for a size
        above `MAX_SIZE`."""
        if descriptor.size > MAX_SIZE:
            raise Malformed(
                f"{descriptor.digest} is said to have {descriptor.size:,} bytes, and a blob has at most {MAX_SIZE:,}: "
                "the manifest that says so is wrong; ask who published it"
            )
        name, final = str(descriptor.digest), self.path(descriptor.digest)
        if self._is_stored(final, descriptor.size):
            progress.finish(name, "exists")
            return False
        partial = self.partial(descriptor.digest)
        for folder in (final.parent, partial.parent):
            folder.mkdir(parents=True, exist_ok=True)
        progress.begin(name, descriptor.size)
        try:
            with exclusive(partial) as stream:
                if self._is_stored(final, descriptor.size):  # another process was faster
                    partial.unlink(missing_ok=True)
                    progress.finish(name, "exists")
                    return False
                _fill(stream, descriptor, source, progress, self._traffic, partial)
                name_complete(stream.fileno(), descriptor.size, partial, final)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull(
                    f"disk full while storing {descriptor.digest.short} ({descriptor.size:,} bytes) in {self._root}: "
                    "free some space and run the same command again, it goes on where it stopped"
                ) from None
            raise
        progress.finish(name)
        return True

    @staticmethod
    def _is_stored(final: Path, size: int) -> bool:
        try:
            return final.stat().st_size == size
        except FileNotFoundError:
            return False


@contextmanager
def exclusive(path: Path) -> Iterator[BinaryIO]:
    """Open `path` for writing with every other writer kept out."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except PermissionError:
            _make_writable(path)
            continue
        with os.fdopen(descriptor, "r+b", buffering=0) as stream:
            if _lock(descriptor, path):
                yield stream
                return


def _lock(descriptor: int, path: Path) -> bool:
    """Keep every other writer out of the open file. False if it was finished or given up by its previous writer while
    we waited, and is not `path` any more."""
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False


def _make_writable(path: Path) -> None:
    """Take up a file of ours whose writer died when it was complete and read-only, but not named yet. Raises
    `PermissionError` for every other that may not be written."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # it has its name by now
        return
    with os.fdopen(descriptor, "rb"):
        if _lock(descriptor, path):  # else its writer lives, and has named it
            if os.fstat(descriptor).st_mode & stat.S_IWUSR:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            os.fchmod(descriptor, 0o600)


def _fill(
    stream: BinaryIO, descriptor: Descriptor, source: Source, progress: Progress, traffic: Traffic, partial: Path
) -> None:
    """Bring the file from what it holds to the whole blob, and check it."""
    brought = _bring(stream, descriptor, source, progress, traffic)
    if brought.digest != descriptor.digest.hex and isinstance(source, IndexedSource):
        brought = _mend(stream, descriptor, source, progress, traffic, brought)
    if brought.digest != descriptor.digest.hex and brought.reused:
        # What was here, or the index it was chosen by, may be what is wrong: once more, from nothing.
        note(
            f"warning: what was here of {descriptor.digest.short} is not what it should be: all of it is fetched again"
        )
        progress.advance(str(descriptor.digest), -min(os.fstat(stream.fileno()).st_size, descriptor.size))
        stream.truncate(0)
        plain = source.ranges if isinstance(source, IndexedSource) else source
        brought = replace(_bring(stream, descriptor, plain, progress, traffic), suspect=brought.suspect)
    where = _where(brought.suspect, source)
    if brought.digest != descriptor.digest.hex:
        partial.unlink(missing_ok=True)
        raise DigestMismatch(
            f"the bytes received for {descriptor.digest} are other bytes{where}: they are damaged or were tampered "
            "with, nothing was kept"
        )
    if where:
        note(f"warning: the tensor index is wrong about {descriptor.digest.short}{where}; its digest is right")


def _where(suspect: Chunk | None, source: Source) -> str:
    """Which chunk is other than the index says, for people; empty for none."""
    if suspect is None or not isinstance(source, IndexedSource):
        return ""
    name = source.file.name_at(suspect.offset)
    return f" in chunk {suspect.offset}-{suspect.end - 1} ({name}) of {source.file.path}"


def _mend(
    stream: BinaryIO,
    descriptor: Descriptor,
    source: IndexedSource,
    progress: Progress,
    traffic: Traffic,
    brought: Brought,
) -> Brought:
    """Ask again for what is not as the index says, in a file that is not what its digest says."""
    wrong = wrong_parts(stream.fileno(), source.file)
    if not wrong:
        return brought
    size = sum(part.end - part.start for part in wrong)
    note(f"warning: {len(wrong)} parts of {descriptor.digest.short} are damaged: {size:,} bytes are fetched again")
    progress.advance(str(descriptor.digest), -descriptor.size)
    try:
        mended = fetch_pieces(stream.fileno(), descriptor, source, progress, traffic, only=wrong)
    except NoRanges:
        return replace(brought, reused=descriptor.size)
    return replace(mended, reused=brought.reused, suspect=mended.suspect or brought.suspect)


def _bring(stream: BinaryIO, descriptor: Descriptor, source: Source, progress: Progress, traffic: Traffic) -> Brought:
    """Complete the file."""
    if isinstance(source, IndexedSource) or (descriptor.size >= IN_PIECES and isinstance(source, RangedSource)):
        try:
            return fetch_pieces(stream.fileno(), descriptor, source, progress, traffic)
        except NoRanges as reason:
            note(f"warning: {reason}: a broken transfer has to read again what it had, and one connection is all")
            stream.truncate(0)
    return _bring_in_order(stream, descriptor, source, progress)


def _bring_in_order(stream: BinaryIO, descriptor: Descriptor, source: Source, progress: Progress) -> Brought:
    resumed = _discard_excess(stream, descriptor.size)
    hasher = descriptor.digest.hasher()
    done = _rehash(stream, hasher, resumed)
    progress.advance(str(descriptor.digest), done)
    done = _receive(stream, hasher, done, descriptor, source, progress)
    return Brought(hasher.hexdigest() if done == descriptor.size else "", resumed)


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
    failures = 0
    with _Absorber(stream, hasher, descriptor, progress) as absorber:
        while done < descriptor.size:
            before = done
            try:
                with source(done) as reader:
                    for count in absorber.absorb(reader, descriptor.size - done):
                        done += count
                return done
            except Unreachable:
                failures = failures + 1 if done == before else 1
                if failures >= _ATTEMPTS:
                    raise
                time.sleep(min(0.2 * 2**failures, 5))
    return done


class _Absorber:
    """Hashes and writes one buffer, each in a thread, while the next is filled."""

    def __init__(self, stream: BinaryIO, hasher: Hasher, descriptor: Descriptor, progress: Progress) -> None:
        self._file, self._size, self._hasher = stream.fileno(), descriptor.size, hasher
        self._name, self._progress = str(descriptor.digest), progress
        size = max(1, min(_BUFFER, descriptor.size))
        self._buffers = (memoryview(bytearray(size)), memoryview(bytearray(size)))
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="absorb")
        self._work: list[Future[None]] = []

    def __enter__(self) -> _Absorber:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=True)

    def absorb(self, reader: Reader, left: int) -> Iterator[int]:
        """Take at most the last `left` bytes of the blob from `reader`; yields the size of each piece, and does not
        return, nor let an exception of the reader out, before all that was yielded is hashed and written."""
        try:
            for buffer in itertools.cycle(self._buffers):
                filled, broken = _fill_buffer(reader, buffer[: min(len(buffer), left)])
                self._settle()
                if filled:
                    data = buffer[:filled]
                    self._work = [
                        self._threads.submit(write_all, self._file, data, self._size - left),
                        self._threads.submit(self._hasher.update, data),
                    ]
                    self._progress.advance(self._name, filled)
                    left -= filled
                    yield filled
                if broken is not None:
                    raise broken
                if not filled or not left:
                    return
        finally:
            self._settle()

    def _settle(self) -> None:
        work, self._work = self._work, []
        for future in work:
            future.result()


def _fill_buffer(reader: Reader, buffer: memoryview) -> tuple[int, Unreachable | None]:
    """Fill `buffer`; returns how many bytes came before the source ended, or broke."""
    filled = 0
    try:
        while filled < len(buffer) and (count := reader.readinto(buffer[filled:])):
            filled += count
    except Unreachable as error:
        return filled, error
    return filled, None
