"""What the documentation has to have because the code does."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("artifact", "supplychain", "packager", "registry", "runner")
OURS = re.compile(r"STOWAGE_[A-Z0-9_]+")
INTERNAL = {
    "STOWAGE_REGISTRY_SETTINGS",  # from a server to its processes
    "STOWAGE_REGISTRY_SHARED",
    "STOWAGE_STREAM",  # from the runner to its loader in the engine
}


def test_every_environment_variable_is_documented() -> None:
    sources = [path.read_text() for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    known = {name for source in sources for name in OURS.findall(source)}
    assert set(OURS.findall((ROOT / "docs" / "environment.md").read_text())) == known - INTERNAL
