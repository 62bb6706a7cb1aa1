"""Events that wait to be delivered, kept in the object store: a process that is killed loses none it has promised.

::

    events/<owner>/<receiver>/<when>-<nonce>    the events of one request for one receiver
    events/<owner>/lease                        until when the owner answers for delivering what is beside it

An owner is one server process. It delivers what it has written itself and removes it then; a lease is written only for
what waits longer than a moment. What a process leaves behind when it is killed, another takes over as soon as the lease
has ended, by a conditional write to it. A process that was only paused may deliver the same event once more.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict

from registry import keys
from registry.events import Event
from registry.store.protocol import Conflict, Missing, ObjectStore

Written = tuple[str, float]
"""A key, and when it was written, in seconds since the epoch."""

_ABANDONED = 3600.0  # seconds after which a lease for nothing is removed


class Outbox:
    """The waiting events of one store, as one process sees them. `lease` in seconds. Safe for several threads."""

    def __init__(self, store: ObjectStore, lease: float = 30.0, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._lease = lease
        self._clock = clock
        self.owner = secrets.token_hex(8)
        self._leases: dict[str, str | None] = {self.owner: None}
        self._lock = threading.Lock()

    def new_key(self, receiver: str) -> str:
        """A key for events of this process; keys of one receiver are in the order of time."""
        return f"{keys.events(self.owner)}{receiver}/{time.time_ns():020d}-{secrets.token_hex(4)}"

    def write(self, key: str, events: Sequence[Event]) -> None:
        """Keep events, in place of what the key held."""
        self._store.put(key, json.dumps([asdict(event) for event in events], separators=(",", ":")).encode())

    def read(self, key: str) -> list[Event]:
        """The events under a key; none if they are gone, or damaged."""
        try:
            return [Event(**value) for value in json.loads(self._store.get(key).data)]
        except (Missing, ValueError, TypeError):
            return []

    def remove(self, key: str) -> None:
        """Forget events: they have been delivered, or given up."""
        self._store.delete(key)

    def renew(self) -> None:
        """Say that this process is still there to deliver what it answers for."""
        with self._lock:
            for owner, etag in list(self._leases.items()):
                try:
                    self._leases[owner] = self._write_lease(owner, etag)
                except Conflict:  # it was thought dead, and another has taken over
                    self._forget(owner)

    def rest(self) -> None:
        """Nothing waits: give the leases up, those taken over with what they were for."""
        with self._lock:
            for owner, etag in list(self._leases.items()):
                if etag is None:
                    continue
                with suppress(Conflict):
                    self._store.delete(keys.events_lease(owner), if_match=etag)
                del self._leases[owner]
            self._leases[self.owner] = None

    def leave(self) -> None:
        """This process ends while something waits: that may be taken over at once."""
        with self._lock:
            for owner, etag in self._leases.items():
                with suppress(Conflict):
                    self._write_lease(owner, etag, ended=True)

    def mine(self) -> tuple[list[Written], list[Written]]:
        """What this process answers for, after it has taken over what nobody does any more; and everything else."""
        found: dict[str, list[Written]] = {}
        leases: dict[str, float] = {}
        last = ""
        while page := self._store.list(keys.EVENTS, start_after=last):
            for entry in page:
                owner, _, rest = entry.key.removeprefix(keys.EVENTS).partition("/")
                if "/" in rest:
                    found.setdefault(owner, []).append((entry.key, entry.modified))
                else:
                    leases[owner] = entry.modified
            last = page[-1].key
        for owner, modified in leases.items():
            if owner not in found and owner not in self._leases and modified + _ABANDONED < self._clock():
                self._store.delete(keys.events_lease(owner))
        mine: list[Written] = []
        others: list[Written] = []
        for owner, entries in found.items():
            if self._answers_for(owner, min(modified for _, modified in entries)):
                mine += entries
            else:
                others += entries
        return mine, others

    def _answers_for(self, owner: str, oldest: float) -> bool:
        with self._lock:
            if owner in self._leases:
                return True
            try:
                found = self._store.get(keys.events_lease(owner))
            except Missing:
                etag = None  # a living owner writes its lease before its events are as old as this
                taken = oldest + 2 * self._lease > self._clock()
            else:
                etag = found.etag
                taken = _until(found.data) > self._clock()
            if taken:
                return False
            try:
                self._leases[owner] = self._write_lease(owner, etag)
            except Conflict:
                return False
            return True

    def _write_lease(self, owner: str, etag: str | None, ended: bool = False) -> str:
        until = 0.0 if ended else self._clock() + self._lease
        value = json.dumps({"holder": self.owner, "until": until}).encode()
        return self._store.put(keys.events_lease(owner), value, if_match=etag, if_none_match=etag is None)

    def _forget(self, owner: str) -> None:
        del self._leases[owner]
        if owner == self.owner:
            self.owner = secrets.token_hex(8)
            self._leases[self.owner] = None


def _until(raw: bytes) -> float:
    """When a lease ends; one that cannot be read has ended."""
    try:
        return float(json.loads(raw)["until"])
    except (ValueError, KeyError, TypeError):
        return 0.0
