"""Which engine runs a model: decided by what the model is, before anything large is fetched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from artifact.errors import InvalidInput
from runner.engines.engine import Engine, EngineUnavailable
from runner.engines.host import has_gpu
from runner.engines.installed import Installed, choose, installed
from runner.engines.llamacpp import LlamaCpp
from runner.engines.llamacpp_python import LlamaCppPython
from runner.engines.vllm import Vllm

DRIVERS = ("llama.cpp", "llama-cpp-python", "vllm")
"""What ``--driver`` takes, each also with ``==VERSION`` for one of several that are installed."""

_FOR_FORMAT = {"gguf": ("llama.cpp", "llama-cpp-python"), "safetensors": ("vllm",)}
_ENGINES: dict[str, Callable[[Path | None, Installed | None], Engine]] = {
    "llama.cpp": LlamaCpp, "llama-cpp-python": LlamaCppPython, "vllm": Vllm,
}  # fmt: skip


def driver_for(format_: str, driver: str | None) -> str:
    """The name of the engine for weights of `format_`; `driver` is what the user states. Raises `InvalidInput` for an
    unknown driver and for one that cannot load the format."""
    driver = driver.partition("==")[0] if driver is not None else None
    if driver is not None and driver not in DRIVERS:
        raise InvalidInput(f"no driver {driver!r}: use {', '.join(DRIVERS[:-1])} or {DRIVERS[-1]}")
    fitting = _FOR_FORMAT.get(format_)
    if fitting is None:
        raise InvalidInput(f"no engine loads the format {format_!r}")
    if driver is not None and driver not in fitting:
        raise InvalidInput(
            f"driver {driver} cannot load {format_}: this model runs on {fitting[0]}, or choose the tag that holds the "
            f"{'safetensors' if driver == 'vllm' else 'GGUF'} files"
        )
    return driver or fitting[0]


def engine_for(
    format_: str,
    driver: str | None = None,
    path: Path | None = None,
    engines: Path | None = None,
    gpus: str | None = None,
) -> Engine:
    """The engine for weights of `format_`: the one at `path` if stated, else what is installed in the folder `engines`,
    else what is found on this host. Raises `InvalidInput`, and `EngineUnavailable` for a stated version that is not
    installed."""
    name = driver_for(format_, driver)
    version = driver.partition("==")[2] if driver and "==" in driver else None
    if version is not None and path is not None:
        raise InvalidInput("--driver states a version and --engine-path names an engine: use one of the two")
    found = None
    if path is None and engines is not None:
        found = choose(engines, name, version, _variants(gpus))
    if version is not None and found is None:
        here = [item.version for item in installed(engines) if item.name == name] if engines else []
        raise EngineUnavailable(
            f"{name} {version} is not installed (installed: {', '.join(here) or 'none'}): "
            f"runner engine install {name}=={version}"
        )
    return _ENGINES[name](path, found)


def _variants(gpus: str | None) -> Sequence[str]:
    """The variants that can run here, the better first."""
    return ("cpu",) if gpus == "none" or not has_gpu() else ("cuda", "cpu")
