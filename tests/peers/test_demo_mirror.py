"""`make demo-mirror` does what it says, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.peers.programs import program
from tests.registry.servers import ROOT

pytestmark = pytest.mark.peer
DEMO = [sys.executable, str(ROOT / "docs" / "examples" / "demo_mirror.py")]


def test_there_and_back(tmp_path: Path) -> None:
    program("docker-registry")
    env = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(DEMO, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert done.stdout.count("$ registry sync") == 3 and done.stdout.count("$ runner verify") == 3
    assert "refused with exit status 3, as it must be" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_without_the_other_registry_it_says_so(tmp_path: Path) -> None:
    done = subprocess.run(DEMO, cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "SKIPPED: docker-registry is not installed" in done.stdout
