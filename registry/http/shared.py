"""Reads of small objects that requests share.

When a thousand nodes start the same model at once, each asks what the same tag means. A read that has not begun yet
answers all that wait for it: they pay for one, and none gets an answer older than its question, so nothing is cached
and nothing can be stale.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Generic, TypeVar

T = TypeVar("T")
_Results = list[tuple[str, T | None, Exception | None]]


class SharedReads(Generic[T]):
    """Calls of `read`, in threads: `lanes` at a time, `batch` keys one after the other in each, never two at once for
    the same key. A batch saves changes of thread where a read is short."""

    def __init__(self, read: Callable[[str], T], pool: Executor, lanes: int, batch: int) -> None:
        self._read = read
        self._pool = pool
        self._free = lanes
        self._batch = batch
        self._waiting: dict[str, list[asyncio.Future[T]]] = {}
        self._running: dict[str, list[asyncio.Future[T]]] = {}
        self._planned = False

    async def get(self, key: str) -> T:
        """What `read` returns for the key, or raises, if called now."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._waiting.setdefault(key, []).append(future)
        if not self._planned and self._free:
            self._planned = True
            loop.call_soon(self._start, loop)  # requests that arrived together are read together
        return await future

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._planned = False
        while self._free:
            ready = [key for key in self._waiting if key not in self._running][: self._batch]
            if not ready:
                return
            for key in ready:
                self._running[key] = self._waiting.pop(key)
            self._free -= 1
            self._pool.submit(self._work, loop, ready)

    def _work(self, loop: asyncio.AbstractEventLoop, ready: list[str]) -> None:
        results: _Results[T] = []
        for key in ready:
            try:
                results.append((key, self._read(key), None))
            except Exception as error:  # each waiting request raises it
                results.append((key, None, error))
        loop.call_soon_threadsafe(self._deliver, loop, results)

    def _deliver(self, loop: asyncio.AbstractEventLoop, results: _Results[T]) -> None:
        self._free += 1
        for key, value, error in results:
            for future in self._running.pop(key):
                if future.done():
                    continue
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(value)  # type: ignore[arg-type]
        self._start(loop)
