"""``registry config``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from artifact.terminal import print_json
from registry.access.tokens import generate_key
from registry.config.files import check_files
from registry.config.read import load
from registry.listen import is_loopback, listen_address

configuration = typer.Typer(
    name="config",
    help="Check the configuration, and make what it needs.",
    epilog="Example: registry config check registry.toml",
    no_args_is_help=True,
)
config_app = typer.Typer()
config_app.add_typer(configuration)


@configuration.command(epilog="Example: registry config check /etc/stowage/registry.toml")
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="registry.toml")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Read a configuration and every file it names as the server would, and start nothing."""
    config = load(file)
    check_files(config)
    host, _ = listen_address(config.server.listen)
    open_to_all = not config.restricted and not is_loopback(host)
    if as_json:
        said = {"restricted": config.restricted, "rules": len(config.access), "needs_insecure_anonymous": open_to_all}
        print_json({"file": str(file), "valid": True, **said})
    elif config.restricted:
        typer.echo(f"{file}: good; {len(config.access)} access rules")
    elif open_to_all:
        typer.echo(
            f"{file}: good, but without access rules it listens on {host}, where everyone who can connect may do "
            "everything: registry serve takes it with --insecure-anonymous only"
        )
    else:
        typer.echo(f"{file}: good; no access rules, so everyone who can connect may do everything")


@configuration.command("token-key", epilog="Example: registry config token-key /etc/stowage/token.key")
def token_key(file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it; must not exist.")]) -> None:
    """Make the private key that registry tokens are signed with, for [auth.token] key. All replicas share it."""
    generate_key(file)
    typer.echo(f"wrote {file}")
