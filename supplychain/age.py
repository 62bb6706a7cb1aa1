"""How old something may be: spans of time as people write them, and times against them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from supplychain.refusal import Reason
from supplychain.strictyaml import Value

_SPAN = re.compile(r"([1-9][0-9]{0,4})([mhd])")
_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}

SKEW = timedelta(minutes=10)
"""How far in the future a time may lie: clocks disagree."""


@dataclass(frozen=True)
class Age:
    """The most time that may have passed, with the words it was written in."""

    span: timedelta
    text: str

    def exceeded(self, time: datetime | None, now: datetime | None) -> tuple[Reason, str] | None:
        """Why something of `time` is not fresh at `now`; None if it is. What has no time is not."""
        if time is None:
            return Reason.NO_TIME, "nothing proves when it was made (a key signature has no trusted time)"
        if now is None or time > now + SKEW:
            return Reason.STALE, f"made at {time:%Y-%m-%dT%H:%M:%SZ}, which is not in the past"
        if now - time > self.span:
            return Reason.STALE, f"made at {time:%Y-%m-%dT%H:%M:%SZ}, more than {self.text} ago"
        return None

    def __str__(self) -> str:
        return self.text


def read_age(value: Value) -> Age:
    """Read a span of time: ``90d``, ``12h`` or ``30m``. Raises `InvalidInput`."""
    text = value.text()
    found = _SPAN.fullmatch(text)
    if found is None:
        value.fail(f"{value.what} is a number of days, hours or minutes: 90d, 12h, 30m")
    return Age(int(found[1]) * _UNITS[found[2]], text)
