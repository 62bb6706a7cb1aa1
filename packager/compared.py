"""How ``packager diff`` is shown: a table for people, JSON for scripts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from artifact.terminal import JsonOption, print_json, progress_bars, table_console
from packager.diff import Change, Difference, Line, compare
from packager.options import PlainHttpOption
from packager.source import open_source

_COLOURS = {Change.CHANGED: "yellow", Change.ADDED: "green", Change.REMOVED: "red", Change.SAME: "dim"}
_MOST = 40
"""How many lines of a kind are shown; JSON has all."""
_WIDEST = 60

diff_app = typer.Typer()


@diff_app.command("diff")
def diff_command(
    before: Annotated[str, typer.Argument(metavar="A", help="A folder, a .gguf file, hf://ORG/NAME@REV, or REF.")],
    after: Annotated[str, typer.Argument(metavar="B", help="The same, to compare with it.")],
    json: JsonOption = False,
    plain_http: PlainHttpOption = False,
) -> None:
    """Show what differs between two models: metadata, files, tensors, and the bytes a delta pull would move.

    Of an artifact in a registry only headers are read, and tensors that B and A may have in common.

    Example: packager diff localhost:5000/ai/smollm2:135M-F16 ./SmolLM2-135M-Instruct
    """
    first, second = (open_source(text, plain_http=plain_http) for text in (before, after))
    with progress_bars() as progress:
        found = compare(first, second, progress)
    if json:
        print_json(found.to_json())
    else:
        show(found, table_console())


def show(found: Difference, console: Console) -> None:
    """Print the differences."""
    if found.same:
        console.print("no difference")
    for title, lines in (("metadata", found.metadata), ("files", found.files), ("tensors", found.tensors)):
        counts = ", ".join(
            f"{number:,} {change}" for change in Change if (number := sum(line.change is change for line in lines))
        )
        console.print(Text.assemble((title, "bold"), f": {counts or 'none'}"))
        changed = [line for line in lines if line.change is not Change.SAME]
        if changed:
            console.print(_table(changed[:_MOST]))
        if len(changed) > _MOST:
            console.print(f"  … {len(changed) - _MOST:,} more (--json lists all)")
    share = f" ({found.moved / found.size:.1%})" if found.size else ""
    console.print(f"a delta pull would move {found.moved:,} of {found.size:,} bytes{share}")


def _table(lines: Sequence[Line]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(no_wrap=True)
    for line in lines:
        table.add_row(
            Text(f"  {line.change}", style=_COLOURS[line.change]),
            _text(line.name),
            _text(line.before),
            _text(line.after),
        )
    return table


def _text(value: str) -> Text:
    """Text from elsewhere, in which nothing steers the terminal."""
    shown = value if len(value) <= _WIDEST else value[:_WIDEST] + "…"
    return Text("".join(char if char.isprintable() else " " for char in shown), overflow="fold")
