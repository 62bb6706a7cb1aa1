"""A checkpoint: what is packed, opened and checked, whatever it came from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from artifact.source import Source, bytes_source, file_source
from artifact.weights.precision import Facts, size_label
from artifact.weights.tensor import WeightFile
from packager.description import Description
from packager.files import ORDER, Kind
from packager.findings import Finding

CHAT_TEMPLATE = "chat_template.jinja"
"""Where an artifact has its chat template: the one top-level ``*.jinja`` that engines look for."""


@dataclass(frozen=True)
class PackFile:
    """One file of the artifact: its path there, and its content on disk or in memory. `size` is in bytes."""

    path: str
    kind: Kind
    content: Path | bytes
    size: int

    @classmethod
    def on_disk(cls, path: str, kind: Kind, location: Path) -> PackFile:
        """The file at `location`."""
        return cls(path, kind, location, location.stat().st_size)

    @classmethod
    def in_memory(cls, path: str, kind: Kind, data: bytes) -> PackFile:
        """A file made of `data`."""
        return cls(path, kind, data, len(data))

    @property
    def source(self) -> Source:
        """Its bytes."""
        return bytes_source(self.content) if isinstance(self.content, bytes) else file_source(self.content)


@dataclass(frozen=True)
class Checkpoint:
    """A model as it was found. `place` is how the user named it, `folder` where a converter can read it (None for
    GGUF files), `files` what an artifact of it holds, in the order of its layers."""

    place: str
    files: tuple[PackFile, ...]
    weights: tuple[WeightFile, ...]
    facts: Facts
    description: Description
    chat_template: str | None
    findings: tuple[Finding, ...]
    folder: Path | None = None

    @property
    def name(self) -> str:
        """The model's name: the stated one, else made of architecture and size. Never a folder's."""
        stated = self.description.name
        return stated or f"{self.description.architecture or 'model'}-{size_label(self.facts.parameters)}"

    def with_origin(self, place: str, source_url: str, revision: str, name: str) -> Checkpoint:
        """The checkpoint, known to come from a public place, where it is called `name`."""
        description = replace(self.description, source_url=source_url, revision=revision, name=name)
        return replace(self, place=place, description=description)


def in_order(files: list[PackFile]) -> tuple[PackFile, ...]:
    """The files in the order of an artifact's layers: by kind, then by path."""
    return tuple(sorted(files, key=lambda file: (ORDER.index(file.kind), file.path)))
