"""A checkpoint: what is packed, opened and checked, whatever it came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from artifact.digest import Digest
from artifact.source import Source
from artifact.tensorindex import FileIndex
from artifact.weights.precision import Facts, size_label
from artifact.weights.tensor import WeightFile
from packager.content import Content, OnDisk, Stored
from packager.description import Description
from packager.files import ORDER, Kind
from packager.findings import Finding

CHAT_TEMPLATE = "chat_template.jinja"
"""Where an artifact has its chat template: the one top-level ``*.jinja`` that engines look for."""

ADAPTER_SUFFIX = "-lora"
"""Ends the canonical tag of an adapter."""


@dataclass(frozen=True)
class PackFile:
    """One file of the artifact: its path there, and its content. `expected` is the digest that somebody else (a hub)
    says it has; the bytes are checked against it when they are read. `size` is in bytes."""

    path: str
    kind: Kind
    content: Content
    expected: Digest | None = None

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return self.content.size

    @property
    def source(self) -> Source:
        """Its bytes."""
        return self.content.source

    @property
    def from_source(self) -> bool:
        """Whether the source has this very file; False for one that was made for the artifact."""
        return isinstance(self.content, OnDisk | Stored)


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint came from, if not from this machine's disk: what to name to get it again, the page about it
    if there is one, and the commit or the manifest's digest that says which state of it."""

    source: str
    url: str
    revision: str


@dataclass(frozen=True)
class Checkpoint:
    """A model as it was found. `place` is how the user named it, `files` what an artifact of it holds, in the order of
    its layers; `weights` are the headers of the model's own weight files among them, in that order. An `adapter` is no
    model by itself. `indexed` says what an artifact's own tensor index has of its files."""

    place: str
    files: tuple[PackFile, ...]
    weights: tuple[WeightFile, ...]
    facts: Facts
    description: Description
    chat_template: str | None
    findings: tuple[Finding, ...]
    origin: Origin | None = None
    adapter: bool = False
    indexed: Callable[[], Mapping[Digest, FileIndex]] = dict

    @property
    def name(self) -> str:
        """The model's name: the stated one, else made of architecture and size. Never a folder's."""
        stated = self.description.name
        return stated or f"{self.description.architecture or 'model'}-{size_label(self.facts.parameters)}"

    @property
    def sources(self) -> tuple[PackFile, ...]:
        """The files of the source among `files`."""
        return tuple(file for file in self.files if file.from_source)


def in_order(files: list[PackFile]) -> tuple[PackFile, ...]:
    """The files in the order of an artifact's layers: by kind, then by path."""
    return tuple(sorted(files, key=lambda file: (ORDER.index(file.kind), file.path)))
