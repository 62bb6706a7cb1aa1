"""What a model will need in memory, from its own numbers, and what this host has: the arithmetic of admission.

An estimate is an upper bound of what llama.cpp and vLLM reserve: the weights as they are on disk, keys and values of
every layer for the whole context of every parallel request, and the buffers of one batch. Sliding windows and shared
layers make the real figure smaller.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifact.errors import StowageError
from artifact.weights import gguf
from runner.adapters import weights_of
from runner.engines.llamacpp import PARALLEL
from runner.plan import Plan

MIB = 1024 * 1024
_PROCESS = {"llama.cpp": 64 * MIB, "llama-cpp-python": 128 * MIB, "vllm": 1024 * MIB}
_BATCH = 512
_CACHE_BITS = {"f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5, "q5_1": 6, "q5_0": 5.5, "q4_1": 5, "q4_0": 4.5,
               "iq4_nl": 4.5}  # fmt: skip


class DoesNotFit(StowageError):
    """There is not enough memory for a model, even without those that may be unloaded."""

    code = "does-not-fit"


@dataclass(frozen=True)
class Shape:
    """The numbers of a model that memory depends on. `kv_width` is the sum over all layers of the elements one token
    adds to the keys, and the same for the values."""

    kv_width: tuple[int, int]
    hidden: int
    vocabulary: int


@dataclass(frozen=True)
class Estimate:
    """Bytes one model needs, by what for. `gpus` are the numbers of the GPUs in whose memory it is; without any it is
    in RAM."""

    weights: int
    cache: int
    buffers: int
    gpus: frozenset[int] = frozenset()

    @property
    def on_gpu(self) -> bool:
        """Whether it is in GPU memory."""
        return bool(self.gpus)

    def shares(self, other: Estimate) -> bool:
        """Whether both need memory of the same place: RAM, or a GPU that both use."""
        return bool(self.gpus & other.gpus) if self.gpus or other.gpus else True

    @property
    def total(self) -> int:
        """All of it, in bytes."""
        return self.weights + self.cache + self.buffers

    def __str__(self) -> str:
        return (
            f"{gib(self.total)} ({gib(self.weights)} weights + {gib(self.cache)} keys and values + "
            f"{gib(self.buffers)} buffers)"
        )

    def to_json(self) -> dict[str, Any]:
        """The estimate in bytes."""
        return {
            "weights": self.weights, "cache": self.cache, "buffers": self.buffers, "total": self.total,
            "on_gpu": self.on_gpu, "gpus": sorted(self.gpus),
        }  # fmt: skip


def gib(count: float) -> str:
    """Bytes as people compare memory."""
    return f"{count / 1024**3:.2f} GiB" if count >= 100 * MIB else f"{count / MIB:.1f} MiB"


def estimate(plan: Plan, bundle: Path, gpus: Collection[int] | None = None) -> Estimate:
    """What the model needs when it runs as planned. `bundle` holds its verified files; `gpus` are the numbers of the
    GPUs this host has, found out where it is None. Raises `DoesNotFit` if it shall use one that is not there."""
    model, argv = plan.found.model, list(plan.command.argv)
    files = {file.path: file.blob.size for file in model.files}
    paths = [*model.weights, *([model.projector] if model.projector else [])]
    weights = sum(files[path] for path in paths) + weights_of(plan.adapters)
    shape = read_shape(model.config.format, bundle, model.weights)
    used = _gpus(plan, gpus_free() if gpus is None else gpus) if _wants_gpu(plan) else frozenset()
    if plan.command.engine == "vllm":
        cache = _vllm_cache(plan, shape, bool(used))
    else:
        keys, values = (_CACHE_BITS.get(_value(argv, f"--cache-type-{part}", "f16"), 16) / 8 for part in "kv")
        tokens = int(_value(argv, "--ctx-size", _value(argv, "--n_ctx", str(plan.context_size * PARALLEL))))
        cache = int(tokens * (shape.kv_width[0] * keys + shape.kv_width[1] * values)) if shape else 0
    batch = int(_value(argv, "--ubatch-size", str(_BATCH)))
    buffers = _PROCESS.get(plan.command.engine, 0)
    if shape:
        buffers += batch * 4 * (shape.vocabulary + 12 * shape.hidden)
    return Estimate(weights, cache, buffers, used)


def read_shape(format_: str, bundle: Path, weights: Sequence[str]) -> Shape | None:
    """The shape that a model's own files state, None where they do not."""
    try:
        if format_ == "gguf":
            return gguf_shape(gguf.read_header(bundle / weights[0]).metadata)
        return config_shape(json.loads((bundle / "config.json").read_bytes()))
    except (OSError, ValueError, StowageError, KeyError, TypeError, IndexError, ZeroDivisionError):
        return None


def gguf_shape(metadata: Mapping[str, Any]) -> Shape:
    """The shape in the metadata of a GGUF file. Raises `KeyError`, `TypeError`, `ValueError` where there is none."""
    prefix = metadata["general.architecture"]
    layers, hidden = int(metadata[f"{prefix}.block_count"]), int(metadata[f"{prefix}.embedding_length"])
    heads = _per_layer(metadata.get(f"{prefix}.attention.head_count", 1), layers)
    kv_heads = _per_layer(metadata.get(f"{prefix}.attention.head_count_kv", heads), layers)
    width = hidden // max(heads)
    keys = int(metadata.get(f"{prefix}.attention.key_length", width))
    values = int(metadata.get(f"{prefix}.attention.value_length", width))
    tokens = metadata.get("tokenizer.ggml.tokens", ())
    vocabulary = metadata.get(f"{prefix}.vocab_size") or getattr(tokens, "length", None) or len(tokens)
    return Shape((sum(kv_heads) * keys, sum(kv_heads) * values), hidden, int(vocabulary))


