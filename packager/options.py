"""What several commands of the packager take, and what they print last."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from artifact.descriptor import Descriptor
from artifact.reference import Reference
from packager.production import LLAMA_CPP, OWN


class Converter(StrEnum):
    """Programs that convert a checkpoint."""

    OWN = OWN
    LLAMA_CPP = LLAMA_CPP


PlainHttpOption = Annotated[bool, typer.Option("--plain-http", help="Speak HTTP to the registry, loopback or not.")]
FileFilterOption = Annotated[
    list[str] | None,
    typer.Option("--file-filter", metavar="GLOB", help="Take only files that match; after ! leave those out."),
]
DeltaFromOption = Annotated[
    str | None,
    typer.Option("--delta-from", metavar="REF", help="An earlier version in the target's registry: send what is new."),
]

ConverterOption = Annotated[Converter, typer.Option(help="Who converts a checkpoint.")]
ConverterPathOption = Annotated[
    str, typer.Option(metavar="FOLDER", help="The environment that holds llama.cpp's converter.")
]
AllowOption = Annotated[list[str] | None, typer.Option(metavar="FINDING", help="Pack despite this finding.")]


def print_pinned(reference: Reference, descriptor: Descriptor) -> None:
    """The last line of a command that made or moved an artifact: what to ask for to get these very bytes."""
    print(reference.with_digest(descriptor.digest), flush=True)
