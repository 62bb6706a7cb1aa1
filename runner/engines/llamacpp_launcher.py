"""Runs xllamacpp's native llama-server, started by path in an interpreter that has xllamacpp.

Takes the flags of ``llama-server`` that the runner sets or lets pass, under the same names, and turns each into the
parameter it stands for. It knows nothing of the runner: the command line is all that passes between them.
"""

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xllamacpp as llama

_FLASH = {"off": "DISABLED", "on": "ENABLED", "auto": "AUTO"}
_REASONING = {"none": "NONE", "auto": "AUTO", "deepseek": "DEEPSEEK", "deepseek-legacy": "DEEPSEEK_LEGACY"}
Setter = Callable[[Any, str], None]


def _to(path: str, convert: Callable[[str], Any]) -> Setter:
    """Set the parameter at a dotted path."""
    *parents, name = path.split(".")

    def set_it(params: Any, text: str) -> None:
        for parent in parents:
            params = getattr(params, parent)
        setattr(params, name, convert(text))

    return set_it


def _member(enum: Any, prefix: str) -> Callable[[str], Any]:
    return lambda text: enum[prefix + text.upper()]


def _layers(text: str) -> int:
    return {"auto": -1, "all": -2}[text] if text in ("auto", "all") else int(text)


def _read(text: str) -> str:
    return Path(text).read_text(encoding="utf-8")


def _template_kwargs(text: str) -> dict[str, str]:
    return {key: json.dumps(value) for key, value in json.loads(text).items()}


def _split(params: Any, text: str) -> None:
    shares = [float(part) for part in text.split(",")]
    params.tensor_split = shares + [0.0] * (len(params.tensor_split) - len(shares))


def _adapter(params: Any, text: str) -> None:
    params.lora_adapters = [*params.lora_adapters, llama.CommonAdapterLoraInfo(text, 1.0)]


def _reranking(params: Any) -> None:
    params.embedding = True
    params.pooling_type = llama.llama_pooling_type.LLAMA_POOLING_TYPE_RANK


VALUED: dict[str, Setter] = {
    "--model": _to("model.path", str),
    "--mmproj": _to("mmproj.path", str),
    "--lora": _adapter,
    "--alias": _to("model_alias", lambda text: {text}),
    "--host": _to("hostnames", lambda text: [text]),
    "--ctx-size": _to("n_ctx", int),
    "--parallel": _to("n_parallel", int),
    "--cache-ram": _to("cache_ram_mib", int),
    "--fit": _to("fit_params", lambda text: text == "on"),
    "--chat-template": _to("chat_template", str),
    "--chat-template-file": _to("chat_template", _read),
    "--chat-template-kwargs": _to("default_template_kwargs", _template_kwargs),
    "--batch-size": _to("n_batch", int),
    "--ubatch-size": _to("n_ubatch", int),
    "--threads": _to("cpuparams.n_threads", int),
    "--threads-batch": _to("cpuparams_batch.n_threads", int),
    "--n-gpu-layers": _to("n_gpu_layers", _layers),
    "--main-gpu": _to("main_gpu", int),
    "--tensor-split": _split,
    "--split-mode": _to("split_mode", _member(llama.llama_split_mode, "LLAMA_SPLIT_MODE_")),
    "--n-predict": _to("n_predict", int),
    "--keep": _to("n_keep", int),
    "--cache-reuse": _to("n_cache_reuse", int),
    "--ctx-checkpoints": _to("n_ctx_checkpoints", int),
    "--threads-http": _to("n_threads_http", int),
    "--slot-prompt-similarity": _to("slot_prompt_similarity", float),
    "--embd-normalize": _to("embd_normalize", int),
    "--image-min-tokens": _to("image_min_tokens", int),
    "--image-max-tokens": _to("image_max_tokens", int),
    "--flash-attn": _to(
        "flash_attn_type", lambda text: llama.llama_flash_attn_type["LLAMA_FLASH_ATTN_TYPE_" + _FLASH[text]]
    ),
    "--cache-type-k": _to("cache_type_k", _member(llama.ggml_type, "GGML_TYPE_")),
    "--cache-type-v": _to("cache_type_v", _member(llama.ggml_type, "GGML_TYPE_")),
    "--pooling": _to("pooling_type", _member(llama.llama_pooling_type, "LLAMA_POOLING_TYPE_")),
    "--numa": _to("numa", _member(llama.ggml_numa_strategy, "GGML_NUMA_STRATEGY_")),
    "--rope-scaling": _to("rope_scaling_type", _member(llama.llama_rope_scaling_type, "LLAMA_ROPE_SCALING_TYPE_")),
    "--rope-freq-base": _to("rope_freq_base", float),
    "--rope-freq-scale": _to("rope_freq_scale", float),
    "--yarn-orig-ctx": _to("yarn_orig_ctx", int),
    "--yarn-ext-factor": _to("yarn_ext_factor", float),
    "--yarn-attn-factor": _to("yarn_attn_factor", float),
    "--yarn-beta-slow": _to("yarn_beta_slow", float),
    "--yarn-beta-fast": _to("yarn_beta_fast", float),
    "--reasoning-format": _to(
        "reasoning_format", lambda text: llama.common_reasoning_format["COMMON_REASONING_FORMAT_" + _REASONING[text]]
    ),
    "--reasoning-budget": _to("enable_reasoning", int),
    "--seed": _to("sampling.seed", int),
    "--temp": _to("sampling.temp", float),
    "--top-k": _to("sampling.top_k", int),
    "--top-p": _to("sampling.top_p", float),
    "--min-p": _to("sampling.min_p", float),
    "--repeat-last-n": _to("sampling.penalty_last_n", int),
    "--repeat-penalty": _to("sampling.penalty_repeat", float),
    "--presence-penalty": _to("sampling.penalty_present", float),
    "--frequency-penalty": _to("sampling.penalty_freq", float),
}
"""Flags with a value."""

