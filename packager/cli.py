"""The `packager` command."""

from __future__ import annotations

from typing import ClassVar, NoReturn

import typer

from artifact.commands import LazyGroup
from artifact.terminal import VersionOption, run


class _Commands(LazyGroup):
    places: ClassVar = {
        "packager.inspect_command:inspect_app": ("inspect",),
        "packager.pack_command:pack_app": ("pack",),
        "packager.push_command:push_app": ("push", "copy"),
        "packager.sign_commands:sign_app": ("sign", "attest", "keygen"),
        "packager.compared:diff_app": ("diff",),
        "packager.rebuild:verify_app": ("verify",),
        "packager.quantize.command:imatrix_app": ("imatrix",),
        "packager.login_commands:login_app": ("login", "logout"),
    }


app = typer.Typer(
    name="packager",
    cls=_Commands,
    help="Make model artifacts: inspect a checkpoint, pack it, push it, sign it.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(epilog="Example: packager pack ./checkpoint registry.example/team/model --push --sign team.key")
def _root(version: VersionOption = False) -> None: ...


def main() -> NoReturn:
    """Run the command line."""
    run(app)
