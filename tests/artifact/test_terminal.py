"""What a person sees when a command fails: one line and the right status."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import typer
from artifact import errors
from artifact.terminal import run
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
@app.command()
def main(kind: str) -> None:
    {body}
run(app)
"""


def outcome(body: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body=body), *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ("NotFound", 1),
        ("Malformed", 1),
        ("StorageFull", 1),
        ("Unreachable", 1),
        ("InvalidInput", 2),
        ("Refused", 3),
        ("DigestMismatch", 3),
    ],
)
def test_errors_are_one_line_with_their_status(error: str, status: int) -> None:
    done = outcome(f"raise errors.{error}('x: what happened')", "k")
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "error: x: what happened\n")


def test_an_answer_from_elsewhere_cannot_steer_the_terminal() -> None:
    done = outcome("raise errors.ServerError('a\\x1b[2Jb\\r\\nc')", "k")
    assert done.stderr == "error: a [2Jb  c\n"


def test_files_of_the_system_are_named() -> None:
    done = outcome("open('/no/such/file')", "k")
    assert (done.returncode, done.stderr) == (1, "error: /no/such/file: No such file or directory\n")


def test_a_defect_of_ours_shows_no_traceback_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    done = outcome("1 / 0", "k")
    assert done.returncode == 1 and "Traceback" not in done.stderr and "STOWAGE_DEBUG=1" in done.stderr
    monkeypatch.setenv("STOWAGE_DEBUG", "1")
    assert "Traceback" in outcome("1 / 0", "k").stderr


def test_interrupt_and_usage() -> None:
    assert outcome("raise KeyboardInterrupt", "k").returncode == 130
    assert outcome("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "k").returncode == 143
    assert outcome("pass").returncode == 2
    assert outcome("pass", "k").returncode == 0


def test_a_terminal_that_is_closed() -> None:
    """Shell and kernel both say so: what cleans up is not cut off."""
    closed = "import os, signal\n    try: os.kill(os.getpid(), signal.SIGHUP)\n"
    closed += "    finally: os.kill(os.getpid(), signal.SIGHUP); print('cleaned up')"
    done = outcome(closed, "k")
    assert (done.returncode, done.stdout, done.stderr) == (129, "cleaned up\n", "")
    hardy = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n{PROGRAM.format(body=closed)}"
    done = subprocess.run([sys.executable, "-c", hardy, "k"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "cleaned up\n")  # as nohup starts it
