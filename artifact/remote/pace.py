"""How fast a registry is asked: a rate that is kept, and the patience it asks for."""

from __future__ import annotations

import threading
import time


class Pace:
    """Lets at most `rate` requests a second go, evenly spaced; None for as fast as they come. Safe for several threads.

    `requests` is how many have gone.
    """

    def __init__(self, rate: float | None = None) -> None:
        self.requests = 0
        self._interval = 1 / rate if rate else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Return when the next request may go."""
        with self._lock:
            now = time.monotonic()
            at = max(now, self._next)
            self._next = at + self._interval
            self.requests += 1
        if at > now:
            time.sleep(at - now)

    def hold(self, seconds: float) -> None:
        """Let nothing go for so long: the server has asked for it."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)
