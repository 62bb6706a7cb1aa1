"""``registry config``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from artifact.terminal import print_json
from registry.access.tokens import generate_key
from registry.config.files import check_files
from registry.config.read import load

configuration = typer.Typer(
    name="config", help="Check the configuration, and make what it needs.", no_args_is_help=True
)


@configuration.command(epilog="Example: registry config check /etc/stowage/registry.toml")
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="registry.toml")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Read a configuration and every file it names as the server would, and start nothing."""
    config = load(file)
    check_files(config)
    if as_json:
        print_json({"file": str(file), "valid": True, "restricted": config.restricted, "rules": len(config.access)})
    elif config.restricted:
        typer.echo(f"{file}: good; {len(config.access)} access rules")
    else:
        typer.echo(f"{file}: good; no access rules, so everyone who can connect may do everything")


@configuration.command("token-key", epilog="Example: registry config token-key /etc/stowage/token.key")
def token_key(file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it; must not exist.")]) -> None:
    """Make the private key that registry tokens are signed with, for [auth.token] key. All replicas share it."""
    generate_key(file)
    typer.echo(f"wrote {file}")
