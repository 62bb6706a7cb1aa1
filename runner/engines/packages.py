"""Filling an engine's environment from its lock file with pip, told step by step.

What has to be compiled is compiled with the settings that the lock file states and no others: neither variables of the
environment nor a wheel that pip kept from an earlier build decide what an engine computes.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from artifact.errors import StowageError
from runner.engines.lock import Lock

Tell = Callable[[str], None]

_CHANGES_BUILD = re.compile(
    r"CMAKE_(?!BUILD_PARALLEL_LEVEL).*|SKBUILD_.*|(?:C|CPP|CXX|LD)FLAGS|SOURCE_DATE_EPOCH|PYTHONPATH"
)
_LARGE = 16.0
_COLLECTING = re.compile(r"\s*Collecting ([A-Za-z0-9._-]+)==")
_DOWNLOADING = re.compile(r"\s*Downloading \S+ \(([0-9.]+) (MB|GB)\)")
_STEP = re.compile(r"\s*\[([0-9]+)/([0-9]+)\] ")
_COMPILER_ERROR = re.compile(r".*(?:\berror: |CMake Error|c\+\+: fatal|ninja: error).*")
_GENERIC = re.compile(
    r"error: +(?:subprocess-exited-with-error|failed building wheel|could not build wheels|failed to build)",
    re.IGNORECASE,
)
_KEPT_LINES = 4000


class InstallFailed(StowageError):
    """An engine could not be installed. Nothing of it is left."""

    code = "install-failed"


def fill(lock: Lock, folder: Path, tell: Tell) -> None:
    """Install everything the lock file names into the virtual environment in `folder`. Raises `InstallFailed`."""
    environment, stages = _environment(lock, folder), lock.stages
    variables = _variables_file(folder)
    variables.write_text("".join(f"set({name} {value})\n" for name, value in lock.cmake_variables), encoding="utf-8")
    for number, stage in enumerate(stages):
        requirements = folder / f"stage-{number}.txt"
        requirements.write_text(stage, encoding="utf-8")
        compiled = bool(lock.cmake) and number == len(stages) - 1
        command = [
            str(folder / "bin" / "python"), "-I", "-m", "pip", "install", "--disable-pip-version-check", "--no-input",
            "--progress-bar", "off", "--no-deps", "--no-build-isolation", "--require-hashes", "-r", str(requirements),
            *(("--verbose", "--no-cache-dir") if compiled else ()),
        ]  # fmt: skip
        run(command, lock, environment, _Teller(tell, lock))
        requirements.unlink()
    variables.unlink()


def run(command: Sequence[str], lock: Lock, environment: dict[str, str], hear: Callable[[str], None]) -> None:
    """Run a program to its end; `hear` gets each line it writes. Raises `InstallFailed` with what of it says why."""
    lines: deque[str] = deque(maxlen=_KEPT_LINES)
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", env=environment, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        for line in process.stdout:
            lines.append(line.rstrip())
            hear(line)
        process.wait()
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # compilers too
        process.wait()
        raise
    if process.returncode:
        raise InstallFailed(f"{lock.name} {lock.version} ({lock.variant}): {cause(lines)}")


def cause(lines: Iterable[str]) -> str:
    """What of the words of pip and of the programs it runs says why it failed."""
    said = [line.strip() for line in lines if line.strip()]
    errors = [line for line in said if line.lower().startswith("error:")]
    if any("+cpu" in line and "torch" in line for line in errors):
        return (
            "torch's CPU build is at none of the indexes pip is configured for: add the one PyTorch publishes, for "
            "example with PIP_EXTRA_INDEX_URL"
        )
    telling = [line for line in errors if not _GENERIC.match(line)]
    compiler = [line for line in said if _COMPILER_ERROR.fullmatch(line) and not line.lower().startswith("error:")]
    found = (compiler[:1] or telling[-1:] or errors[-1:] or said[-1:] or ["the command failed and said nothing"])[0]
    return found.removeprefix("ERROR: ")


def _environment(lock: Lock, folder: Path) -> dict[str, str]:
    """The environment of pip: the user's, less what would change the result of a compilation."""
    kept = {name: value for name, value in os.environ.items() if not _CHANGES_BUILD.fullmatch(name)}
    kept["PATH"] = f"{folder / 'bin'}:{kept.get('PATH', os.defpath)}"  # what a first stage brings: cmake, ninja
    if lock.cmake:
        kept["CMAKE_ARGS"] = f"{lock.cmake} {shlex.quote(f'-DCMAKE_PROJECT_INCLUDE={_variables_file(folder)}')}"
    return kept


def _variables_file(folder: Path) -> Path:
    """A file of CMake's that sets variables which a project's own lists would set again if they were given as
    options."""
    return folder / "variables.cmake"


class _Teller:
    """Tells of what takes long: large downloads, and how far a compilation is, by tenths."""

    def __init__(self, tell: Tell, lock: Lock) -> None:
        self._tell = tell
        self._engine = lock.name
        self._total = len(lock.packages)
        self._name = ""
        self._tenths = 0

    def __call__(self, line: str) -> None:
        if match := _COLLECTING.match(line):
            self._name = match[1]
        elif (match := _DOWNLOADING.match(line)) and float(match[1]) * {"MB": 1, "GB": 1024}[match[2]] >= _LARGE:
            self._tell(f"fetching {self._name} ({match[1]} {match[2]})")
        elif match := _STEP.match(line):
            done, total = int(match[1]), int(match[2])
            if total and 10 * done // total > self._tenths:
                self._tenths = 10 * done // total
                self._tell(f"compiling {self._engine}: {done} of {total}")
        elif line.startswith("Installing collected packages:") and self._total > 50:
            self._tell("unpacking")
