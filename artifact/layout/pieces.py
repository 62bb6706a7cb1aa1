"""A large blob, fetched in pieces over as many connections as help, and hashed in order while it arrives.

The file has the blob's length from the start. Behind the blob's bytes stands a `Record` of what is there, so that a
transfer that was killed goes on without fetching or hashing anything twice. Whoever gives the proven blob its name cuts
it off.

Where the blob's tensor index is known, the pieces are its chunks: those that local files hold are copied from there,
and those that come slower than they could be checked are checked one by one. The digest of the whole decides in any
case, so that an index, or a local file, that lies costs time and nothing else.
"""

from __future__ import annotations

import errno
import heapq
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from artifact.descriptor import Descriptor
from artifact.digest import Hasher
from artifact.errors import Unreachable
from artifact.layout.chunks import ChunkCheck, WrongChunk
from artifact.layout.copying import Copier, Gone
from artifact.layout.files import write_all
from artifact.layout.handover import Handover
from artifact.layout.pace import Traffic
from artifact.layout.plan import Job, Part, Way, parts, pieces, plan
from artifact.layout.record import Record
from artifact.midstate import ResumableSha256, supported
from artifact.progress import Progress
from artifact.source import RangedSource
from artifact.tensorindex.format import Chunk
from artifact.tensorindex.indexed import IndexedSource
from artifact.writeback import begin_writing

PIECE = 16 * 1024 * 1024
"""Most bytes of a job: what is put down as done when it is there."""

_RUN = 8
"""Most jobs that one request asks for: each request costs the server, and a connection that has much left to do at the
end keeps the others waiting."""

NEAR = 256 * 1024
"""Bytes that are asked for though they are here, where that makes one request of two."""

CONNECTIONS = 4
"""Most connections that one blob uses."""

_BUFFER = 1024 * 1024
"""Bytes a connection reads, and the hash takes, at a time: with less, threads wake each other more than they work."""

_HANDED = 8
"""Buffers that may wait for the hash, which reads what else there is from the file."""

_CALM = 0.5
"""Seconds for which no connection may have waited for the hash before there is one more."""

_AHEAD = 32
"""Pieces that may be fetched ahead of the hash: what it reads should still be in the page cache."""

_ATTEMPTS = 5
"""How often a piece that makes no headway at all is asked for again."""

_CHUNK_ATTEMPTS = 3
"""How often a chunk is asked for that arrives wrong."""

_PROVE_BELOW = 125_000_000
"""Bytes a second (a gigabit line) of all traffic below which every chunk is checked when it arrives, which costs little
at that rate. Where they come faster, chunks are looked at only if the digest of the whole is not right."""


@dataclass(frozen=True)
class Brought:
    """What a transfer made: the hexadecimal digest of the file, how many of its bytes did not come from the source but
    had been there or were copied from elsewhere, and the chunk that came wrong every time it was asked for."""

    digest: str
    reused: int = 0
    suspect: Chunk | None = None


def fetch_pieces(
    file: int,
    blob: Descriptor,
    source: RangedSource,
    progress: Progress,
    traffic: Traffic,
    only: Sequence[Part] | None = None,
) -> Brought:
    """Bring the open `file` from what it holds to the whole blob and a record of it, as part of the `traffic`.

    With `only` the file is whole but for these parts of what its index speaks of, which are asked for.
    Raises `NoRanges`, with nothing of use in the file; what the source raises, with a record of what arrived.
    """
    transfer = _Transfer(file, blob, source, progress, traffic, only)
    with traffic.transfer(), ThreadPoolExecutor(CONNECTIONS + 1, thread_name_prefix="fetch") as threads:
        return transfer.run(threads)


