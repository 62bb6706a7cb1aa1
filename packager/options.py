"""What several commands of the packager take, and what they print last."""

from __future__ import annotations

from typing import Annotated

import typer

from artifact.descriptor import Descriptor
from artifact.reference import Reference

PlainHttpOption = Annotated[bool, typer.Option("--plain-http", help="Speak HTTP to the registry, loopback or not.")]
FileFilterOption = Annotated[
    list[str] | None,
    typer.Option("--file-filter", metavar="GLOB", help="Take only files that match; after ! leave those out."),
]
DeltaFromOption = Annotated[
    str | None,
    typer.Option("--delta-from", metavar="REF", help="An earlier version in the target's registry: send what is new."),
]


def print_pinned(reference: Reference, descriptor: Descriptor) -> None:
    """The last line of a command that made or moved an artifact: what to ask for to get these very bytes."""
    print(reference.with_digest(descriptor.digest), flush=True)
