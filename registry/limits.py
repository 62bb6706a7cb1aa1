"""How many requests one sender may make: a bucket of tokens for each, refilled at a fixed rate.

The buckets lie in memory that all processes of one server share, so that a sender gets its rate once, whichever of them
answers. They are not shared between hosts.
"""

from __future__ import annotations

import fcntl
import hashlib
import ipaddress
import mmap
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from artifact.errors import StowageError

_KEY = 16  # bytes of the secret by which senders are spread over the table
_SETS = 2048
_WAYS = 8  # buckets a sender may lie in; the one silent for longest makes room and starts afresh with a full bucket
_BUCKETS = _SETS * _WAYS
_SIZE = _KEY + 3 * 8 * _BUCKETS


class TooMany(StowageError):
    """A sender did something too often; `seconds` until it may try again."""

    code = "too-many"

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class Buckets:
    """A table of buckets: in the memory of this process, or in a file that `create` has made and that other processes
    have open too. Used from one thread of each."""

    def __init__(self, file: Path | None = None) -> None:
        self._descriptor = -1 if file is None else os.open(file, os.O_RDWR)
        memory = memoryview(mmap.mmap(self._descriptor, _SIZE))
        if file is None:
            memory[:_KEY] = secrets.token_bytes(_KEY)
        self._key = bytes(memory[:_KEY])
        column = 8 * _BUCKETS
        self._senders = memory[_KEY : _KEY + column].cast("Q")
        self._tokens = memory[_KEY + column : _KEY + 2 * column].cast("d")
        self._times = memory[_KEY + 2 * column :].cast("d")

    @staticmethod
    def create(file: Path) -> Path:
        """Make an empty table."""
        with file.open("wb") as stream:
            stream.write(secrets.token_bytes(_KEY))
            stream.truncate(_SIZE)
        return file

    @contextmanager
    def bucket(self, sender: str, full: float, now: float) -> Iterator[list[float]]:
        """The tokens in a sender's bucket, and when they were counted, as a list to be changed while no other process
        looks. A bucket nobody has touched is `full`."""
        digest = hashlib.blake2b(sender.encode("utf-8", "surrogatepass"), key=self._key, digest_size=8).digest()
        mark = int.from_bytes(digest, "little") or 1
        first = mark % _SETS * _WAYS
        if self._descriptor >= 0:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX, 1, first)
        try:
            slot = self._slot(mark, first)
            known = self._senders[slot] == mark
            state = [self._tokens[slot], self._times[slot]] if known else [full, now]
            yield state
            self._senders[slot] = mark
            self._tokens[slot], self._times[slot] = state
        finally:
            if self._descriptor >= 0:
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, first)

    def _slot(self, mark: int, first: int) -> int:
        ways = range(first, first + _WAYS)
        for slot in ways:
            if self._senders[slot] == mark:
                return slot
        return min(ways, key=lambda slot: self._times[slot] if self._senders[slot] else -1.0)


class RateLimits:
    """Limits for each sender. A rate of 0 limits nobody."""

    def __init__(
        self,
        per_second: float = 0.0,
        burst: int = 0,
        buckets: Buckets | None = None,
        clock: Callable[[], float] = time.monotonic,  # the same for all processes of a host
    ) -> None:
        self._rate = per_second
        self._burst = float(max(burst, 1))
        self._buckets = buckets or Buckets()
        self._clock = clock

    def wait(self, sender: str) -> float:
        """Count a request; return 0 if it may be answered, else after how many seconds the next one may."""
        if not self._rate:
            return 0.0
        now = self._clock()
        with self._buckets.bucket(sender, self._burst, now) as state:
            tokens = min(self._burst, state[0] + max(0.0, now - state[1]) * self._rate)
            missing = 1.0 - tokens
            state[:] = (tokens if missing > 0 else tokens - 1.0), now
        return max(0.0, missing / self._rate)

    def give_back(self, sender: str) -> None:
        """Take back that a request was counted."""
        if self._rate:
            now = self._clock()
            with self._buckets.bucket(sender, self._burst, now) as state:
                state[0] = min(self._burst, state[0] + 1.0)


class LoginLimits:
    """How many logins may fail from one address: `per_minute`, and as many at once. 0 limits nobody.

    A password costs much to check, so its check is counted before it begins and given back if it was right."""

    def __init__(self, per_minute: float = 0.0, buckets: Buckets | None = None) -> None:
        self._limits = RateLimits(per_minute / 60, round(per_minute), buckets)

    def attempt(self, address: str) -> None:
        """Count a login that is about to be checked, or that has failed. Raises `TooMany`."""
        wait = self._limits.wait(_sender(address))
        if wait:
            raise TooMany("too many logins from this address have failed", wait)

    def succeeded(self, address: str) -> None:
        """Take back an attempt: it was right."""
        self._limits.give_back(_sender(address))


def _sender(address: str) -> str:
    """Whose attempts count together: an IPv4 address, or an IPv6 network of /64, which is what one customer has."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return f"login {address}"
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return f"login {parsed.ipv4_mapped}"
        return f"login {ipaddress.ip_network((parsed, 64), strict=False)}"
    return f"login {parsed}"
