"""Engines that are Python packages, each in an environment of its own, asked about without importing them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from artifact.errors import InvalidInput

_ASK = (
    "import importlib.metadata as m, sys\n"
    "print(sys.prefix, sys.base_prefix, sep='\\n')\n"
    "for name in sys.argv[1:]:\n"
    "    try: print(name, m.version(name), sep='\\n'); break\n"
    "    except m.PackageNotFoundError: pass\n"
)


@dataclass(frozen=True)
class Environment:
    """A Python interpreter with an engine beside it: the `distribution` that has it, its `version`, and the folders the
    interpreter runs from."""

    interpreter: Path
    distribution: str
    version: str
    folders: Sequence[str]

    @property
    def label(self) -> str:
        """Distribution and version, for people."""
        return f"{self.distribution} {self.version}"


def interpreter_in(path: Path) -> Path | None:
    """The Python interpreter that `path` is, or has as a virtual environment; None for anything else."""
    if path.is_dir():
        inside = path / "bin" / "python"
        if not inside.exists():
            raise InvalidInput(f"{path} is a folder but no virtual environment: it has no bin/python")
        return inside.absolute()
    if not path.exists():
        raise InvalidInput(f"no engine at {path}")
    return path.absolute() if re.fullmatch(r"python[0-9.]*", path.name) else None


def environment_of(interpreter: Path, *distributions: str) -> Environment | None:
    """What there is of the first of `distributions` that is installed beside `interpreter`; None if there is none.
    Raises `InvalidInput` if it does not run."""
    try:
        result = subprocess.run(
            [str(interpreter), "-I", "-c", _ASK, *distributions], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise InvalidInput(f"{interpreter} does not run: {error}") from None
    lines = result.stdout.splitlines()
    if len(lines) != 4:
        return None
    return Environment(interpreter, lines[2], lines[3], tuple(dict.fromkeys(lines[:2])))


def own_environment(*distributions: str) -> Environment | None:
    """The same for the interpreter this program runs in."""
    for name in distributions:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        return Environment(Path(sys.executable), name, version, tuple(dict.fromkeys((sys.prefix, sys.base_prefix))))
    return None


def gpu_environment(gpus: str | None) -> dict[str, str]:
    """The environment that shows an engine the GPUs the user states: ``all``, ``none`` or their numbers, e.g. ``0,1``.
    Raises `InvalidInput`."""
    if gpus in (None, "all"):
        return {}
    if gpus == "none":
        return {"CUDA_VISIBLE_DEVICES": ""}
    if not re.fullmatch(r"[0-9]{1,3}(?:,[0-9]{1,3})*", gpus or ""):
        raise InvalidInput(f"--gpus must be all, none or numbers such as 0,1, not {gpus!r}")
    # By place on the bus, as nvidia-smi numbers them: CUDA itself would put the fastest first.
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": str(gpus)}
