"""llama-cpp-python: loads GGUF, through its own server, started in its own environment and never at its defaults."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from artifact.errors import InvalidInput
from runner.engines.engine import BUNDLE, SOCKET, Command, EngineUnavailable, Options
from runner.engines.flags import AllowList, Flag
from runner.engines.installed import Installed
from runner.engines.interpreter import environment_of, gpu_environment, interpreter_in, own_environment
from runner.engines.task import GENERATE
from runner.model import Model
from runner.sandbox.rules import GPU_DEVICES, Rules

_LAUNCHER = Path(__file__).with_name("llamacpp_python_launcher.py")
_DISTRIBUTION = "llama-cpp-python"

ALLOWED = AllowList(
    _DISTRIBUTION,
    [
        *(Flag(name, "int", aliases) for name, aliases in (
            ("--n_threads", ("-t", "--threads")), ("--n_threads_batch", ("-tb", "--threads-batch")),
            ("--n_batch", ("-b", "--batch-size")), ("--n_ubatch", ("-ub", "--ubatch-size")),
            ("--n_gpu_layers", ("-ngl", "--n-gpu-layers")), ("--main_gpu", ("-mg", "--main-gpu")),
            ("--seed", ("-s",)), ("--last_n_tokens_size", ()), ("--type_k", ()), ("--type_v", ()),
        )),
        *(Flag(name, "float") for name in ("--rope_freq_base", "--rope_freq_scale")),
        *(Flag(name, "true|false") for name in ("--flash_attn", "--use_mmap", "--use_mlock", "--offload_kqv",
                                               "--logits_all", "--embedding", "--cache")),
        Flag("--tensor_split", "numbers"),
        Flag("--chat_format", "word"),
    ],
    {
        **dict.fromkeys(("--model", "--host", "--port", "--model_alias", "--interrupt_requests"), "the runner sets it"),
        "--n_ctx": "state it as --context-size",
        **dict.fromkeys(("--config_file", "--hf_tokenizer_config_path", "--hf_pretrained_model_name_or_path",
                         "--hf_model_repo_id", "--lora_path", "--lora_base", "--clip_model_path", "--draft_model",
                         "--chat_template_file"), "it loads what is not part of the verified model"),
        **dict.fromkeys(("--api_key", "--ssl_keyfile", "--ssl_certfile", "--root_path"),
                        "clients talk to the gateway, not to the engine"),
        "--cache_type": "it makes the engine write files",
    },
)  # fmt: skip


class LlamaCppPython:
    """The llama-cpp-python engine: one request at a time. `path` states the interpreter that has it, or the folder of
    its virtual environment; `installed` is what was installed for it."""

    name = _DISTRIBUTION
    formats = frozenset(("gguf",))
    start_seconds = 600.0

    def __init__(self, path: Path | None = None, installed: Installed | None = None) -> None:
        self._path = path
        self._installed = installed

    def check_flags(self, flags: Sequence[str]) -> tuple[str, ...]:
        """`flags` in one canonical spelling. Raises `FlagDenied`."""
        return ALLOWED.check(flags)

    def command(self, model: Model, options: Options) -> Command:
        """The exact command. Raises `EngineUnavailable`."""
        if self._path is None and self._installed is None:
            found = own_environment(_DISTRIBUTION)
        else:
            interpreter = self._installed.interpreter if self._path is None and self._installed else None
            interpreter = interpreter or interpreter_in(self._path or Path())
            if interpreter is None:
                raise InvalidInput(f"{self._path} is no Python interpreter: name the one that has llama-cpp-python")
            found = environment_of(interpreter, _DISTRIBUTION)
        if found is None:
            raise EngineUnavailable(
                "no llama-cpp-python here: runner engine install llama-cpp-python (it compiles, which takes minutes), "
                "or name an environment that has it with --engine-path"
            )
        pooled = options.task != GENERATE and "--embedding" not in options.flags
        argv = [
            str(found.interpreter), "-I", str(_LAUNCHER), "--model", f"{BUNDLE}/{model.weights[0]}",
            "--model_alias", options.name, "--uds", SOCKET, "--n_ctx", str(options.context_size),
            "--interrupt_requests", "false", *(("--embedding", "true") if pooled else ()), *options.flags,
        ]  # fmt: skip
        env = {"HOME": ".", "LANG": "C.UTF-8", "PATH": "/usr/local/bin:/usr/bin:/bin", **gpu_environment(options.gpus)}
        rules = Rules(reads=(*found.folders, str(_LAUNCHER)), devices=() if options.gpus == "none" else GPU_DEVICES)
        return Command(self.name, found.label, argv, env, rules, self._installed.lock if self._installed else "")
