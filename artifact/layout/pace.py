"""How fast transfers go together, and how many connections one of them is worth."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_WINDOW = 0.4
"""Seconds over which a rate is measured."""

_GAIN = 1.1
"""How much faster everything together must have become for the last connection to have been worth it."""


class Traffic:
    """What arrives by all transfers together: side by side each is slow on a fast line. Safe for several threads.

    `arrived` is how many bytes have come since there were any.
    """

    def __init__(self) -> None:
        self.arrived = 0
        self._lock = threading.Lock()
        self._under_way = 0
        self._since = 0.0, 0

    @contextmanager
    def transfer(self) -> Iterator[None]:
        """A transfer is under way."""
        with self._lock:
            if not self._under_way:
                self._since = time.monotonic(), self.arrived
            self._under_way += 1
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= 1

    def add(self, count: int) -> None:
        """So many bytes have come."""
        with self._lock:
            self.arrived += count

    def below(self, rate: int) -> bool:
        """Whether less than `rate` bytes a second have come since there was nothing under way."""
        began, arrived = self._since
        return self.arrived - arrived < rate * (time.monotonic() - began)


class Pace:
    """Begins with one connection, and wants one more for as long as the last one made the whole a tenth faster."""

    def __init__(self, most: int) -> None:
        self._left = most - 1
        self._since: tuple[float, int] | None = None
        self._rate = 0.0

    def wants_another(self, now: float, arrived: int) -> bool:
        """Whether to open one more connection, at the time `now` in seconds, when `arrived` bytes have come over all of
        them since the beginning."""
        if not self._left or not arrived:
            return False
        if self._since is None:
            self._since = now, arrived
        elapsed = now - self._since[0]
        if elapsed < _WINDOW:
            return False
        rate = (arrived - self._since[1]) / elapsed
        worthwhile = rate > self._rate * _GAIN
        self._since, self._rate = (now, arrived), rate
        self._left = self._left - 1 if worthwhile else 0
        return worthwhile
