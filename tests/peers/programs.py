"""Foreign programs."""

from __future__ import annotations

import shutil

import pytest


def program(name: str) -> str:
    """The path of a foreign program; skips the test where it is not installed."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian package {name})")
    return found
