"""What this host has that engines ask for: instruction sets, memory, GPUs, drivers, Pythons. Read, never changed."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

GIB = 1024**3


@dataclass(frozen=True)
class Host:
    """What was found. `memory` in bytes, `driver` the NVIDIA driver's version or empty, `gpus` their names;
    `compilers` are the programs for C and C++, as far as there are."""

    machine: str
    python: str
    features: frozenset[str]
    memory: int
    gpus: tuple[str, ...] = ()
    driver: str = ""
    compilers: Mapping[str, str] = field(default_factory=dict)


@cache
def this_host() -> Host:
    """This host, looked at once."""
    driver, gpus = _nvidia()
    return Host(
        platform.machine(), f"{sys.version_info.major}.{sys.version_info.minor}", _features(), _memory(), gpus, driver,
        _compilers(),
    )  # fmt: skip


def has_gpu() -> bool:
    """Whether there is an NVIDIA GPU with a driver."""
    return Path("/dev/nvidiactl").exists() or bool(Path("/proc/driver/nvidia/version").exists())


def gpu_numbers() -> frozenset[int]:
    """The numbers of the GPUs that ``nvidia-smi`` lists; none where it is not there, as in some containers."""
    if shutil.which("nvidia-smi") is None:
        return frozenset()
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        shown = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return frozenset()
    numbers = (line.partition(",")[0].strip() for line in shown.splitlines())
    return frozenset(int(number) for number in numbers if number.isdecimal())


def python_for(version: str) -> Path | None:
    """An interpreter of this minor version (``3.11``): this one, or one on PATH that runs."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return Path(sys.executable)
    found = shutil.which(f"python{version}")
    if found is None:
        return None
    try:
        subprocess.run([found, "-I", "-c", "import venv, ensurepip"], capture_output=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return Path(found)


def _compilers() -> dict[str, str]:
    """The compilers CMake would find: what the environment names, else the usual names on PATH."""
    found: dict[str, str] = {}
    for language, variable, names in (
        ("C", "CC", ("cc", "gcc", "clang")),
        ("C++", "CXX", ("c++", "g++", "clang++")),
    ):
        stated = os.environ.get(variable, "").split()
        for name in stated[:1] or names:
            if program := shutil.which(name):
                found[language] = program
                break
    return found


def compiler_version(program: str) -> str:
    """What a compiler says it is."""
    try:
        text = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return program
    return text.partition("\n")[0].strip()


def _features() -> frozenset[str]:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return frozenset(line.partition(":")[2].split())
    return frozenset()


def _memory() -> int:
    """Bytes of memory this process may use: the machine's, or its control group's if that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total


def _nvidia() -> tuple[str, tuple[str, ...]]:
    if not has_gpu():
        return "", ()
    query = ["nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader"]
    try:
        text = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return "", ()
    rows = [line.split(", ", 1) for line in text.splitlines() if ", " in line]
    return (rows[0][0] if rows else ""), tuple(row[1] for row in rows)
