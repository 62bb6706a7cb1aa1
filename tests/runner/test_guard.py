"""The guard between a runner and an engine: nothing that the engine has started outlives it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runner.sandbox.rules import Rules
from tests.runner.commands import processes_in, wait_until

GUARD = Path(__file__).parents[2] / "runner" / "guard.py"

# One child in a session of its own, with a child that has one of its own too, and that hears no SIGTERM.
_STRAYS = "setsid sh -c 'trap \"\" TERM; setsid sleep 600 & sleep 600' & "


@pytest.mark.parametrize("end", ["exec sleep 600", "while [ ! -e stop ]; do sleep 0.05; done; exit 7"])
def test_what_went_into_a_session_of_its_own_ends_with_the_engine(tmp_path: Path, end: str) -> None:
    """When the runner is gone, and when the engine ends by itself."""
    read, write = os.pipe()
    command = [sys.executable, "-I", "-S", str(GUARD), "0.5", Rules(mode="off").to_json(), str(write)]
    guard = subprocess.Popen(
        [*command, "/bin/sh", "-c", _STRAYS + end], cwd=tmp_path, stdin=subprocess.PIPE, pass_fds=(write,)
    )
    try:
        os.close(write)
        wait_until(lambda: len(processes_in(tmp_path)) >= 5)
        if "exec" in end:
            assert guard.stdin is not None
            guard.stdin.close()
        else:
            (tmp_path / "stop").touch()
            assert guard.wait(20) == 7
        guard.wait(20)
        assert processes_in(tmp_path) == []
    finally:
        os.close(read)
        guard.kill()
        guard.communicate()
