"""A pull under way, watched by a client: it goes on to its end whether the client stays or not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from runner.administration import Administration
from runner.deployment import Deployment
from runner.fleet import Fleet

_TICK = 0.2


@dataclass(frozen=True)
class Blob:
    """How much of one blob is there, in bytes."""

    digest: str
    total: int
    done: int = 0


class Moved:
    """Counts the bytes of a pull, told from several threads."""

    def __init__(self) -> None:
        self._blobs: dict[str, Blob] = {}
        self._lock = threading.Lock()

    @property
    def blobs(self) -> list[Blob]:
        """The blobs that have begun, in that order."""
        with self._lock:
            return list(self._blobs.values())

    def begin(self, name: str, total: int) -> None:
        """One more blob."""
        with self._lock:
            self._blobs[name] = Blob(name, total)

    def advance(self, name: str, count: int) -> None:
        """More bytes of it."""
        with self._lock:
            if blob := self._blobs.get(name):
                self._blobs[name] = replace(blob, done=blob.done + count)

    def finish(self, name: str, note: str = "") -> None:
        """All of it."""
        with self._lock:
            if blob := self._blobs.get(name):
                self._blobs[name] = replace(blob, done=blob.total)


class Pull:
    """The pull of `text`, which has begun."""

    def __init__(self, fleet: Fleet, administration: Administration, text: str) -> None:
        self._moved = Moved()
        self._made: Deployment | None = None
        self._work = fleet.spawn(self._create(administration, text))

    async def _create(self, administration: Administration, text: str) -> None:
        self._made = await administration.create(text, self._moved)

    async def changes(self) -> AsyncIterator[list[Blob]]:
        """All blobs, each time that more of them is there, until the pull has ended well or not."""
        shown: list[Blob] = []
        while True:
            await asyncio.wait({self._work}, timeout=_TICK)
            if (blobs := self._moved.blobs) != shown:
                shown = blobs
                yield blobs
            if self._work.done():
                return

    async def deployment(self) -> Deployment:
        """The model, once it is there. Raises `StowageError` and `OSError` as `Administration.create` does."""
        await self._work
        assert self._made is not None
        return self._made
