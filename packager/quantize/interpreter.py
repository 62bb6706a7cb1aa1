"""Which Python has llama-cpp-python, whose quantiser makes what this project does not make itself.

It is a compiled program of another project, in an environment of its own as a rule: it never runs in this process.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from artifact.errors import InvalidInput, StowageError

VARIABLE = "STOWAGE_LLAMA_CPP_PYTHON"
"""Environment variable that names the interpreter, or the folder of its virtual environment."""


class QuantizerMissing(StowageError):
    """There is no llama-cpp-python to quantise with."""

    code = "quantizer-missing"


def find_interpreter(stated: str = "") -> Path:
    """The interpreter that has llama-cpp-python: the `stated` one, else the environment variable's, else this one.

    `stated` is an interpreter, or the folder of a virtual environment. Raises `InvalidInput` for a stated one that is
    no interpreter, `QuantizerMissing` if none is stated and this one has no llama-cpp-python.
    """
    named, by = (stated, "--quantizer") if stated else (os.environ.get(VARIABLE, ""), VARIABLE)
    if named:
        return interpreter_at(Path(named), by)
    if find_spec("llama_cpp") is None:
        raise QuantizerMissing(
            "this precision is made by llama-cpp-python, which is not here: pip install 'stowage[llama-cpp-python]' "
            f"beside this program, or name an environment that has it with --quantizer or {VARIABLE}"
        )
    return Path(sys.executable)


def interpreter_at(path: Path, named_by: str) -> Path:
    """The interpreter at `path`, or in the virtual environment there. Raises `InvalidInput`."""
    found = path.expanduser() / "bin" / "python" if path.expanduser().is_dir() else path.expanduser()
    if not found.is_file() or not os.access(found, os.X_OK):
        raise InvalidInput(f"{named_by}: {path} is neither a Python interpreter nor the folder of an environment")
    # Not resolved: a virtual environment's interpreter is a link, and finds the environment by where the link lies.
    return found.absolute()
