"""What several commands of the runner take: options, how a model shall run, and the engine flags after ``--``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from runner.completion import complete_reference
from runner.wishes import SANDBOX_VARIABLE, Wishes

_ENGINE_FLAGS = "runner.engine_flags"
_REFERENCE_HELP = "[HOST/]NAME[:TAG][@DIGEST] or oci:PATH:TAG"

OneReference = Annotated[str, typer.Argument(metavar="REF", help=_REFERENCE_HELP, autocompletion=complete_reference)]
References = Annotated[
    list[str], typer.Argument(metavar="REF", help=_REFERENCE_HELP, autocompletion=complete_reference)
]

StoreOption = Annotated[Path | None, typer.Option("--store", help="The store's folder.", envvar="STOWAGE_STORE")]
PolicyOption = Annotated[Path | None, typer.Option(help="The policy file; $STOWAGE_POLICY names a default.")]
PlainHttpOption = Annotated[bool, typer.Option("--plain-http", help="Use HTTP for hosts other than loopback too.")]
FilesOption = Annotated[
    list[Path] | None, typer.Option("--file", "-f", help="A Compose file; later ones over earlier ones.")
]

StreamOption = Annotated[
    bool,
    typer.Option("--stream", help="Experimental: let vLLM load the model while it still arrives, proven part by part."),
]

SandboxOption = Annotated[
    str,
    typer.Option(
        "--sandbox", help="What the kernel shall hold engines to: auto, required or off.", envvar=SANDBOX_VARIABLE
    ),
]

_WISHES: dict[str, Any] = {
    "driver": Annotated[
        str | None,
        typer.Option(help="llama.cpp, llama-cpp-python or vllm, or NAME==VERSION. Default: what the model needs."),
    ],
    "context_size": Annotated[
        int | None,
        typer.Option(help="Tokens of context for one request. Default: what the model was trained for, at most 4096."),
    ],
    "gpus": Annotated[str | None, typer.Option(help="GPUs the engine may use: all, none, or numbers such as 0,1.")],
    "engine_path": Annotated[
        Path | None,
        typer.Option(help="An engine that is there: llama-server, a Python interpreter, or a virtual environment."),
    ],
    "sandbox": SandboxOption,
    "lora": Annotated[
        list[str] | None, typer.Option(help="A LoRA adapter for the model, [NAME=]REF; may be repeated.")
    ],
}


class EngineCommand(TyperCommand):
    """A command whose arguments after ``--`` are the engine's."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the engine's flags off before the runner's own arguments are read."""
        at = args.index("--") if "--" in args else len(args)
        ctx.meta[_ENGINE_FLAGS] = tuple(args[at + 1 :])
        return super().parse_args(ctx, args[:at])

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The usage line, with the place of the engine's flags."""
        return [*super().collect_usage_pieces(ctx), "[-- ENGINE FLAGS]"]


def engine_flags(ctx: Any) -> tuple[str, ...]:
    """What stood after ``--``."""
    return tuple(ctx.meta.get(_ENGINE_FLAGS, ()))


def takes_wishes(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options about how a model runs, in the place of its parameter ``wishes``, which gets what they
    say. The command is an `EngineCommand`, and has a parameter ``ctx``."""
    own = inspect.signature(command, eval_str=True)
    defaults = Wishes()
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=getattr(defaults, name), annotation=option)
        for name, option in _WISHES.items()
    ]
    parameters = [item for each in own.parameters.values() for item in (options if each.name == "wishes" else [each])]

    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        stated = {name: given.pop(name) for name in _WISHES}
        stated["lora"] = tuple(stated["lora"] or ())
        if stated["engine_path"] is not None:  # a later start, from another folder, means the same engine
            stated["engine_path"] = stated["engine_path"].absolute()
        command(**given, wishes=Wishes(**stated, flags=engine_flags(given["ctx"])))

    with_options.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {item.name: item.annotation for item in parameters}
    return with_options
