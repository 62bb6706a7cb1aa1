"""llama-cpp-python: loads GGUF, through its own server, started in its own environment and never at its defaults."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from artifact.errors import InvalidInput
from runner.engines.engine import BUNDLE, SOCKET, AdapterFiles, Command, EngineUnavailable, Options
from runner.engines.flags import AllowList, Flag
from runner.engines.installed import Installed
from runner.engines.interpreter import environment_of, gpu_environment, interpreter_in, own_environment
from runner.engines.task import GENERATE
from runner.model import Model
from runner.sandbox.rules import GPU_DEVICES, Rules

_LAUNCHER = Path(__file__).with_name("llamacpp_python_launcher.py")
_DISTRIBUTION = "llama-cpp-python"

_INTEGERS = (
    ("--n_threads", ("-t", "--threads")), ("--n_threads_batch", ("-tb", "--threads-batch")),
    ("--n_batch", ("-b", "--batch-size")), ("--n_ubatch", ("-ub", "--ubatch-size")),
    ("--n_gpu_layers", ("-ngl", "--n-gpu-layers")), ("--main_gpu", ("-mg", "--main-gpu")), ("--seed", ("-s",)),
    ("--split_mode", ()), ("--last_n_tokens_size", ()), ("--type_k", ()), ("--type_v", ()),
    ("--rope_scaling_type", ()), ("--yarn_orig_ctx", ()), ("--cache_size", ()),
)  # fmt: skip
_FLOATS = (
    "--rope_freq_base", "--rope_freq_scale", "--yarn_ext_factor", "--yarn_attn_factor", "--yarn_beta_fast",
    "--yarn_beta_slow",
)  # fmt: skip
_BOOLEANS = (
    "--flash_attn", "--use_mmap", "--use_mlock", "--offload_kqv", "--logits_all", "--embedding", "--cache", "--numa",
    "--mul_mat_q", "--verbose", "--disable_ping_events",
)  # fmt: skip

DENIED = {
    "the runner sets it": (
        "--model", "--host", "--port", "--uds", "--model_alias", "--interrupt_requests", "--root_path",
    ),
    "state it as --context-size": ("--n_ctx",),
    "state adapters as --lora before --": ("--lora_path", "--lora_base"),
    "it loads what is not part of the verified model": (
        "--hf_tokenizer_config_path", "--hf_pretrained_model_name_or_path", "--hf_model_repo_id", "--clip_model_path",
        "--draft_model", "--draft_model_num_pred_tokens", "--config_file",
    ),
    "it contradicts what the verified model says of itself": ("--kv_overrides", "--vocab_only"),
    "it makes the engine use the network": ("--rpc_servers",),
    "clients talk to the gateway, not to the engine": ("--api_key", "--ssl_keyfile", "--ssl_certfile"),
    "it makes the engine write files": ("--cache_type",),
}  # fmt: skip
"""Why a setting is denied, and the settings that are denied for it."""

KNOWN_VERSION = "0.3.36"
"""The version whose settings are all listed."""

ALLOWED = AllowList(
    _DISTRIBUTION,
    [
        *(Flag(name, "int", aliases) for name, aliases in _INTEGERS),
        *(Flag(name, "float") for name in _FLOATS),
        *(Flag(name, "true|false") for name in _BOOLEANS),
        Flag("--tensor_split", "numbers"),
        Flag("--chat_format", "word"),
        Flag("--chat_template_file", "file", ("--chat-template-file",)),
        Flag("--chat_template_kwargs", "json", ("--chat-template-kwargs",)),
    ],
    {name: reason for reason, names in DENIED.items() for name in names},
)
_NOT_THE_DEFAULT = (("--logits_all", "false"), ("--use_mlock", "false"))
"""By default every position's logits are kept, which for a large vocabulary takes more memory than the model, and all
of the model is locked into memory."""


class LlamaCppPython:
    """The llama-cpp-python engine: one request at a time. `path` states the interpreter that has it, or the folder of
    its virtual environment; `installed` is what was installed for it."""

    name = _DISTRIBUTION
    formats = frozenset(("gguf",))
    start_seconds = 600.0
    adapters_apart = False

    def __init__(self, path: Path | None = None, installed: Installed | None = None) -> None:
        self._path = path
        self._installed = installed

    def check_flags(self, flags: Sequence[str], *, code: bool = False) -> tuple[str, ...]:
        """`flags` in one canonical spelling. Raises `FlagDenied`, `FlagNotGranted`."""
        return ALLOWED.check(flags, code=code)

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
        if model.projector is not None:
            raise InvalidInput(f"llama-cpp-python is built without projectors, and this model has {model.projector}")
        flags = ALLOWED.in_bundle(options.flags, [file.path for file in model.files], BUNDLE)
        pooled = options.task != GENERATE and "--embedding" not in flags
        argv = [
            str(found.interpreter), "-I", str(_LAUNCHER), "--model", f"{BUNDLE}/{model.weights[0]}",
            "--model_alias", options.name, "--uds", SOCKET, "--n_ctx", str(options.context_size),
            "--interrupt_requests", "false", *(("--embedding", "true") if pooled else ()),
            *(part for name, value in _NOT_THE_DEFAULT if name not in flags for part in (name, value)),
            *_template(model, flags), *_adapter(options.adapters), *flags,
        ]  # fmt: skip
        env = {"HOME": ".", "LANG": "C.UTF-8", "PATH": "/usr/local/bin:/usr/bin:/bin", **gpu_environment(options.gpus)}
        rules = Rules(reads=(*found.folders, str(_LAUNCHER)), devices=() if options.gpus == "none" else GPU_DEVICES)
        return Command(self.name, found.label, argv, env, rules, self._installed.lock if self._installed else "")


def _template(model: Model, flags: Sequence[str]) -> tuple[str, ...]:
    if model.chat_template is None or "--chat_format" in flags or "--chat_template_file" in flags:
        return ()
    return ("--chat_template_file", f"{BUNDLE}/{model.chat_template}")


def _adapter(adapters: Sequence[AdapterFiles]) -> tuple[str, ...]:
    if len(adapters) > 1:
        raise InvalidInput(f"llama-cpp-python applies one adapter, not {len(adapters)}: use --driver llama.cpp")
    return ("--lora_path", f"{adapters[0].folder}/{adapters[0].weight}") if adapters else ()
