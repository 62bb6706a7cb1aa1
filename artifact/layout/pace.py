"""How many connections a transfer is worth."""

from __future__ import annotations

_WINDOW = 0.4
"""Seconds over which a rate is measured."""

_GAIN = 1.1
"""How much faster everything together must have become for the last connection to have been worth it."""


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
