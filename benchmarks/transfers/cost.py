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
from benchmarks.report import Series

GIB = 1024**3


@dataclass(frozen=True)
class Cost:
    """Seconds on the clock and of processors, and the largest resident set in MiB."""

    seconds: float
    processor: float
    peak: float


def measure(command: list[str], first: Callable[[], None]) -> Cost:
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
        if process.returncode:
            log.seek(0)
            raise RuntimeError(f"{command[0]}: {log.read()[-2000:].decode(errors='replace')}")
    return Cost(seconds, usage.ru_utime + usage.ru_stime, most)


def _peak(pid: int) -> float:
    """Largest resident set so far of a process and of those it has started, in MiB; 0 once they have ended."""
    try:
        own, started = peak(pid), Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    return max([own, *(_peak(int(child)) for child in started)])


class Costs:
    """The measurements of one kind of transfer: `series` are rate, processor time and memory."""

    def __init__(self, what: str) -> None:
        self.series = [
            Series(what, "MB/s"),
            Series(f"{what}: processor time of the client", "s/GiB", more_is_better=False),
            Series(f"{what}: peak memory of the client", "MiB", more_is_better=False),
        ]

    def add(self, name: str, size: int, cost: Cost) -> None:
        """Put down what moving `size` bytes cost."""
        for series, value in zip(
            self.series, (size / 1e6 / cost.seconds, cost.processor * GIB / size, cost.peak), strict=True
        ):
            series.add(name, value)
