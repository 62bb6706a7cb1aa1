"""Digests of many files at once, and how threads that read them are stopped."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

from artifact.digest import Digest
from artifact.errors import Malformed, StowageError
from artifact.progress import Progress
from artifact.source import Reader, Source
from packager.checkpoint import PackFile

_BUFFER = 4 * 1024 * 1024


def digests_of(files: Sequence[PackFile], progress: Progress) -> list[Digest]:
    """The sha256 digest of each file, in order. Threads share the work: hashing and reading leave the interpreter.

    Raises `Malformed` if a file's size is not the one it had when it was opened: it is being written to.
    """
    stop = threading.Event()
    pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1), thread_name_prefix="hash")
    try:
        running = [pool.submit(_digest, file, progress, stop) for file in files]
        wait(running, return_when=FIRST_EXCEPTION)
        for future in running:
            if future.done() and (error := future.exception()) is not None and not isinstance(error, Stopped):
                raise error
        return [future.result() for future in running]
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


class Stopped(StowageError):
    """Other work failed, so this is not needed any more."""


def stoppable(source: Source, stop: threading.Event) -> Source:
    """`source`, whose readers raise `Stopped` once `stop` is set: how a thread that copies is told to end."""

    @contextmanager
    def open_at(offset: int) -> Iterator[Reader]:
        with source(offset) as reader:
            yield _Stoppable(reader, stop)

    return open_at


class _Stoppable:
    def __init__(self, reader: Reader, stop: threading.Event) -> None:
        self._reader, self._stop = reader, stop

    def readinto(self, buffer: memoryview, /) -> int | None:
        if self._stop.is_set():
            raise Stopped("stopped")
        return self._reader.readinto(buffer)


def _digest(file: PackFile, progress: Progress, stop: threading.Event) -> Digest:
    if isinstance(file.content, bytes):
        return Digest.of(file.content)
    return _digest_on_disk(file.path, file.content, file.size, progress, stop)


def _digest_on_disk(name: str, path: Path, size: int, progress: Progress, stop: threading.Event) -> Digest:
    hasher, buffer, done = hashlib.sha256(), bytearray(min(_BUFFER, size + 1)), 0
    view = memoryview(buffer)
    progress.begin(name, size)
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            if stop.is_set():
                raise Stopped("stopped")
            hasher.update(view[:count])
            done += count
            progress.advance(name, count)
    if done != size:
        raise Malformed(f"{path}: changed while it was packed ({size} bytes, then {done}); pack again when it is still")
    progress.finish(name, "hashed")
    return Digest.from_hasher("sha256", hasher)
