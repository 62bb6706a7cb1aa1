"""How fast transfers go together, and how many connections they are worth."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

_WINDOW = 0.4
"""Seconds over which a rate is measured."""

_GAIN = 1.1
"""How much faster everything together must have become for the last connections to have been worth it."""


class Traffic:
    """What arrives by all transfers together: side by side each is slow on a fast line. Safe for several threads.

    `arrived` is how many bytes have come since there were any.
    """

    def __init__(self) -> None:
        self.arrived = 0
        self._lock = threading.Lock()
        self._under_way = 0
        self._connections = 0
        self._pace = Pace()
        self._since = 0.0, 0

    @contextmanager
    def transfer(self) -> Iterator[None]:
        """A transfer is under way."""
        with self._lock:
            if not self._under_way:
                self._since = time.monotonic(), self.arrived
            self._under_way += 1
            self._pace = Pace()
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= 1

    @contextmanager
    def connection(self) -> Iterator[None]:
        """A transfer has one more connection."""
        with self._lock:
            self._connections += 1
        try:
            yield
        finally:
            with self._lock:
                self._connections -= 1

    def add(self, count: int) -> None:
        """So many bytes have come."""
        with self._lock:
            self.arrived += count

    def wants_connection(self) -> bool:
        """Whether one more connection is worth it. A transfer asks that would open it."""
        with self._lock:
            return self._pace.wants_another(time.monotonic(), self.arrived, self._connections)

    def spares_connection(self) -> bool:
        """Whether a connection may end, because it did not make the whole faster. A transfer asks that has several."""
        with self._lock:
            return self._pace.spares_one()

    def crowded(self) -> bool:
        """Whether there is a transfer under way for each processor."""
        return self._under_way >= processors()

    def below(self, rate: int) -> bool:
        """Whether less than `rate` bytes a second have come since there was nothing under way."""
        began, arrived = self._since
        return self.arrived - arrived < rate * (time.monotonic() - began)


class Pace:
    """Wants more connections for as long as the last ones made the whole a tenth faster: a quarter of those there are,
    and one at least. It is the whole that counts: where the line or the processors are busy, each further connection
    only takes from the others, and what it brings comes out of order."""

    def __init__(self) -> None:
        self._since: tuple[float, int] | None = None
        self._rate = 0.0
        self._more = self._added = 0
        self._over = False

    def wants_another(self, now: float, arrived: int, connections: int) -> bool:
        """Whether to open one more connection than the `connections` there are, at the time `now` in seconds, when
        `arrived` bytes have come over all of them since the beginning."""
        if self._more:
            self._more, self._added = self._more - 1, self._added + 1
            return True
        if self._over or not arrived:
            return False
        if self._since is None:
            self._since = now, arrived
        elapsed = now - self._since[0]
        if elapsed < _WINDOW:
            return False
        rate = (arrived - self._since[1]) / elapsed
        self._over = rate <= self._rate * _GAIN
        self._since, self._rate = (now, arrived), rate
        if self._over:
            return False
        self._more, self._added = max(1, connections // 4) - 1, 1
        return True

    def spares_one(self) -> bool:
        """Whether one of the last connections may end: together they did not pay. Counts it as ended."""
        if not (self._over and self._added):
            return False
        self._added -= 1
        return True


@cache
def processors() -> int:
    """Those that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not known on this system
        return os.cpu_count() or 1
