"""Filling weight files chunk by chunk: what somebody waits for first, and nothing that was not proven.

A chunk is held in memory until its SHA-256 is that of the tensor index; only then is it written. So whoever reads the
files never finds a byte that the index does not vouch for, and `Filling.wait` says which are there. Beside it every
file is hashed from its beginning, and gets its name in the store when that is the digest of its blob. The record kept
behind a file's bytes is that of an ordinary pull, which goes on from it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import NoReturn

from artifact.descriptor import Descriptor
from artifact.errors import DigestMismatch, Malformed, StorageFull, StowageError, Unreachable
from artifact.layout.blobs import IN_PIECES, Blobs, exclusive
from artifact.layout.files import write_all
from artifact.layout.pace import Pace
from artifact.layout.pieces import CONNECTIONS, PIECE
from artifact.layout.repository import LayoutRepository
from artifact.progress import Quiet
from artifact.source import NoRanges, Reader
from runner.stream.incoming import File, Incoming, check_cover, read, read_from

RUN = PIECE
"""Most bytes asked for at a time: a run of neighbouring chunks, each of which is proven by itself."""

_ATTEMPTS = 5
"""How often a chunk that makes no headway is asked for again, and how often one that arrives wrong."""

_BUFFER = 1024 * 1024
_LONGEST_PAUSE = 5.0
_PATIENCE = 5.0


class _Wrong(Exception):
    """A chunk arrived with other bytes than it should have."""


class Filling:
    """Brings `incoming` into the store `layout`. Raises `StorageFull`; `Malformed` for an index that does not speak of
    every byte of a file."""

    def __init__(self, incoming: Sequence[Incoming], layout: LayoutRepository) -> None:
        self._layout, self._blobs = layout, Blobs(layout.root)
        self._opened = ExitStack()
        self._changed = threading.Condition()
        self._ended = threading.Event()
        self._failure: StowageError | None = None
        self._wants: list[tuple[File, int, int]] = []
        self._last: tuple[File, int] | None = None
        self._pace, self.arrived = Pace(), 0
        self._files: list[File] = []
        self._threads: list[threading.Thread] = []
        try:
            for item in incoming:
                self._open(item)
        except BaseException:
            self._opened.close()
            raise
        self._by_digest = {file.incoming.blob.digest: file for file in self._files}
        self._largest = max((chunk.length for file in self._files for chunk in file.chunks), default=0)

    def _open(self, item: Incoming) -> None:
        check_cover(item)
        partial, final = self._blobs.partial(item.blob.digest), self._blobs.path(item.blob.digest)
        partial.parent.mkdir(parents=True, exist_ok=True)
        stream = self._opened.enter_context(exclusive(partial))  # waits for a process that fetches the same
        if final.exists():  # it has
            partial.unlink(missing_ok=True)
            return
        try:
            self._files.append(File(item, stream))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise StorageFull(
                f"disk full: no room for {item.index.path} ({item.blob.size:,} bytes) in {self._layout.root}: free "
                "some space and run the same command again, it goes on where it stopped"
            ) from None

    def start(self) -> None:
        """Begin to fetch."""
        self._connect()

    def _connect(self) -> None:
        self._threads.append(threading.Thread(target=self._fetch, name="stream", daemon=True))
        self._threads[-1].start()

    def stop(self) -> None:
        """Fetch and hash no more. Everybody who waits gets an error."""
        self._ended.set()
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Let others write the files. `finish` must not be under way any more."""
        self.stop()
        deadline = time.monotonic() + _PATIENCE
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if not any(thread.is_alive() for thread in self._threads):
            self._opened.close()  # else one may still write; the files are let go when this process ends

    @property
    def failure(self) -> StowageError | None:
        """Why no more is handed out, if that is so."""
        return self._failure

    def wait(self, blob: Descriptor, start: int, end: int) -> None:
        """Return when the bytes of `blob` from `start` up to `end` are there and proven; they come before all others.
        Raises `StowageError` when they cannot be had, or anything else about these files went wrong."""
        if not 0 <= start <= end <= blob.size:
            raise Malformed(f"{blob.digest.short} has {blob.size} bytes, and {start} to {end} were asked for")
        file = self._by_digest.get(blob.digest)
        if file is None:
            return  # it was in the store already
        want = (file, *file.span(start, end))
        with self._changed:
            self._wants.append(want)
            self._changed.notify_all()
            try:
                while self._check() and not file.has(*want[1:]):
                    self._changed.wait(1)
            finally:
                self._wants.remove(want)
                self._last = file, want[2]

    def _check(self) -> bool:
        if self._failure is not None:
            raise self._failure
        if self._ended.is_set():
            raise StowageError("the runner is stopping")
        return True

    def fail(self, failure: StowageError) -> None:
        """Stop fetching, and hand nothing out any more, because of `failure`."""
        with self._changed:
            self._failure = self._failure or failure
            self._ended.set()
            self._changed.notify_all()

    def finish(self) -> None:
        """Return when every file has been hashed and has its name in the store. Raises `StowageError`; then nothing
        that was not proven has a name, and nothing is handed out any more."""
        try:
            for file in self._files:
                self._hash(file)
                self._name(file)
        except StowageError as error:
            self.fail(error)
            raise
        except OSError as error:
            failure = StowageError(f"cannot store {file.path}: {error.strerror or error}")
            self.fail(failure)
            raise failure from None
        finally:
            self._save()

    def _hash(self, file: File) -> None:
        buffer = memoryview(bytearray(_BUFFER))
        while file.hashed < file.size:
            with self._changed:
                while self._check() and file.hashed >= (end := file.frontier):
                    self._changed.wait(1)
                    opened = len(self._threads)
                    if opened < CONNECTIONS and self._pace.wants_another(time.monotonic(), self.arrived, opened):
                        self._connect()
            while file.hashed < end:
                count = os.preadv(file.file, [buffer[: min(len(buffer), end - file.hashed)]], file.hashed)
                if not count:
                    raise StowageError(f"{file.path} was cut short while it was written")
                file.hasher.update(buffer[:count])
                file.hashed += count
                if file.hashed // PIECE > (file.hashed - count) // PIECE:
                    self._save()

    def _save(self) -> None:
        for file in self._files:
            if not file.named and (file.saved != file.there.count(1) or file.hashed):
                file.save()

    def _name(self, file: File) -> None:
        blob = file.incoming.blob
        if file.hasher.hexdigest() != blob.digest.hex:
            self._blobs.partial(blob.digest).unlink(missing_ok=True)
            raise DigestMismatch(
                f"{file.path}: every chunk is the one that the tensor index names, but the whole file is not "
                f"{blob.digest.short}: index and manifest contradict each other, nothing was kept"
            )
        if blob.size < IN_PIECES:
            os.ftruncate(file.file, blob.size)  # a file of this size has no record
        else:
            file.save()
        file.named = True
        file.stream.close()
        self._layout.push_blob(blob, _Whole(file.path), Quiet())

    def _fetch(self) -> None:
        """What one connection does until nothing is left to fetch."""
        buffer = memoryview(bytearray(self._largest))
        try:
            while (claim := self._claim()) is not None:
                file, first, last = claim
                while first < last and file.near[first] and self._prove(file, first, buffer):
                    first += 1
                self._fetch_run(file, first, last, buffer)
        except StowageError as error:
            self.fail(error)
        except NoRanges as reason:
            self.fail(StowageError(f"{reason}, and --stream needs them: pull the model, or serve it without --stream"))
        except Exception as error:  # whoever waits must hear of it
            self.fail(StowageError(f"cannot fetch the model: {type(error).__name__}: {error}"))

    def _claim(self) -> tuple[File, int, int] | None:
        """A run of neighbouring chunks to fetch now: what somebody waits for, else what follows what was asked for
        last, else the first that is missing. None when all are taken."""
        with self._changed:
            found = None if self._ended.is_set() else self._next()
            if found is None:
                return None
            file, first = found
            last, size = first, 0
            while last < len(file.chunks) and file.free[last] and file.near[last] == file.near[first]:
                size += file.chunks[last].length
                if last > first and size > RUN:
                    break
                file.free[last] = 0
                last += 1
            return file, first, last

    def _next(self) -> tuple[File, int] | None:
        for file, first, last in self._wants:
            if (at := file.free.find(1, first, last)) >= 0:
                return file, at
        begin = 0
        if self._last is not None:
            file, first = self._last
            if (at := file.free.find(1, first)) >= 0:
                return file, at
            begin = self._files.index(file)
        for file in (*self._files[begin:], *self._files[:begin]):
            if (at := file.free.find(1)) >= 0:
                return file, at
        return None

    def _prove(self, file: File, at: int, buffer: memoryview) -> bool:
        """Take a chunk from what an earlier transfer left, or from another file. False if neither has it."""
        chunk = file.chunks[at]
        part = buffer[: chunk.length]
        if file.left[at]:
            if read(file.file, part, chunk.offset) and hashlib.sha256(part).digest() == chunk.digest:
                self._mark(file, at, 0)
                return True
            file.left[at] = 0
        place = file.incoming.local.get(chunk.digest)
        if place is None or not read_from(place, part) or hashlib.sha256(part).digest() != chunk.digest:
            return False
        write_all(file.file, part, chunk.offset)
        self._mark(file, at, 0)
        return True

    def _fetch_run(self, file: File, first: int, last: int, buffer: memoryview) -> None:
        failures, at = 0, first
        while at < last and not self._ended.is_set():
            start, end = file.chunks[at].offset, file.chunks[last - 1].end
            try:
                with file.incoming.source.range(start, end - start) as reader:
                    while at < last and not self._ended.is_set():
                        self._take(reader, file, at, buffer)
                        failures, at = 0, at + 1
            except Unreachable:
                failures += 1
                if failures >= _ATTEMPTS:
                    raise
                self._ended.wait(min(0.2 * 2**failures, _LONGEST_PAUSE))
            except _Wrong:
                failures += 1
                if failures >= _ATTEMPTS:
                    self._refuse(file, at)

    def _take(self, reader: Reader, file: File, at: int, buffer: memoryview) -> None:
        """Move one chunk from `reader` to its place in the file. Raises `_Wrong`, and then it is not written."""
        chunk = file.chunks[at]
        part, done = buffer[: chunk.length], 0
        while done < len(part):
            count = reader.readinto(part[done:])
            if not count:
                raise Unreachable(f"{file.path}: its source ended {len(part) - done} bytes early")
            done += count
        if hashlib.sha256(part).digest() != chunk.digest:
            raise _Wrong
        write_all(file.file, part, chunk.offset)
        self._mark(file, at, chunk.length)

    def _mark(self, file: File, at: int, arrived: int) -> None:
        with self._changed:
            file.there[at] = 1
            self.arrived += arrived
            self._changed.notify_all()

    def _refuse(self, file: File, at: int) -> NoReturn:
        chunk = file.chunks[at]
        where = file.incoming.index.name_at(chunk.offset)
        raise DigestMismatch(
            f"{file.path}: the {chunk.length:,} bytes from {chunk.offset:,} on ({where}) arrived {_ATTEMPTS} times, "
            "and are not those that the tensor index names: damaged or tampered with"
        )


class _Whole:
    """The source of a file that is whole: nothing is asked of it."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __call__(self, offset: int) -> AbstractContextManager[Reader]:
        raise self._changed()

    def range(self, start: int, length: int) -> AbstractContextManager[Reader]:
        raise self._changed()

    def _changed(self) -> DigestMismatch:
        return DigestMismatch(f"{self._path}: its bytes on disk changed after they had been proven")
