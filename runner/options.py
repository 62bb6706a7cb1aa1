"""Options that several commands of the runner take, and the engine flags after ``--``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

ENGINE_FLAGS = "runner.engine_flags"

StoreOption = Annotated[Path | None, typer.Option("--store", help="The store's folder.", envvar="STOWAGE_STORE")]
PolicyOption = Annotated[Path | None, typer.Option(help="The policy file; $STOWAGE_POLICY names a default.")]
PlainHttpOption = Annotated[bool, typer.Option(help="Use HTTP for hosts other than loopback too.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DriverOption = Annotated[
    str | None,
    typer.Option(help="llama.cpp, llama-cpp-python or vllm, or NAME==VERSION. Default: what the model needs."),
]
ContextOption = Annotated[
    int | None,
    typer.Option(help="Tokens of context for one request. Default: what the model was trained for, at most 4096."),
]
GpusOption = Annotated[str | None, typer.Option(help="GPUs the engine may use: all, none, or numbers such as 0,1.")]
EnginePathOption = Annotated[
    Path | None,
    typer.Option(help="An engine that is there: llama-server, a Python interpreter, or a virtual environment."),
]

SandboxOption = Annotated[
    str, typer.Option("--sandbox", help="What the kernel shall hold the engine to: auto, required or off.")
]


class EngineCommand(TyperCommand):
    """A command whose arguments after ``--`` are the engine's."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the engine's flags off before the runner's own arguments are read."""
        at = args.index("--") if "--" in args else len(args)
        ctx.meta[ENGINE_FLAGS] = tuple(args[at + 1 :])
        return super().parse_args(ctx, args[:at])

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The usage line, with the place of the engine's flags."""
        return [*super().collect_usage_pieces(ctx), "[-- ENGINE FLAGS]"]


def engine_flags(ctx: Any) -> tuple[str, ...]:
    """What stood after ``--``."""
    return tuple(ctx.meta.get(ENGINE_FLAGS, ()))
