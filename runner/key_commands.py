"""``runner key``: who may use an endpoint."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from artifact.terminal import JsonOption, note, print_json
from runner import report
from runner.keys import INFER, KEYS_VARIABLE, KeyFile

_commands = typer.Typer(
    help="Make, list and remove API keys.", no_args_is_help=True,
    epilog="Example: runner key add laptop --keys keys.json",
)  # fmt: skip
key_app = typer.Typer()
key_app.add_typer(_commands, name="key")

KeyFileOption = Annotated[Path, typer.Option("--keys", help="The file with the API keys.", envvar=KEYS_VARIABLE)]


@_commands.command("add", epilog="Example: runner key add laptop --scope infer --rate 60 --keys keys.json")
def key_add_command(
    name: Annotated[str, typer.Argument(help="What the key is called, in lists and metrics.")],
    keys: KeyFileOption,
    scope: Annotated[list[str] | None, typer.Option(help="infer (the default) or admin; give both for both.")] = None,
    rate: Annotated[int, typer.Option(min=0, help="Requests a minute; 0 for no limit.")] = 0,
) -> None:
    """Make a key and print it. It is not shown again: the file holds only its hash."""
    print(KeyFile(keys).add(name, scope or [INFER], rate))


@_commands.command("list", epilog="Example: runner key list --keys keys.json")
def key_list_command(keys: KeyFileOption, as_json: JsonOption = False) -> None:
    """List the keys in a file."""
    found = KeyFile(keys).keys()
    if as_json:
        print_json(
            [
                {"name": k.name, "id": k.id, "scopes": list(k.scopes), "rate": k.rate, "created": k.created}
                for k in found
            ]
        )
        return
    rows = [
        (
            key.name,
            key.id,
            ",".join(key.scopes),
            str(key.rate or "-"),
            time.strftime("%Y-%m-%d", time.gmtime(key.created)),
        )
        for key in found
    ]
    report.print_table(("NAME", "ID", "SCOPES", "RATE", "CREATED"), rows)


@_commands.command("remove", epilog="Example: runner key remove laptop --keys keys.json")
def key_remove_command(name: str, keys: KeyFileOption) -> None:
    """Remove a key; it counts no more from the next request on."""
    removed = KeyFile(keys).remove(name)
    note(f"removed key {removed.name} ({removed.id})")