class _Transfer:
    """One blob on its way. Other threads do jobs; the calling thread hashes them in order, where it is not done by the
    thread that receives them because the processors have enough to do."""

    def __init__(
        self,
        file: int,
        blob: Descriptor,
        source: RangedSource,
        progress: Progress,
        traffic: Traffic,
        only: Sequence[Part] | None,
    ) -> None:
        self._file, self._size, self._name = file, blob.size, str(blob.digest)
        self._source, self._progress, self._traffic = source, progress, traffic
        self._index = source.file if isinstance(source, IndexedSource) else None
        self._hashing = threading.Lock()  # held by whoever moves the two next ones on
        self._hashed, self._hasher = 0, blob.digest.hasher()
        record = Record.read(file, blob.size, PIECE) if only is None else Record(PIECE, 0, None, frozenset())
        if blob.digest.algorithm == "sha256" and supported():
            self._hashed, self._hasher = _resumed(record)
        allocate(file, blob.size)  # before plans are made for a size that nothing has room for
        self._jobs = self._plan(record, only)
        self._filled = [job.end - job.start if job.way is Way.HERE else 0 for job in self._jobs]
        self._remote = [index for index, job in enumerate(self._jobs) if job.way is Way.REMOTE]  # a heap
        self._local = [index for index, job in enumerate(self._jobs) if job.way is Way.LOCAL]  # another
        self._reused, self._saved = sum(self._filled), self._hashed
        self._always_prove = only is not None
        self._suspect: Chunk | None = None
        self._connections = 0  # that were opened, besides those for what was not in local files after all
        self._writing = threading.Lock()  # a file takes one write at a time: who waits for it should sleep, not spin
        self._handover = Handover(self._hashed, _HANDED, _BUFFER)
        self._changed = threading.Condition()
        self._awaited = 0  # up to where the calling thread waits for bytes to be hashed
        self._held_up = -_CALM  # when a connection last waited for the hash
        self._failure: BaseException | None = None
        self._ended = False
        self._save()

    def _plan(self, record: Record, only: Sequence[Part] | None) -> list[Job]:
        given = parts(self._index) if self._index is not None else pieces(self._size, PIECE)
        if only is not None:
            wrong = {part.start for part in only}
            asked = (part._replace(hole=False) if part.start in wrong else part for part in given)
            return plan(asked, lambda part: part.start not in wrong, {}, PIECE, NEAR)
        local = self._source.local if isinstance(self._source, IndexedSource) else {}
        return plan(given, self._arrival(record), local, PIECE, NEAR)

    def _arrival(self, record: Record) -> Callable[[Part], bool]:
        hashed, done = self._hashed, record.done
        return lambda part: (
            part.end <= hashed or all(piece in done for piece in range(part.start // PIECE, -(-part.end // PIECE)))
        )

    def run(self, threads: ThreadPoolExecutor) -> Brought:
        """Do the jobs, and hash."""
        self._threads = threads
        self._progress.advance(self._name, self._reused)
        try:
            if self._local:
                threads.submit(self._working, self._copy_jobs)
            if self._remote:
                self._connect()
            buffer = memoryview(bytearray(_BUFFER))
            for index, job in enumerate(self._jobs):
                while self._hashed < job.end:
                    self._take(index, buffer)
                with self._changed:
                    self._changed.notify_all()  # to whoever may not be further ahead
                if self._hashed - self._saved >= PIECE:
                    with self._hashing:
                        self._save()
            with self._hashing:
                self._save()
            return Brought(self._hasher.hexdigest(), self._reused, self._suspect)
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _take(self, index: int, buffer: memoryview) -> None:
        """Wait for the next bytes, which are of a job, and hash them: as they were handed over, else from the file."""
        handed, end = self._wait(index)
        with self._hashing:
            if handed is not None:
                self._hasher.update(handed)
                self._hashed += len(handed)
                with self._changed:
                    self._handover.give_back(handed)
                    self._changed.notify_all()
            while self._hashed < end:
                count = os.preadv(self._file, [buffer[: min(len(buffer), end - self._hashed)]], self._hashed)
                if not count:
                    raise OSError(errno.EIO, "the file was cut short while it was written")
                self._hasher.update(buffer[:count])
                self._hashed += count

    def _wait(self, index: int) -> tuple[memoryview | None, int]:
        """Wait for bytes of a job to hash: a buffer with them, or how far they reach in the file; neither when others
        have hashed the job. Adds a connection where one more helps."""
        job = self._jobs[index]
        with self._changed:
            self._awaited = job.end
            while (handed := self._handover.take()) is None and self._hashed < job.end:
                if self._hashed < (end := job.start + self._filled[index]):
                    self._handover.skip_to(end)
                    return None, end
                if self._failure is not None:
                    raise self._failure
                self._changed.wait(1)
                if self._remote and self._connections < CONNECTIONS and self._wants_connection():
                    self._connect()
            return handed, 0

    def _save(self) -> None:
        """Write down what is there. Only the hashing thread does."""
        whole = set(range(-(-self._size // PIECE)))
        for job, filled in zip(self._jobs, self._filled, strict=True):
            if job.start + filled < job.end:
                whole.difference_update(range((job.start + filled) // PIECE, -(-job.end // PIECE)))
        midstate = self._hasher.state() if isinstance(self._hasher, ResumableSha256) else None
        hashed = self._hashed if midstate is not None else 0
        Record(PIECE, hashed, midstate, frozenset(whole)).write(self._file, self._size)
        self._saved = self._hashed

    def _wants_connection(self) -> bool:
        """Whether one connection more is worth it: it would only wait, too, where others wait for the hash."""
        return time.monotonic() - self._held_up >= _CALM and self._traffic.wants_connection()

    def _connect(self) -> None:
        """Open one connection more."""
        self._connections += 1
        self._threads.submit(self._working, self._fetch_jobs)

    def _working(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            with self._changed:
                self._failure = self._failure or error
                self._changed.notify_all()

    def _claim(self, heap: list[int], most: int = 1) -> list[int]:
        """The next jobs of those in `heap`, at most so many, each beginning where the one before ends; none when there
        are none, or the transfer has ended."""
        with self._changed:
            while not self._ended and self._failure is None and heap:
                if self._jobs[heap[0]].start <= self._hashed + _AHEAD * PIECE:
                    found = [heapq.heappop(heap)]
                    while heap and len(found) < most and self._jobs[heap[0]].start == self._jobs[found[-1]].end:
                        found.append(heapq.heappop(heap))
                    return found
                self._changed.wait(1)
            return []

    def _copy_jobs(self) -> None:
        """Copy what local files hold; what they do not hold after all is asked for."""
        with Copier(self._file) as copier:
            while found := self._claim(self._local):
                (index,) = found
                job = self._jobs[index]
                try:
                    for item in job.copies:
                        with self._writing:
                            copier.copy(item)
                    self._there([index], job.end, copied=job.end - job.start)
                    begin_writing(self._file, job.start, job.end - job.start)
                except Gone:
                    with self._changed:
                        self._jobs[index] = replace(job, way=Way.REMOTE, copies=())
                        heapq.heappush(self._remote, index)
                    self._threads.submit(self._working, self._fetch_jobs)

    def _there(self, run: Sequence[int], end: int, *, arrived: int = 0, copied: int = 0) -> None:
        """The bytes of jobs that follow on one another are there up to `end`."""
        with self._changed:
            for index in run:
                job = self._jobs[index]
                self._filled[index] = max(0, min(end, job.end) - job.start)
            self._reused += copied
            if not self._hashed == end < self._awaited:  # else there is nothing yet that anyone waits for
                self._changed.notify_all()
        self._traffic.add(arrived)
        self._progress.advance(self._name, arrived + copied)

    def _fetch_jobs(self) -> None:
        """What one connection does until nothing is left to claim."""
        buffer = memoryview(bytearray(_BUFFER))
        with self._traffic.connection():
            while run := self._claim(self._remote, self._most()):
                buffer = self._fetch(run, buffer)
                if self._leaves():
                    return

    def _leaves(self) -> bool:
        """Whether a connection ends that was tried and did not help: what it brings comes out of order, and has to be
        read again to be hashed. On a slow network it may still."""
        with self._changed:
            if self._connections < 2 or self._traffic.below(_PROVE_BELOW) or not self._traffic.spares_connection():
                return False
            self._connections -= 1
            return True

    def _most(self) -> int:
        """How many jobs the next request asks for: the first tells how fast they come, the last leave some to each
        connection."""
        return min(_RUN, len(self._remote) // (2 * CONNECTIONS)) if self._traffic.arrived else 1

    def _fetch(self, run: Sequence[int], buffer: memoryview) -> memoryview:
        """Ask for jobs that follow on one another, until they are there. Returns the buffer to go on with."""
        jobs, failures = [self._jobs[index] for index in run], 0
        position, end, wrong = jobs[0].start, jobs[-1].end, Counter[Chunk]()
        check = ChunkCheck([chunk for job in jobs for chunk in job.chunks], position) if self._proves() else None
        while position < end and not self._ended:
            try:
                with self._source.range(position, end - position) as reader:
                    while position < end and not self._ended:
                        most = min(len(buffer), end - position, (check and check.room) or len(buffer))
                        if not (count := reader.readinto(buffer[:most])):
                            raise Unreachable(f"{self._name}: the source ended before the blob did")
                        self._write(buffer[:count], position)
                        position, failures = position + count, 0
                        try:
                            if check is not None:
                                check.update(buffer[:count])
                            elif not self._hash(buffer[:count], position - count):
                                buffer = self._hand_over(buffer, count, position - count)
                        finally:
                            self._there(run, check.proven if check is not None else position, arrived=count)
            except Unreachable:
                failures += 1
                if failures >= _ATTEMPTS:
                    raise
                time.sleep(min(0.2 * 2**failures, 5))
            except WrongChunk as error:
                chunk = error.chunk
                wrong[chunk] += 1
                if wrong[chunk] < _CHUNK_ATTEMPTS:
                    self._progress.advance(self._name, chunk.offset - position)
                    position = chunk.offset
                else:  # this or the index is wrong, which the digest of the whole will tell
                    self._suspect, check = self._suspect or chunk, None
                    self._there(run, position)
        return buffer

    def _write(self, data: memoryview, position: int) -> None:
        with self._writing:
            write_all(self._file, data, position)
        before, after = position // PIECE, (position + len(data)) // PIECE
        if before != after:
            begin_writing(self._file, before * PIECE, (after - before) * PIECE)

    def _hash(self, data: memoryview, position: int) -> bool:
        """Hash what has been received, as long as it is in the processor's cache. Not if there are processors that
        could do it meanwhile, or it is not its turn."""
        if not self._traffic.crowded() or not self._hashing.acquire(blocking=False):
            return False
        try:
            if position != self._hashed:
                return False
            self._hasher.update(data)
            with self._changed:
                self._hashed += len(data)
                self._handover.skip_to(self._hashed)
            return True
        finally:
            self._hashing.release()

    def _hand_over(self, buffer: memoryview, count: int, position: int) -> memoryview:
        """Let the hash have what is in the file at `position`, if it can; returns the buffer to go on with."""
        with self._changed:
            while self._handover.full(position) and not self._ended:
                self._held_up = time.monotonic()
                self._changed.wait(1)
            return self._handover.offer(buffer, count, position)

    def _proves(self) -> bool:
        """Whether the chunks of the next job are checked when they arrive."""
        if self._index is None or self._suspect is not None:
            return False
        return self._always_prove or self._traffic.below(_PROVE_BELOW)


def _resumed(record: Record) -> tuple[int, Hasher]:
    if record.midstate is not None:
        try:
            return record.hashed, ResumableSha256.resume(record.midstate)
        except ValueError:
            pass
    return 0, ResumableSha256()


def allocate(file: int, size: int) -> None:
    """Reserve the blob's room, so that a full disk is met now and not after an hour. What is there is not forgotten."""
    before, record = os.fstat(file).st_size, Record.read(file, size, PIECE)
    try:
        try:
            os.posix_fallocate(file, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
            os.ftruncate(file, max(before, size))
        if before < size:  # a file of full length without a record would look as if all bytes had arrived
            record.write(file, size)
    except OSError:
        os.ftruncate(file, before)
        raise
