"""Which engine runs a model: decided by what the model is, before anything large is fetched."""

from __future__ import annotations

from pathlib import Path

from artifact.errors import InvalidInput
from runner.engines.engine import Engine
from runner.engines.llamacpp import LlamaCpp
from runner.engines.vllm import Vllm

DRIVERS = ("llama.cpp", "vllm")
"""What ``--driver`` takes."""

_FOR_FORMAT = {"gguf": "llama.cpp", "safetensors": "vllm"}


def driver_for(format_: str, driver: str | None) -> str:
    """The name of the engine for weights of `format_`; `driver` is what the user states. Raises `InvalidInput` for an
    unknown driver and for one that cannot load the format."""
    if driver is not None and driver not in DRIVERS:
        raise InvalidInput(f"no driver {driver!r}: use {' or '.join(DRIVERS)}")
    fitting = _FOR_FORMAT.get(format_)
    if fitting is None:
        raise InvalidInput(f"no engine loads the format {format_!r}")
    if driver is not None and driver != fitting:
        raise InvalidInput(
            f"driver {driver} cannot load {format_}: this model runs on {fitting}, or choose the tag that holds the "
            f"{'GGUF' if driver == 'llama.cpp' else 'safetensors'} files"
        )
    return fitting


def engine_for(format_: str, driver: str | None = None, path: Path | None = None) -> Engine:
    """The engine for weights of `format_`, from `path` if stated. Raises `InvalidInput`."""
    return LlamaCpp(path) if driver_for(format_, driver) == "llama.cpp" else Vllm(path)