SWITCHES: dict[str, Callable[[Any], None]] = {
    "--no-webui": lambda params: setattr(params, "ui", False),
    "--metrics": lambda params: setattr(params, "endpoint_metrics", True),
    "--no-slots": lambda params: setattr(params, "endpoint_slots", False),
    "--jinja": lambda params: setattr(params, "use_jinja", True),
    "--offline": lambda params: setattr(params, "offline", True),
    "--embeddings": lambda params: setattr(params, "embedding", True),
    "--reranking": _reranking,
    "--no-cont-batching": lambda params: setattr(params, "cont_batching", False),
    "--context-shift": lambda params: setattr(params, "ctx_shift", True),
    "--swa-full": lambda params: setattr(params, "swa_full", True),
    "--kv-unified": lambda params: setattr(params, "kv_unified", True),
    "--no-kv-offload": lambda params: setattr(params, "no_kv_offload", True),
    "--no-op-offload": lambda params: setattr(params, "no_op_offload", True),
    "--no-host": lambda params: setattr(params, "no_host", True),
    "--no-mmproj-offload": lambda params: setattr(params, "mmproj_use_gpu", False),
    "--check-tensors": lambda params: setattr(params, "check_tensors", True),
    "--no-warmup": lambda params: setattr(params, "warmup", False),
    "--no-cache-prompt": lambda params: setattr(params, "cache_prompt", False),
    "--mlock": lambda params: setattr(params, "load_mode", llama.llama_load_mode.LLAMA_LOAD_MODE_MLOCK),
    "--no-mmap": lambda params: setattr(params, "load_mode", llama.llama_load_mode.LLAMA_LOAD_MODE_NONE),
}
"""Flags without one."""


def parameters(arguments: list[str]) -> Any:
    """The parameters a command line states. Exits with status 2 for a flag that is not known here."""
    params = llama.CommonParams()
    rest = list(arguments)
    while rest:
        name = rest.pop(0)
        if name in SWITCHES:
            SWITCHES[name](params)
        elif name in VALUED and rest:
            VALUED[name](params, rest.pop(0))
        else:
            sys.exit(f"xllamacpp has no flag {name}")
    return params


def main() -> None:
    params = parameters(sys.argv[1:])
    try:
        _server = llama.Server(params)
    except RuntimeError:
        sys.exit("the model could not be loaded")  # llama.cpp has written why
    signal.pause()


if __name__ == "__main__":
    main()
