"""Engines for tests, installed as a user installs them, once, into a cache beside the repository."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.runner.commands import BIN, environment

CACHE = Path(__file__).parents[2] / ".cache"


def installed_engines(name: str, variant: str, tmp: Path) -> Path:
    """The folder of installed engines, with this one in it. Skips the test, saying why, where it cannot be had."""
    import os

    pip = {key: value for key, value in os.environ.items() if key.startswith(("PIP_", "HTTP", "http", "SSL_"))}
    command = [str(BIN / "runner"), "engine", "install", name, "--variant", variant, "--store", str(CACHE)]
    done = subprocess.run(
        command, env=environment(tmp / "store", **pip) | {"HOME": str(Path.home()), "PATH": os.environ["PATH"]},
        capture_output=True, text=True, timeout=1500, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"no {name} ({variant}) here: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    return CACHE / "engines"
