"""Engines that are Python packages, each in an environment of its own, asked about without importing them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from artifact.errors import InvalidInput

_ASK = (
    "import importlib.metadata as m, sys\n"
    "for name in sys.argv[1:]:\n"
    "    try: print(m.version(name)); break\n"
    "    except m.PackageNotFoundError: pass\n"
)


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


def installed_version(interpreter: Path, *distributions: str) -> str | None:
    """The version of the first of `distributions` that is installed beside `interpreter`; None if there is none."""
    try:
        result = subprocess.run(
            [str(interpreter), "-I", "-c", _ASK, *distributions], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise InvalidInput(f"{interpreter} does not run: {error}") from None
    return result.stdout.strip() or None


def gpu_environment(gpus: str | None) -> dict[str, str]:
    """The environment that shows an engine the GPUs the user states: ``all``, ``none`` or their numbers, e.g. ``0,1``.
    Raises `InvalidInput`."""
    if gpus in (None, "all"):
        return {}
    if gpus == "none":
        return {"CUDA_VISIBLE_DEVICES": ""}
    if not re.fullmatch(r"[0-9]{1,3}(?:,[0-9]{1,3})*", gpus or ""):
        raise InvalidInput(f"--gpus must be all, none or numbers such as 0,1, not {gpus!r}")
    return {"CUDA_VISIBLE_DEVICES": str(gpus)}
