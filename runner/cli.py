"""The ``runner`` command."""

from __future__ import annotations

import os
from typing import ClassVar, NoReturn

import typer

from artifact.commands import LazyGroup
from artifact.terminal import VersionOption
from artifact.terminal import run as run_app
from runner.completion import whole_words


class _Commands(LazyGroup):
    places: ClassVar = {
        "runner.model_commands:model_app": ("pull", "verify", "list", "rm"),
        "runner.inspect_command:inspect_app": ("inspect",),
        "runner.run_command:run_app": ("run",),
        "runner.serve_command:serve_app": ("serve",),
        "runner.served_commands:served_app": ("ps", "stop", "logs"),
        "runner.key_commands:key_app": ("key",),
        "runner.compose.commands:compose_app": ("up", "down", "lock"),
        "runner.store_commands:store_app": ("save", "load", "df", "prune", "fsck"),
        "runner.engines.commands:engine_app": ("engine",),
    }


app = typer.Typer(
    cls=_Commands,
    help="Pull models by digest, verify them against a policy, and serve them.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(epilog="Example: runner serve registry.example/team/model:4B-Q4_K_M --policy policy.yaml")
def _options(version: VersionOption = False) -> None: ...


def main() -> NoReturn:
    """Run the command line."""
    with whole_words(os.environ):
        run_app(app)
