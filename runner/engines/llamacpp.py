"""llama.cpp: loads GGUF. By default the native server in the ``xllamacpp`` wheel, else a ``llama-server`` binary."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from artifact.errors import InvalidInput
from runner.engines.engine import BUNDLE, SOCKET, Command, EngineUnavailable, Options
from runner.engines.flags import AllowList, Flag
from runner.engines.installed import Installed
from runner.engines.interpreter import (
    Environment,
    environment_of,
    gpu_environment,
    interpreter_in,
    own_environment,
)
from runner.engines.task import EMBED, RERANK
from runner.model import Model
from runner.sandbox.rules import GPU_DEVICES, Rules

PARALLEL = 4
"""Requests served at a time where ``--parallel`` does not say otherwise; each has the whole context size."""

_LAUNCHER = Path(__file__).with_name("llamacpp_launcher.py")
_CACHE_TYPES = "f32|f16|bf16|q8_0|q5_1|q5_0|q4_1|q4_0|iq4_nl"

ALLOWED = AllowList(
    "llama.cpp",
    [
        *(Flag(name, "int", aliases) for name, aliases in (
            ("--parallel", ("-np",)), ("--batch-size", ("-b",)), ("--ubatch-size", ("-ub",)), ("--threads", ("-t",)),
            ("--threads-batch", ("-tb",)), ("--main-gpu", ("-mg",)), ("--n-predict", ("-n", "--predict")),
            ("--keep", ()), ("--cache-ram", ("-cram",)), ("--cache-reuse", ()), ("--seed", ("-s",)), ("--top-k", ()),
            ("--yarn-orig-ctx", ()), ("--reasoning-budget", ()), ("--repeat-last-n", ()), ("--n-gpu-layers", ("-ngl",
            "--gpu-layers")), ("--threads-http", ()), ("--ctx-checkpoints", ()), ("--embd-normalize", ()),
            ("--image-min-tokens", ()), ("--image-max-tokens", ()),
        )),
        *(Flag(name, "float", aliases) for name, aliases in (
            ("--temp", ("--temperature",)), ("--top-p", ()), ("--min-p", ()), ("--repeat-penalty", ()),
            ("--presence-penalty", ()), ("--frequency-penalty", ()), ("--rope-freq-base", ()),
            ("--rope-freq-scale", ()), ("--yarn-ext-factor", ()), ("--yarn-attn-factor", ()), ("--yarn-beta-slow", ()),
            ("--yarn-beta-fast", ()), ("--slot-prompt-similarity", ("-sps",)),
        )),
        *(Flag(name, "switch", aliases) for name, aliases in (
            ("--embeddings", ("--embedding",)), ("--reranking", ("--rerank",)), ("--no-cont-batching", ("-nocb",)),
            ("--context-shift", ()), ("--swa-full", ()), ("--kv-unified", ("-kvu",)), ("--no-kv-offload", ("-nkvo",)),
            ("--check-tensors", ()), ("--no-warmup", ()), ("--no-cache-prompt", ()), ("--mlock", ()), ("--no-mmap", ()),
            ("--no-op-offload", ()), ("--no-host", ()), ("--no-mmproj-offload", ()),
        )),
        Flag("--flash-attn", "on|off|auto", ("-fa",)),
        Flag("--cache-type-k", _CACHE_TYPES, ("-ctk",)),
        Flag("--cache-type-v", _CACHE_TYPES, ("-ctv",)),
        Flag("--split-mode", "none|layer|row", ("-sm",)),
        Flag("--tensor-split", "numbers", ("-ts",)),
        Flag("--pooling", "none|mean|cls|last|rank"),
        Flag("--numa", "distribute|isolate|numactl"),
        Flag("--rope-scaling", "none|linear|yarn"),
        Flag("--reasoning-format", "none|auto|deepseek|deepseek-legacy"),
        Flag("--chat-template", "word"),
        Flag("--chat-template-file", "file"),
        Flag("--chat-template-kwargs", "json"),
    ],
    {
        **dict.fromkeys(("--model", "-m", "--host", "--port", "--mmproj", "-mm", "--alias", "-a", "--metrics", "--fit",
                         "--slots", "--no-slots", "--offline", "--jinja", "--reuse-port"), "the runner sets it"),
        **dict.fromkeys(("--ctx-size", "-c"), "state it as --context-size"),
        **dict.fromkeys(("--log-file", "--slot-save-path", "--prompt-cache", "--path", "--media-path"),
                        "it makes the engine write or serve files"),
        **dict.fromkeys(("--model-url", "-mu", "--hf-repo", "-hf", "-hfr", "--hf-file", "--hf-token", "--docker-repo",
                         "--mmproj-url", "--rpc"), "it makes the engine use the network"),
        **dict.fromkeys(("--lora", "--lora-scaled"), "state adapters as --lora before --"),
        **dict.fromkeys(("--lora-init-without-apply", "--control-vector", "--grammar-file",
                         "--model-draft", "-md", "--json-schema-file", "-jf"),
                        "it loads a file that is not part of the verified model"),
        **dict.fromkeys(("--tools", "--mcp-servers-config", "--webui-mcp-proxy"), "it lets the engine run other code"),
        **dict.fromkeys(("--api-key", "--api-key-file", "--ssl-key-file", "--ssl-cert-file"),
                        "clients talk to the gateway, not to the engine"),
    },
)  # fmt: skip


class LlamaCpp:
    """The llama.cpp engine. `path` states one that is there: a ``llama-server`` binary, a Python interpreter that has
    xllamacpp, or the folder of its virtual environment; `installed` is what was installed for it."""

    name = "llama.cpp"
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
        program, version, reads = self._program()
        given = ALLOWED.in_bundle(options.flags, [file.path for file in model.files], BUNDLE)
        parallel, flags = _take(given, "--parallel", PARALLEL)
        if parallel < 1:
            raise InvalidInput(f"flag --parallel must be at least 1, not {parallel}")
        slots = 1 if "--kv-unified" in flags else parallel
        if options.task == EMBED and "--embeddings" not in flags and "--reranking" not in flags:
            flags = ("--embeddings", *flags)
        if options.task == RERANK and "--reranking" not in flags:
            flags = ("--reranking", *flags)
        if "--cache-ram" not in flags:
            flags = ("--cache-ram", "0", *flags)
        argv = [
            *program, "--model", f"{BUNDLE}/{model.weights[0]}",
            *(("--mmproj", f"{BUNDLE}/{model.projector}") if model.projector else ()),
            "--alias", options.name, "--host", SOCKET,
            "--ctx-size", str(options.context_size * slots), "--parallel", str(parallel),
            *_template(model, flags),
            *(part for item in options.adapters for part in ("--lora", f"{item.folder}/{item.weight}")),
            "--jinja", "--fit", "off", "--metrics", "--no-slots", "--no-webui", "--offline", *flags,
        ]  # fmt: skip
        env = {"LANG": "C.UTF-8", "PATH": "/usr/local/bin:/usr/bin:/bin", **gpu_environment(options.gpus)}
        rules = Rules(reads=reads, devices=() if options.gpus == "none" else GPU_DEVICES)
        return Command(self.name, version, argv, env, rules, self._installed.lock if self._installed else "")

    def _program(self) -> tuple[list[str], str, Sequence[str]]:
        """The program with what starts it, its version, and what it reads."""
        if self._path is not None:
            interpreter = interpreter_in(self._path)
            if interpreter is None:
                return _binary(self._path)
            found = environment_of(interpreter, "xllamacpp")
            if found is None:
                raise EngineUnavailable(
                    f"{interpreter} has no xllamacpp: install it there, or name another engine path"
                )
            return _launched(found)
        if self._installed is not None:
            found = environment_of(self._installed.interpreter, "xllamacpp")
            if found is None:
                raise EngineUnavailable(f"{self._installed.folder} is broken: remove the engine and install it again")
            return _launched(found)
        found = own_environment("xllamacpp")
        if found is not None:
            return _launched(found)
        binary = shutil.which("llama-server")
        if binary is None:
            raise EngineUnavailable(
                "no llama.cpp on this host: runner engine install llama.cpp, install the extra stowage[llama-cpp], put "
                "llama-server on PATH, or name one with --engine-path"
            )
        return _binary(Path(binary))


def _launched(found: Environment) -> tuple[list[str], str, Sequence[str]]:
    return [str(found.interpreter), "-I", str(_LAUNCHER)], found.label, (*found.folders, str(_LAUNCHER))


def _binary(path: Path) -> tuple[list[str], str, Sequence[str]]:
    path = path.absolute()  # a bare name would be looked up on PATH, and be another program
    # Its libraries lie beside it, or in a lib folder beside its folder.
    folder = path.resolve().parent
    near = (str(folder), str(folder.parent / "lib")) if folder.name == "bin" else (str(folder),)
    return [str(path)], binary_version(path), (str(path), *near)


def _template(model: Model, flags: Sequence[str]) -> tuple[str, ...]:
    if model.chat_template is None or "--chat-template" in flags or "--chat-template-file" in flags:
        return ()
    return ("--chat-template-file", f"{BUNDLE}/{model.chat_template}")


def _take(flags: Sequence[str], name: str, default: int) -> tuple[int, tuple[str, ...]]:
    """The number a flag states, and the flags without it."""
    if name not in flags:
        return default, tuple(flags)
    at = list(flags).index(name)
    return int(flags[at + 1]), (*flags[:at], *flags[at + 2 :])


def binary_version(path: Path) -> str:
    """What a ``llama-server`` says it is. Raises `EngineUnavailable` if it does not run."""
    try:
        result = subprocess.run([str(path), "--version"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise EngineUnavailable(f"{path} does not run: {error}") from None
    lines = (result.stderr + result.stdout).splitlines()
    return next((line.strip() for line in lines if line.startswith("version:")), "llama-server of unknown version")