def config_shape(config: Mapping[str, Any]) -> Shape:
    """The shape in a ``config.json``. Raises `KeyError`, `TypeError`, `ValueError` where there is none."""
    config = config.get("text_config") or config
    layers, hidden = int(config["num_hidden_layers"]), int(config["hidden_size"])
    heads = int(config["num_attention_heads"])
    width = int(config.get("head_dim") or hidden // heads) * int(config.get("num_key_value_heads") or heads)
    return Shape((layers * width, layers * width), hidden, int(config["vocab_size"]))


def _per_layer(value: Any, layers: int) -> list[int]:
    if isinstance(value, (list, tuple)):
        return [int(item) for item in value]
    return [int(value)] * layers


def _value(argv: Sequence[str], flag: str, default: str) -> str:
    return argv[argv.index(flag) + 1] if flag in argv else default


def _vllm_cache(plan: Plan, shape: Shape | None, on_gpu: bool) -> int:
    stated = _value(plan.command.argv, "--kv-cache-memory-bytes", "")
    if stated.isdecimal():
        return int(stated)
    if not on_gpu:
        return int(float(_value(plan.command.argv, "--gpu-memory-utilization", "0.92")) * _meminfo("MemTotal"))
    sequences = 1  # vLLM serves as many as fit; below one it does not start
    return sequences * plan.context_size * sum(shape.kv_width) * 2 if shape else 0


def _wants_gpu(plan: Plan) -> bool:
    command = plan.command
    if not command.rules.devices or command.env.get("CUDA_VISIBLE_DEVICES") == "":
        return False
    if command.engine == "vllm":
        return True
    layers = _value(command.argv, "--n-gpu-layers", _value(command.argv, "--n_gpu_layers", ""))
    return layers not in ("", "0") or bool(command.env.get("CUDA_VISIBLE_DEVICES"))


def _gpus(plan: Plan, there: Collection[int]) -> frozenset[int]:
    """The GPUs among those that are `there` whose memory the engine uses. Raises `DoesNotFit`."""
    stated = plan.command.env.get("CUDA_VISIBLE_DEVICES")
    visible = [int(number) for number in stated.split(",")] if stated else sorted(there)
    absent = [str(number) for number in visible if number not in there]
    if there and absent:
        shown = ", ".join(map(str, sorted(there)))
        raise DoesNotFit(f"--gpus {stated}: there is no GPU {', '.join(absent)} here, only {shown}")
    if not there:
        return frozenset()
    argv = plan.command.argv
    if plan.command.engine == "vllm":  # it takes as many as it is split over, the first ones
        split = (int(_value(argv, f"--{kind}-parallel-size", "1")) for kind in ("tensor", "pipeline", "data"))
        visible = visible[: max(1, math.prod(split))]
    elif _value(argv, "--split-mode", "layer") == "none":
        main = max(0, int(_value(argv, "--main-gpu", "0")))
        visible = visible[main : main + 1] or visible
    return frozenset(visible)


def gpus_free() -> dict[int, int]:
    """Free bytes of each GPU this host shows, by the number ``nvidia-smi`` gives it."""
    if shutil.which("nvidia-smi") is None:
        return {}
    query = ["nvidia-smi", "--query-gpu=index,memory.free", "--format=csv,noheader,nounits"]
    try:
        shown = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    rows = [[part.strip() for part in line.split(",")] for line in shown.splitlines()]
    return {int(row[0]): int(row[1]) * MIB for row in rows if len(row) == 2 and all(map(str.isdecimal, row))}


def ram_free() -> int:
    """Bytes of RAM that can be had without swapping: the kernel's estimate, and what the control group leaves."""
    return min(_meminfo("MemAvailable"), _group_free(Path("/sys/fs/cgroup")))


def _meminfo(name: str) -> int:
    with Path("/proc/meminfo").open() as lines:
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def _group_free(folder: Path) -> int:
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        rows = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 1 << 62
    if not limit.isdecimal():
        return 1 << 62
    return max(0, int(limit) - used + int(rows.get("inactive_file", 0)))


def anonymous(pids: Sequence[int]) -> int:
    """Bytes that processes hold and the kernel cannot drop, mapped files apart."""
    return _status(pids, ("RssAnon", "RssShmem"))


def resident(pids: Sequence[int]) -> int:
    """Bytes of processes that are in memory now, mapped files with them."""
    return _status(pids, ("VmRSS",))


def _status(pids: Sequence[int], fields: Sequence[str]) -> int:
    total = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.split(":")[0] in fields)
    return total


def family(pid: int) -> list[int]:
    """A process and all that it has started."""
    found, at = [pid], 0
    while at < len(found):
        for path in Path(f"/proc/{found[at]}/task").glob("*/children"):
            try:
                found += [int(child) for child in path.read_text().split()]
            except OSError:
                continue
        at += 1
    return found if os.path.exists(f"/proc/{pid}") else []  # noqa: PTH110
