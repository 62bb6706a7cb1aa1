"""What every engine has in common: it turns a model and options into one exact command line.

A command is a pure function of the model, the options and the engine's version. It names files relative to the folder
it is started in, where ``bundle`` is the model's folder and ``engine.sock`` the socket it shall listen on, so that it
reads the same on every host.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from artifact.errors import InvalidInput, StowageError
from runner.engines.task import GENERATE
from runner.model import Model
from runner.sandbox.rules import Rules

SOCKET = "engine.sock"
"""The unix socket an engine listens on, relative to the folder it runs in."""

BUNDLE = "bundle"
"""The model's files, relative to the folder an engine runs in."""

DEFAULT_CONTEXT = 4096
"""Tokens of context where neither the user nor the model says less."""


class EngineUnavailable(StowageError):
    """The engine that the model needs is not on this host."""

    code = "engine-unavailable"


@dataclass(frozen=True)
class AdapterFiles:
    """One LoRA adapter: the `name` clients ask for, the `folder` with its files, relative to the one the engine runs
    in, its one `weight` file there, and its `rank` where its format says it."""

    name: str
    folder: str
    weight: str
    rank: int = 0


@dataclass(frozen=True)
class Options:
    """How a model shall run.

    `name` is what the engine calls it in its answers; `context_size` is in tokens for one request; `flags` are the
    engine's own, already checked against its allow-list; `gpus` is ``all``, ``none``, numbers such as ``0,1``, or None
    where the user said nothing; `task` is what the model is for (`runner.engines.task`); `adapters` are applied to it;
    `stream` says that it is loaded while its files still arrive.
    """

    name: str
    context_size: int
    flags: Sequence[str] = ()
    gpus: str | None = None
    task: str = GENERATE
    adapters: Sequence[AdapterFiles] = ()
    stream: bool = False


@dataclass(frozen=True)
class Command:
    """One engine's exact command line and the whole environment it gets. `engine` and `version` say what runs, `lock`
    from which lock file it was installed, if it was. `rules` are what it may reach; a relative path in them is relative
    to the folder it runs in."""

    engine: str
    version: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    rules: Rules = field(default_factory=Rules)
    lock: str = ""

    def __str__(self) -> str:
        """The command as a shell line that starts from an empty environment."""
        values = [f"{key}={value}" for key, value in sorted(self.env.items())]
        return shlex.join(["env", "-i", *values, *self.argv])

    def to_json(self) -> dict[str, Any]:
        """The command for scripts and for the record."""
        env = dict(sorted(self.env.items()))
        return {
            "engine": self.engine,
            "version": self.version,
            "lock": self.lock,
            "argv": list(self.argv),
            "env": env,
            "sandbox": self.rules.mode,
        }


class Engine(Protocol):
    """A program that serves a model over the OpenAI API on a unix socket and answers ``GET /health`` with 200 when it
    is ready."""

    @property
    def name(self) -> str:
        """``llama.cpp`` or ``vllm``: what ``--driver`` takes."""

    @property
    def formats(self) -> frozenset[str]:
        """The weight formats it loads: ``gguf``, ``safetensors``."""

    @property
    def start_seconds(self) -> float:
        """How long it may take from its start until it is ready."""

    @property
    def adapters_apart(self) -> bool:
        """Whether a request chooses between the model and its adapters by name; else they are always applied."""

    def check_flags(self, flags: Sequence[str], *, code: bool = False) -> tuple[str, ...]:
        """`flags` in one canonical spelling. `code` says that the policy lets code of the model run. Raises
        `InvalidInput` for one that is not on the allow-list, `FlagNotGranted` for one that needs `code`."""

    def command(self, model: Model, options: Options) -> Command:
        """The exact command. Raises `EngineUnavailable` if the engine is not on this host."""


def context_size(stated: int | None, model: Model, flags: Sequence[str]) -> int:
    """Tokens of context for one request: what the user states, else what the model was trained for up to
    `DEFAULT_CONTEXT`. Raises `InvalidInput` for more than the model was trained for, unless a flag scales positions."""
    trained = model.config.context_length
    if stated is None:
        return min(trained, DEFAULT_CONTEXT) if trained else DEFAULT_CONTEXT
    if stated < 1:
        raise InvalidInput(f"--context-size must be at least 1, not {stated}")
    scaled = any(flag.replace("_", "-").startswith(("--rope-", "--yarn-", "--hf-overrides")) for flag in flags)
    if trained and stated > trained and not scaled:
        raise InvalidInput(f"--context-size {stated} is more than the {trained} tokens the model was trained for")
    return stated
