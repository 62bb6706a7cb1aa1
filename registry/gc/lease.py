"""One collector at a time, by compare-and-swap on one object.

The lease saves work and is not what makes collecting safe: everything the collector removes is removed by a condition
on the object itself, so that one which was paused past its lease does no harm.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from contextlib import suppress

from artifact.errors import StowageError
from registry.store.protocol import Conflict, Missing, ObjectStore

LEASE = "gc/lease"
SECONDS = 300
"""How long a lease holds without being renewed."""


class LeaseHeld(StowageError):
    """Another collector is at work, or has taken over."""

    code = "collector-running"


class Lease:
    """The right to collect over one store."""

    def __init__(self, store: ObjectStore, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._holder = secrets.token_hex(8)
        self._expires = 0.0
        self._etag = ""

    def acquire(self) -> None:
        """Take the lease if nobody holds it or its holder is gone. Raises `LeaseHeld`."""
        try:
            found = self._store.get(LEASE)
        except Missing:
            self._write(None)
            return
        if _expiry(found.data) > self._clock():
            raise LeaseHeld(f"another collector is at work on {self._store.place}: wait until it has ended")
        self._write(found.etag)

    def renew(self) -> None:
        """Keep the lease; cheap while it is fresh. Raises `LeaseHeld` if another collector has it."""
        if self._clock() > self._expires - SECONDS / 2:
            self._write(self._etag)

    def release(self) -> None:
        """Give the lease up."""
        with suppress(Conflict):
            self._store.delete(LEASE, if_match=self._etag)

    def _write(self, etag: str | None) -> None:
        expires = self._clock() + SECONDS
        value = json.dumps({"holder": self._holder, "expires": expires}).encode()
        try:
            self._etag = self._store.put(LEASE, value, if_match=etag, if_none_match=etag is None)
        except Conflict:
            raise LeaseHeld(f"another collector has begun on {self._store.place}") from None
        self._expires = expires


def _expiry(raw: bytes) -> float:
    """When a lease ends; one that cannot be read has ended."""
    try:
        return float(json.loads(raw)["expires"])
    except (ValueError, KeyError, TypeError):
        return 0.0
