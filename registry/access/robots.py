"""Robot accounts: for programs, made for a time, with rights of their own.

They lie in the object store (``robots/NAME``), so that every replica knows them and one that is removed is gone
everywhere. The secret is 256 random bits that are shown once, when the account is made; only its SHA-256 is kept, which
is enough for a secret nobody can guess and costs nothing to check.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from artifact.errors import InvalidInput, NotFound
from registry import keys
from registry.access.rights import Grant, Right
from registry.store.protocol import Conflict, Missing, ObjectStore, StoreUnavailable

PREFIX = "robot+"
"""How the user name of every robot begins."""

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_SECRET = "stowage_"  # noqa: S105  how secrets begin, so that scanners for leaked ones recognise them
_FRESH = 1.0  # seconds for which an account in a remote store is not read again: so long a removed one may get in
_REMEMBERED = 1024


@dataclass(frozen=True)
class Robot:
    """An account. Times are in seconds since the epoch."""

    name: str
    secret: str
    created: int
    expires: int
    grants: tuple[Grant, ...] = ()

    @property
    def principal(self) -> str:
        """The name it logs in by and rules know it by."""
        return PREFIX + self.name

    def expired(self, now: float) -> bool:
        """Whether its time is over."""
        return now >= self.expires

    def accepts(self, secret: str) -> bool:
        """Whether `secret` is its secret."""
        return hmac.compare_digest(_hash(secret), self.secret)

    def to_bytes(self) -> bytes:
        grants = [{"repositories": g.repositories, "rights": sorted(g.rights)} for g in self.grants]
        value = {"secret": self.secret, "created": self.created, "expires": self.expires, "grants": grants}
        return json.dumps(value, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, name: str, raw: bytes) -> Robot:
        """Read an account. Raises `StoreUnavailable` if it is damaged."""
        try:
            value = json.loads(raw)
            grants = tuple(
                Grant(tuple(map(str, item["repositories"])), frozenset(map(Right, item["rights"])))
                for item in value["grants"]
            )
            return cls(name, str(value["secret"]), int(value["created"]), int(value["expires"]), grants)
        except (ValueError, KeyError, TypeError):
            raise StoreUnavailable(f"robot account {name} in the store is damaged: make it again") from None


def checked_robot(name: str) -> str:
    """The name of a robot without its prefix. Raises `InvalidInput`."""
    bare = name.removeprefix(PREFIX)
    if not _NAME.fullmatch(bare):
        raise InvalidInput(f"not a robot's name: {name[:80]!r} (lower-case letters, digits and . _ - between them)")
    return bare


class Robots:
    """The robot accounts of one store. Safe for several threads."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._known: dict[str, tuple[float, Robot | None]] = {}  # until when each need not be read again
        self._lock = threading.Lock()

    def add(self, name: str, lifetime: int, grants: Sequence[Grant]) -> tuple[Robot, str]:
        """Make an account that lasts `lifetime` seconds; returns it and its secret. Raises `InvalidInput` if there is
        one of the name that has not expired."""
        bare, secret, now = checked_robot(name), _SECRET + secrets.token_urlsafe(32), int(time.time())
        robot = Robot(bare, _hash(secret), now, now + lifetime, tuple(grants))
        try:
            existing = self._store.get(keys.robot(bare))
        except Missing:
            existing = None
        if existing is not None and not Robot.from_bytes(bare, existing.data).expired(now):
            raise InvalidInput(f"there is a robot {bare}: remove it first, or choose another name")
        try:
            if existing is None:
                self._store.put(keys.robot(bare), robot.to_bytes(), if_none_match=True)
            else:
                self._store.put(keys.robot(bare), robot.to_bytes(), if_match=existing.etag)
        except Conflict:
            raise InvalidInput(f"somebody else has just made a robot {bare}") from None
        return robot, secret

    def remove(self, name: str) -> None:
        """Remove an account. Raises `NotFound`."""
        bare = checked_robot(name)
        try:
            self._store.get(keys.robot(bare))
        except Missing:
            raise NotFound(f"there is no robot {bare}") from None
        self._store.delete(keys.robot(bare))

    def list(self) -> list[Robot]:
        """All accounts, by name."""
        found, last = [], ""
        while page := self._store.list(keys.ROBOTS, start_after=last):
            for entry in page:
                name = entry.key.removeprefix(keys.ROBOTS)
                try:
                    found.append(Robot.from_bytes(name, self._store.get(entry.key).data))
                except Missing:
                    continue
            last = page[-1].key
        return found

    def find(self, principal: str) -> Robot | None:
        """The account that has this user name and has not expired, as it is now in a folder, and was at most a second
        ago in a remote store."""
        name = principal.removeprefix(PREFIX)
        if not principal.startswith(PREFIX) or not _NAME.fullmatch(name):
            return None
        with self._lock:
            until, robot = self._known.get(name, (0.0, None))
        if robot is None or until < time.monotonic():
            robot = self._read(name)
        return None if robot is None or robot.expired(time.time()) else robot

    def _read(self, name: str) -> Robot | None:
        until = time.monotonic() + _FRESH
        try:
            robot = Robot.from_bytes(name, self._store.get(keys.robot(name)).data)
        except Missing:
            robot = None
        if self._store.remote:
            with self._lock:
                if len(self._known) >= _REMEMBERED:
                    self._known.clear()
                self._known[name] = (until, robot)
        return robot


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
