"""What one command costs."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.memory import peak, settle


@dataclass(frozen=True)
class Cost:
    """Seconds on the clock and of processors, the largest resident set in MiB, and what the command `said`."""

    seconds: float
    processor: float
    peak: float
    said: str = ""


def measure(command: list[str], first: Callable[[], None] = lambda: None) -> Cost:
    """Run a command to its end, on a machine that has come to rest, once `first` has brought what it reads into page
    cache. Raises `RuntimeError` if it fails."""
    settle()
    first()
    begun = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        most = 0.0
        while True:
            most = max(most, _peak(process.pid))
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            time.sleep(0.01)
        seconds = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        said = log.read().decode(errors="replace")
    if process.returncode:
        raise RuntimeError(f"{command[0]}: {said[-2000:]}")
    return Cost(seconds, usage.ru_utime + usage.ru_stime, most, said)


def _peak(pid: int) -> float:
    """Largest resident set so far of a process and of those it has started, in MiB; 0 once they have ended."""
    try:
        own, started = peak(pid), Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    return max([own, *(_peak(int(child)) for child in started)])
