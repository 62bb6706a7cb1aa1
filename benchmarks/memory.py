"""Memory as a machine has it that has been up for a while: full of page cache that can go.

Free memory is not the same for everybody: hypervisors take free pages back, and whoever writes first after that waits
for them (up to 2.5 s for each GiB where this was found). Pages for which page cache makes room cost everybody the same.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import BinaryIO

_STEP = 1024**3
_PATIENCE = 3
"""Steps after which no memory is free that could be filled: the kernel frees some of its own accord."""
_BUFFER = memoryview(bytearray(1024 * 1024))


def settle() -> None:
    """Wait until what was written is on the disk, and fill what memory is free with page cache of no use."""
    os.sync()
    _filler().fill()


def read_through(files: Iterable[Path]) -> None:
    """Bring files into the page cache."""
    for path in files:
        with path.open("rb", buffering=0) as stream:
            while stream.readinto(_BUFFER):
                pass


def peak(pid: int) -> float:
    """Largest resident set of a process so far, in MiB; 0 once it has ended. Raises `OSError` if it is gone."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), 0)


class _Filler:
    """A file of nothing but a hole, larger than the memory, read round and round."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size, self._position = file, size, 0
        file.truncate(size)

    def fill(self) -> None:
        least, in_vain = _memory("MemFree"), 0
        while in_vain < _PATIENCE:
            for _ in range(_STEP // len(_BUFFER)):
                os.preadv(self._file.fileno(), [_BUFFER], self._position)
                self._position = (self._position + len(_BUFFER)) % self._size
            free = _memory("MemFree")
            in_vain = 0 if least - free >= _STEP // 8 else in_vain + 1
            least = min(least, free)


@cache
def _filler() -> _Filler:
    size = (2 * _memory("MemTotal") // len(_BUFFER) + 1) * len(_BUFFER)
    return _Filler(tempfile.TemporaryFile(), size)


def _memory(name: str) -> int:
    """A line of the kernel's account of memory, in bytes; 0 where there is none."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
