"""How many requests one sender may make: a bucket of tokens for each, refilled at a fixed rate."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

_SENDERS = 10_000  # buckets kept; who has been silent longest starts afresh with a full one


class RateLimits:
    """Limits for each sender within one server process. A rate of 0 limits nobody."""

    def __init__(self, per_second: float = 0.0, burst: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = per_second
        self._burst = float(max(burst, 1))
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, sender: str) -> float:
        """Count a request; return 0 if it may be answered, else after how many seconds the next one may."""
        if not self._rate:
            return 0.0
        now = self._clock()
        tokens, since = self._buckets.get(sender, (self._burst, now))
        tokens = min(self._burst, tokens + (now - since) * self._rate)
        missing = 1.0 - tokens
        self._buckets[sender] = (tokens if missing > 0 else tokens - 1.0, now)
        self._buckets.move_to_end(sender)
        if len(self._buckets) > _SENDERS:
            self._buckets.popitem(last=False)
        return max(0.0, missing / self._rate)
