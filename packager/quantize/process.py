"""A worker script in another Python, started with nothing of this process's environment, and ended with this process.

The worker gets one JSON document on its standard input and answers with lines of JSON: ``{"at": …}`` while it works,
``{"done": …}`` or ``{"failed": "why"}`` at the end. What llama.cpp prints goes to its standard error, whose end is
quoted if the worker dies without an answer.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from artifact.errors import StowageError

_QUOTED = 400
Listener = Callable[[dict[str, Any]], None]


class WorkerFailed(StowageError):
    """The other program did not do what it was asked."""

    code = "worker-failed"


def environment(scratch: Path) -> dict[str, str]:
    """All that a worker sees of the environment: nothing of the user's, and `scratch` for what it may write."""
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": str(scratch), "TMPDIR": str(scratch),
        "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
    }  # fmt: skip


def run_worker(interpreter: Path, script: Path, request: dict[str, Any], scratch: Path, listen: Listener) -> Any:
    """Run `script` on `request` and return what it answers. Raises `WorkerFailed`, in its words.

    Whatever ends this call, an interrupt too, ends the worker.
    """
    command = [str(interpreter), "-I", "-B", str(script)]
    with tempfile.TemporaryFile(dir=scratch) as log:
        process = start(command, scratch, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        try:
            assert process.stdin and process.stdout
            with suppress(BrokenPipeError), process.stdin as stdin:
                stdin.write(json.dumps(request).encode())
            for line in process.stdout:
                answer = _answer(line)
                if "done" in answer:
                    return answer["done"]
                if "failed" in answer:
                    raise WorkerFailed(f"{_name(interpreter)}: {answer['failed']}")
                if answer:
                    listen(answer)
            status = process.wait()
            raise WorkerFailed(f"{_name(interpreter)} ended with status {status}: {tail(log)}")
        finally:
            stop(process)


def start(command: Sequence[str], scratch: Path, **pipes: Any) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, so that Ctrl-C reaches it through this process alone."""
    return subprocess.Popen(command, cwd=scratch, env=environment(scratch), start_new_session=True, **pipes)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the program and all it started, and wait for that."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout:
        process.stdout.close()


def tail(log: IO[bytes]) -> str:
    """The end of what a program wrote, in one line."""
    log.seek(0, os.SEEK_END)
    log.seek(max(0, log.tell() - 4 * _QUOTED))
    text = log.read().decode(errors="replace")
    return " ".join(text.split())[-_QUOTED:] or "it said nothing"


def _answer(line: bytes) -> dict[str, Any]:
    """A line of the worker; empty for one that is no answer (a library may print, too)."""
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _name(interpreter: Path) -> str:
    return f"llama-cpp-python in {interpreter}"
