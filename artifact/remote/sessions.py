"""Upload sessions that outlive a process: where a blob's upload stands, so that the next push goes on from there."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from artifact.digest import Digest
from artifact.layout.files import write_atomically

_LIFETIME = 24 * 3600
"""How long a session is remembered, in seconds: registries drop theirs after a day or a week."""


class UploadSession:
    """The upload of `digest` to the repository `place`: where it goes on, `location`.

    From `claim` to `close` it is kept in a small file, readable by its owner only: a session's URL may carry its
    authority. Where that cannot be (no home folder, a read-only one), or another process has the same upload under way,
    it is remembered for this process alone.
    """

    def __init__(self, place: str, digest: Digest, folder: Path | None = None) -> None:
        folder = folder or _default_folder()
        key = hashlib.sha256(f"{place}\n{digest}".encode()).hexdigest()
        self._path = None if folder is None else folder / f"{key}.json"
        self._lock: int | None = None
        self.location: str | None = None

    def claim(self) -> None:
        """Go on with what was begun earlier, if it is there and nobody else does: `location`."""
        if self._lock is None:
            with suppress(OSError):
                self._lock = self._locked()
            if self._lock is not None:
                self.location = self._read()

    def close(self) -> None:
        """Let others go on with it."""
        if self._lock is not None:
            with suppress(OSError):
                self._lock_path.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    def put(self, location: str) -> None:
        """Remember where the upload goes on."""
        self.location = location
        if self._lock is not None and self._path is not None:
            with suppress(OSError):
                write_atomically(self._path, json.dumps({"location": location}).encode(), mode=0o600)

    def forget(self) -> None:
        """The upload has ended."""
        self.location = None
        if self._lock is not None and self._path is not None:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)

    @property
    def _lock_path(self) -> Path:
        assert self._path is not None
        return self._path.with_suffix(".lock")

    def _locked(self) -> int | None:
        """The lock that keeps the session to this process, until it ends; None if another one has it."""
        if self._path is None:
            return None
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._lock_path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._lock_path.stat().st_ino == os.fstat(descriptor).st_ino:  # not removed by who had it just now
                return descriptor
        except OSError:
            pass
        os.close(descriptor)
        return None

    def _read(self) -> str | None:
        assert self._path is not None
        try:
            if time.time() - self._path.stat().st_mtime > _LIFETIME:
                self._path.unlink(missing_ok=True)
                return None
            value = json.loads(self._path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        location = value.get("location") if isinstance(value, dict) else None
        return location if isinstance(location, str) else None


def _default_folder() -> Path | None:
    state = os.environ.get("XDG_STATE_HOME", "")
    try:
        base = Path(state) if state.startswith("/") else Path.home() / ".local" / "state"
    except RuntimeError:  # a user who has no home
        return None
    return base / "stowage" / "uploads"
