"""Several pieces of work side by side, of which the first failure stops the rest."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

from artifact.errors import StowageError
from artifact.source import RangedSource, Reader, Source
from artifact.tensorindex.indexed import IndexedSource

Result = TypeVar("Result")


class Stopped(StowageError):
    """Other work failed, so this is not needed any more."""


def run_all(work: Sequence[Callable[[threading.Event], Result]], concurrency: int) -> list[Result]:
    """Do all of `work` in at most `concurrency` threads, begun in order, and return the results in order.

    Each is handed an event that is set when another has failed, or the caller was interrupted; it should then raise
    `Stopped`. Raises the first failure that is more than that.
    """
    stop = threading.Event()
    pool = ThreadPoolExecutor(max_workers=max(1, concurrency), thread_name_prefix="parallel")
    try:
        running = [pool.submit(item, stop) for item in work]
        done, _ = wait(running, return_when=FIRST_EXCEPTION)
        failures = [error for future in done if (error := future.exception()) is not None]
        if failures:
            raise next((error for error in failures if not isinstance(error, Stopped)), failures[0])
        return [future.result() for future in running]
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def stoppable(source: Source, stop: threading.Event) -> Source:
    """`source`, whose readers raise `Stopped` once `stop` is set: how a thread that copies is told to end."""
    if isinstance(source, IndexedSource):
        return replace(source, ranges=_StoppableRanges(source.ranges, stop))
    if isinstance(source, RangedSource):
        return _StoppableRanges(source, stop)

    @contextmanager
    def open_at(offset: int) -> Iterator[Reader]:
        with source(offset) as reader:
            yield _Stoppable(reader, stop)

    return open_at


class _StoppableRanges:
    def __init__(self, source: RangedSource, stop: threading.Event) -> None:
        self._source, self._stop = source, stop

    @contextmanager
    def __call__(self, offset: int) -> Iterator[Reader]:
        with self._source(offset) as reader:
            yield _Stoppable(reader, self._stop)

    @contextmanager
    def range(self, start: int, length: int) -> Iterator[Reader]:
        with self._source.range(start, length) as reader:
            yield _Stoppable(reader, self._stop)


class _Stoppable:
    def __init__(self, reader: Reader, stop: threading.Event) -> None:
        self._reader, self._stop = reader, stop

    def readinto(self, buffer: memoryview, /) -> int | None:
        if self._stop.is_set():
            raise Stopped("stopped")
        return self._reader.readinto(buffer)
