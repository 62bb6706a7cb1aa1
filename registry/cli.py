"""The ``registry`` command."""

from __future__ import annotations

from typing import ClassVar, NoReturn

import typer

from artifact.commands import LazyGroup
from artifact.terminal import VersionOption, run


class _Commands(LazyGroup):
    places: ClassVar = {
        "registry.serve_command:serve_app": ("serve",),
        "registry.gc.command:gc_app": ("gc",),
        "registry.fsck_command:fsck_app": ("fsck",),
        "registry.audit:audit_app": ("audit",),
        "registry.sync.command:sync_app": ("sync",),
        "registry.users:user_app": ("user",),
        "registry.config.command:config_app": ("config",),
        "registry.log.command:transparency_app": ("transparency",),
    }


app = typer.Typer(
    name="registry",
    cls=_Commands,
    help="An OCI registry for models and images over one object store: a folder, or an S3 bucket.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


@app.callback(epilog="Example: registry serve")
def _main(version: VersionOption = False) -> None: ...


def main() -> NoReturn:
    """Entry point of the ``registry`` command."""
    run(app)
