"""Upload sessions that outlive a process: where a blob's upload stands, so that the next push goes on from there."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

from artifact.digest import Digest
from artifact.layout.files import write_atomically

_LIFETIME = 24 * 3600
"""How long a session is remembered, in seconds: registries drop theirs after a day or a week."""


class UploadSessions:
    """Small files, one an upload under way, readable by their owner only: a session's URL may carry its authority."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or _default_folder()

    def get(self, place: str, digest: Digest) -> str | None:
        """The location of the upload of `digest` to the repository `place` that was begun and not ended."""
        path = self._path(place, digest)
        try:
            if time.time() - path.stat().st_mtime > _LIFETIME:
                path.unlink(missing_ok=True)
                return None
            value = json.loads(path.read_bytes())
        except (OSError, ValueError):
            return None
        location = value.get("location") if isinstance(value, dict) else None
        return location if isinstance(location, str) else None

    def put(self, place: str, digest: Digest, location: str) -> None:
        """Remember where an upload goes on."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(self._path(place, digest), json.dumps({"location": location}).encode(), mode=0o600)

    def forget(self, place: str, digest: Digest) -> None:
        """The upload has ended."""
        self._path(place, digest).unlink(missing_ok=True)

    def _path(self, place: str, digest: Digest) -> Path:
        key = hashlib.sha256(f"{place}\n{digest}".encode()).hexdigest()
        return self._folder / f"{key}.json"


def _default_folder() -> Path:
    state = os.environ.get("XDG_STATE_HOME", "")
    base = Path(state) if state.startswith("/") else Path.home() / ".local" / "state"
    return base / "stowage" / "uploads"
