"""API keys: who may use an endpoint, what for, and how often. The file holds only hashes of them.

A key is ``stw_<id>_<secret>``. The secret has 256 random bits, so one SHA-256 of it is enough to keep it by.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from artifact.errors import InvalidInput, Malformed, NotFound
from artifact.layout.files import write_atomically

INFER, ADMIN = "infer", "admin"
"""The scopes: using models; and changing what is stored and served."""

SCOPES = (INFER, ADMIN)

KEYS_VARIABLE = "STOWAGE_KEYS"
"""The environment variable that names the key file where ``--keys`` does not."""

_KEY = re.compile(r"stw_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


@dataclass(frozen=True)
class Key:
    """One key as it is kept. `rate` is in requests a minute, 0 for no limit; `created` in seconds since the epoch."""

    id: str
    name: str
    hash: str
    scopes: tuple[str, ...]
    rate: int
    created: int


class KeyFile:
    """The keys in one file. Changes to the file count from the next request on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int, int] | None = None
        self._keys: dict[str, Key] = {}

    def keys(self) -> Sequence[Key]:
        """All keys, by name. Raises `Malformed` for a damaged file, `OSError` for one that cannot be read."""
        self._refresh()
        return sorted(self._keys.values(), key=lambda key: key.name)

    def _refresh(self) -> None:
        found = self.path.stat()
        seen = (found.st_mtime_ns, found.st_size, found.st_ino)
        if seen == self._seen:
            return
        try:
            rows = json.loads(self.path.read_bytes())["keys"]
            keys = [Key(**{**row, "scopes": tuple(row["scopes"])}) for row in rows]
        except (ValueError, KeyError, TypeError) as error:
            raise Malformed(f"{self.path} is no key file ({error}): make one with runner key add") from None
        self._keys = {key.id: key for key in keys}
        self._seen = seen

    def match(self, text: str) -> Key | None:
        """The key that `text` is, or None; None too when the file cannot be read."""
        parsed = _KEY.fullmatch(text)
        if parsed is None:
            return None
        try:
            self._refresh()
        except (OSError, Malformed):
            return None
        key = self._keys.get(parsed[1])
        return key if key is not None and hmac.compare_digest(key.hash, _hash(parsed[2])) else None

    def add(self, name: str, scopes: Sequence[str], rate: int = 0) -> str:
        """Make a key and return it; it cannot be shown again. Raises `InvalidInput`."""
        if not _NAME.fullmatch(name):
            raise InvalidInput(f"a key's name has letters, digits and . _ @ - in it, not {name[:80]!r}")
        unknown = [scope for scope in scopes if scope not in SCOPES]
        if unknown or not scopes:
            raise InvalidInput(f"a key's scopes are {' and '.join(SCOPES)}, not {', '.join(unknown) or 'none'}")
        id_, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        scopes = tuple(dict.fromkeys(scopes))
        with self._changing() as keys:
            if any(key.name == name for key in keys):
                raise InvalidInput(f"there is a key named {name} in {self.path}: remove it first (runner key remove)")
            self._write([*keys, Key(id_, name, _hash(secret), scopes, max(0, rate), int(time.time()))])
        return f"stw_{id_}_{secret}"

    def remove(self, name: str) -> Key:
        """Let a key count no more; the key that it was. Raises `NotFound`."""
        if not self.path.exists():
            raise NotFound(f"there is no key file {self.path}: make one with runner key add")
        with self._changing() as keys:
            found = next((key for key in keys if key.name == name), None)
            if found is None:
                raise NotFound(f"there is no key named {name} in {self.path}")
            self._write([key for key in keys if key.name != name])
        return found

    @contextmanager
    def _changing(self) -> Iterator[Sequence[Key]]:
        """The keys as they are, with everybody else who would change them kept out. The lock is on a file beside them,
        which stays, because theirs is replaced."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.path.with_name(f"{self.path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._seen = None  # what was read before the lock was held may be old, whatever the times say
            yield self.keys() if self.path.exists() else ()
        finally:
            os.close(lock)

    def _write(self, keys: Sequence[Key]) -> None:
        text = json.dumps({"keys": [asdict(key) for key in keys]}, indent=2)
        write_atomically(self.path, text.encode(), 0o600)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


class Bucket:
    """Lets `rate` requests a minute pass, and as many at once after a minute of silence."""

    def __init__(self, rate: int, now: float) -> None:
        self._rate = rate
        self._tokens = float(rate)
        self._at = now

    def take(self, now: float) -> float:
        """Take one request out; return 0, or the seconds until there is one to take."""
        self._tokens = min(float(self._rate), self._tokens + (now - self._at) * self._rate / 60)
        self._at = now
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) * 60 / self._rate
