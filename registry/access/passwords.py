"""Passwords: bcrypt, checked in threads of their own, and not again for every request of the same client."""

from __future__ import annotations

import asyncio
import hmac
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import bcrypt

from artifact.errors import InvalidInput

MAX_PASSWORD = 72
"""Longest password in UTF-8 bytes: bcrypt looks at no more, and one that is silently cut short is not the one that was
chosen."""

MIN_PASSWORD = 8
"""Shortest password that is taken, in characters."""

_ROUNDS = 12
_REMEMBERED = 4096
_SECONDS = 300.0

CHECKS = ThreadPoolExecutor(max_workers=4, thread_name_prefix="password")
"""Where passwords are checked: few threads, so that guessing keeps neither the event loop nor the store waiting."""


def hash_password(password: str) -> str:
    """The bcrypt hash of a password. Raises `InvalidInput` if it is too short or too long."""
    raw = password.encode()
    if len(raw) > MAX_PASSWORD:
        raise InvalidInput(f"password is longer than {MAX_PASSWORD} bytes: bcrypt would ignore the rest")
    if len(password) < MIN_PASSWORD or "\0" in password:
        raise InvalidInput(f"password must have at least {MIN_PASSWORD} characters and no null")
    return bcrypt.hashpw(raw, bcrypt.gensalt(_ROUNDS)).decode("ascii")


class PasswordChecker:
    """Compares passwords with bcrypt hashes. A password that has been right is recognised for a few minutes by a keyed
    hash of it, the name and the bcrypt hash, so that a new hash ends that at once. Nothing is remembered of wrong ones.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._right: dict[bytes, float] = {}
        self._running: dict[bytes, asyncio.Future[bool]] = {}
        self._lock = Lock()
        # What the passwords of unknown names are compared with, so that they take as long as those of known ones.
        self._nobody = bcrypt.hashpw(secrets.token_hex(16).encode(), bcrypt.gensalt(_ROUNDS))

    def remembers(self, name: str, password: str, hashed: str | None) -> bool:
        """Whether the password is known to be right without hashing it again."""
        if hashed is None:
            return False
        mark = self._mark(name, password, hashed)
        with self._lock:
            return self._right.get(mark, 0.0) > time.monotonic()

    async def is_right(self, name: str, password: str, hashed: str | None, attempt: Callable[[], None]) -> bool:
        """Whether a password is the one that was hashed; None stands for a user who does not exist. `attempt` is called
        before the costly comparison, and may raise to prevent it; requests that ask the same at once share one."""
        if self.remembers(name, password, hashed):
            return True
        mark = self._mark(name, password, hashed or "")
        running = self._running.get(mark)
        if running is None:
            attempt()
            loop = asyncio.get_running_loop()
            running = loop.run_in_executor(CHECKS, self.check, name, password, hashed)
            self._running[mark] = running
            running.add_done_callback(lambda _: self._running.pop(mark, None))
        return await asyncio.shield(running)

    def check(self, name: str, password: str, hashed: str | None) -> bool:
        """Whether a password is the one that was hashed; with None, after the same time, that it is not. Slow."""
        raw = password.encode("utf-8", "surrogatepass")
        if len(raw) > MAX_PASSWORD or b"\0" in raw:
            return False
        right = bcrypt.checkpw(raw, hashed.encode("ascii") if hashed is not None else self._nobody)
        if not right or hashed is None:
            return False
        with self._lock:
            now = time.monotonic()
            if len(self._right) >= _REMEMBERED:
                self._right = {mark: until for mark, until in self._right.items() if until > now}
                if len(self._right) >= _REMEMBERED:
                    self._right.clear()
            self._right[self._mark(name, password, hashed)] = now + _SECONDS
        return True

    def _mark(self, name: str, password: str, hashed: str) -> bytes:
        said = "\0".join((name, hashed, password)).encode("utf-8", "surrogatepass")
        return hmac.digest(self._key, said, "sha256")
