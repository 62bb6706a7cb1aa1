"""Where the local store is: the OCI layout that `packager` packs into and `runner` pulls into."""

from __future__ import annotations

import os
from pathlib import Path


def default_store() -> Path:
    """``$STOWAGE_STORE``, else ``stowage/store`` in the user's data folder (XDG Base Directory Specification)."""
    stated = os.environ.get("STOWAGE_STORE")
    if stated:
        return Path(stated)
    data = os.environ.get("XDG_DATA_HOME", "")
    base = Path(data) if data.startswith("/") else Path.home() / ".local" / "share"
    return base / "stowage" / "store"
