"""``packager inspect``: what a checkpoint or an artifact is."""

from __future__ import annotations

from typing import Annotated

import typer

from artifact.errors import InvalidInput
from artifact.locate import open_repository
from artifact.reference import Reference
from artifact.terminal import JsonOption, print_json, progress_bars, table_console
from packager.inspect import card_of, card_of_artifact, show
from packager.options import FileFilterOption, PlainHttpOption
from packager.packed import open_packed
from packager.source import is_reference, is_source, open_artifact, open_source

inspect_app = typer.Typer()


@inspect_app.command("inspect")
def inspect_command(
    source: Annotated[str, typer.Argument(help="A folder, a .gguf file, hf://ORG/NAME@REV, or a reference.")],
    deep: Annotated[
        bool, typer.Option("--deep", help="Read all weights: numbers that are none, zeros, duplicates.")
    ] = False,
    json: JsonOption = False,
    file_filter: FileFilterOption = None,
    plain_http: PlainHttpOption = False,
) -> None:
    """Show what a checkpoint or an artifact is: architecture, size, precision, licence, files, findings.

    Example: packager inspect ./SmolLM2-135M-Instruct
    """
    if is_source(source) or not is_reference(source):
        opened = open_source(source, file_filter or ())
        card, checkpoint = card_of(opened), opened if deep else None
    else:
        if file_filter and not deep:
            raise InvalidInput("--file-filter chooses, of an artifact, the files that --deep reads: add --deep")
        reference = Reference.parse(source)
        packed = open_packed(open_repository(reference, plain_http=plain_http), reference)
        card = card_of_artifact(packed)
        checkpoint = open_artifact(packed, file_filter or ()) if deep else None
    if checkpoint is not None:
        from packager.deep import deep_findings  # numpy takes a while to load

        with progress_bars() as progress:
            card = card.with_findings(deep_findings(checkpoint, progress))
    if json:
        print_json(card.to_json())
    else:
        show(card, table_console())
