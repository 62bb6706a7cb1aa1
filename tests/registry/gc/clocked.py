"""A store whose clock the test moves, and writers that tell it when they write."""

from __future__ import annotations

import dataclasses
from typing import Any

from registry.store.protocol import Entry, ObjectStore, Unfinished


class Clock:
    """Seconds since the epoch, moved by hand."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


class ClockedStore:
    """Any store, with each object's time taken from a `Clock`."""

    def __init__(self, inner: ObjectStore, clock: Clock) -> None:
        self._inner = inner
        self._clock = clock
        self._written: dict[str, float] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def put(self, key: str, data: bytes, *, if_match: str | None = None, if_none_match: bool = False) -> str:
        etag = self._inner.put(key, data, if_match=if_match, if_none_match=if_none_match)
        self._written[key] = self._clock.now
        return etag

    def writer(self, key: str, **options: Any) -> Any:
        self._written[key] = self._clock.now
        return self._inner.writer(key, **options)

    def head(self, key: str) -> Entry:
        return self._timed(self._inner.head(key))

    def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> list[Entry]:
        # Short pages, so that something happens between two of them.
        found = self._inner.list(prefix, start_after=start_after, limit=min(limit, 7))
        return [self._timed(entry) for entry in found]

    def unfinished(self) -> list[Unfinished]:
        return [dataclasses.replace(item, begun=self._clock.now) for item in self._inner.unfinished()]

    def _timed(self, entry: Entry) -> Entry:
        return dataclasses.replace(entry, modified=self._written.get(entry.key, self._clock.now))
