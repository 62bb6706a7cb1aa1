"""A user with nothing of their own: a home, a store and a registry per test, and the three commands."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

from tests.checkpoints.tiny import write_tiny_llama

BIN = Path(sys.executable).parent


class Run(Protocol):
    """Run a command to its end: ``run("packager", "pack", …, expect=1)``."""

    def __call__(self, *command: str, expect: int = 0, **environment: str) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture
def user(tmp_path: Path) -> dict[str, str]:
    """The environment of a user whose files all lie in the test's folder."""
    kept = {name: value for name, value in os.environ.items() if name in ("LANG", "LC_ALL", "TMPDIR")}
    home = tmp_path / "home"
    home.mkdir()
    return kept | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "HOME": str(home),
        "STOWAGE_STORE": str(tmp_path / "store"),
        "COSIGN_PASSWORD": "",
    }


@pytest.fixture
def run(user: dict[str, str], tmp_path: Path) -> Run:
    def start(*command: str, expect: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, env=user | environment, cwd=tmp_path, text=True, capture_output=True,
            stdin=subprocess.DEVNULL, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == expect, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    return start


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The error a command ended with; it must be one line."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and done.stderr.rstrip().endswith(lines[0]), done.stderr
    return lines[0]


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """What a command prints last on stdout: the reference it made or moved."""
    return done.stdout.strip().splitlines()[-1]


@pytest.fixture
def error_of() -> Callable[[subprocess.CompletedProcess[str]], str]:
    return one_line


@pytest.fixture
def result_of() -> Callable[[subprocess.CompletedProcess[str]], str]:
    return last_line


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A small genuine checkpoint."""
    return write_tiny_llama(tmp_path / "tiny", shards=2)


@pytest.fixture
def policy(tmp_path: Path, run: Run) -> tuple[Path, Path]:
    """A fresh key, and the example policy that requires it for everything: (private key, policy file)."""
    run("packager", "keygen", str(tmp_path / "key"))
    example = Path(__file__).parents[2] / "docs" / "examples" / "policy-key.yaml"
    target = tmp_path / "policy.yaml"
    target.write_text(example.read_text().replace("PUBLIC_KEY", str(tmp_path / "key.pub")))
    return tmp_path / "key.key", target
