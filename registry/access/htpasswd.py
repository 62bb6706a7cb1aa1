"""An htpasswd file: ``NAME:HASH`` a line, bcrypt hashes only. Source: Apache httpd, htpasswd(1)."""

from __future__ import annotations

import re
import threading
from pathlib import Path

from artifact.errors import InvalidInput, NotFound
from artifact.layout.files import write_atomically

_HASH = re.compile(r"\$2[aby]\$(0[4-9]|1[0-7])\$[./A-Za-z0-9]{53}")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._@-]{0,126}[A-Za-z0-9])?")
RESERVED = ("anonymous", "authenticated", "oidc")
"""Names with a meaning of their own."""

_MAX_BYTES = 4 * 1024 * 1024


def checked_user(name: str) -> str:
    """`name` if a person may have it. Raises `InvalidInput`."""
    if not _NAME.fullmatch(name) or name in RESERVED:
        raise InvalidInput(f"not a user name: {name[:80]!r} (letters, digits, and . _ @ - between them)")
    return name


def read(path: Path) -> dict[str, str]:
    """The hash of every user. Raises `InvalidInput` that names the line: a file that is half understood is not used."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}") from None
    if len(raw) > _MAX_BYTES:
        raise InvalidInput(f"{path} is larger than {_MAX_BYTES} bytes")
    users: dict[str, str] = {}
    for number, line in enumerate(raw.decode("utf-8", "replace").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, hashed = line.strip().partition(":")
        if not colon or not _HASH.fullmatch(hashed):
            raise InvalidInput(
                f"{path}:{number}: not NAME:HASH with a bcrypt hash: make it with registry user add, or htpasswd -B"
            )
        try:
            checked_user(name)
        except InvalidInput as error:
            raise InvalidInput(f"{path}:{number}: {error}") from None
        if name in users:
            raise InvalidInput(f"{path}:{number}: user {name} stands in the file twice")
        users[name] = hashed
    return users


def write(path: Path, users: dict[str, str]) -> None:
    """Replace the file, readable by its owner alone."""
    text = "".join(f"{name}:{hashed}\n" for name, hashed in sorted(users.items()))
    write_atomically(path, text.encode(), mode=0o600)


def add(path: Path, name: str, hashed: str) -> bool:
    """Give a user a hash; the file is made if it is not there. Whether the user is new."""
    users = read(path) if path.exists() else {}
    known = checked_user(name) in users
    write(path, {**users, name: hashed})
    return not known


def remove(path: Path, name: str) -> None:
    """Take a user out. Raises `NotFound`."""
    users = read(path)
    if users.pop(name, None) is None:
        raise NotFound(f"{path} has no user {name}")
    write(path, users)


class HtpasswdFile:
    """The file as a running server sees it: looked at with every login, and read again whenever it has changed. Safe
    for several threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._users: dict[str, str] = {}
        self.hash_of("")

    def hash_of(self, name: str) -> str | None:
        """The hash of a user; None if there is none. Raises `InvalidInput` if the file cannot be understood: then
        nobody gets in, rather than those of yesterday."""
        with self._lock:
            try:
                stat = self._path.stat()
            except OSError as error:
                self._stamp = None
                raise InvalidInput(f"cannot read {self._path}: {error.strerror}") from None
            stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if stamp != self._stamp:
                self._stamp, self._users = None, {}
                self._users = read(self._path)
                self._stamp = stamp
            return self._users.get(name)
