"""What a checkpoint or an artifact is: a card for people, and the same for scripts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import DigestMismatch, InvalidInput, Malformed, NotFound
from artifact.tensorindex.attach import index_digest
from artifact.weights.precision import Facts, disagreement, facts_of
from packager.checkpoint import ADAPTER_SUFFIX, CHAT_TEMPLATE, Checkpoint
from packager.findings import Finding, Severity
from packager.packed import Packed
from packager.source import open_artifact

_BAR = 28
_COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.INFO: "dim"}


@dataclass(frozen=True)
class FileLine:
    """One file: its path, what it is, its size in bytes, and its digest where it is known."""

    path: str
    kind: str
    size: int
    digest: Digest | None = None


@dataclass(frozen=True)
class Card:
    """Everything `inspect` reports. `digest` is that of an artifact's manifest, `base` that of the model an adapter is
    for, `index` that of the tensor index, which has so many `chunks`; a checkpoint has none."""

    place: str
    name: str
    architecture: str
    context_length: int | None
    licenses: tuple[str, ...]
    source_url: str
    revision: str
    facts: Facts
    tensors: int
    chat_template: bool
    files: tuple[FileLine, ...]
    findings: tuple[Finding, ...]
    digest: Digest | None = None
    base: str = ""
    adapter: bool = False
    index: Digest | None = None
    chunks: int = 0

    @property
    def tag(self) -> str:
        """The canonical tag."""
        return self.facts.tag + (ADAPTER_SUFFIX if self.adapter else "")

    def with_findings(self, findings: Sequence[Finding]) -> Card:
        """The card with more findings."""
        return replace(self, findings=(*self.findings, *findings))

    def to_json(self) -> dict[str, Any]:
        """The card for scripts."""
        return {
            "source": self.place,
            "digest": str(self.digest) if self.digest else None,
            "name": self.name,
            "architecture": self.architecture,
            "format": self.facts.format,
            "precision": self.facts.precision,
            "parameters": self.facts.parameters,
            "tag": self.tag,
            "tensors": self.tensors,
            "shares": [{"type": name, "share": round(share, 6)} for name, share in self.facts.shares],
            "contextLength": self.context_length,
            "licenses": list(self.licenses),
            "sourceURL": self.source_url,
            "revision": self.revision,
            "base": self.base or None,
            "index": {"digest": str(self.index), "chunks": self.chunks} if self.index else None,
            "chatTemplate": self.chat_template,
            "files": [
                {"path": file.path, "kind": file.kind, "size": file.size}
                | ({"digest": str(file.digest)} if file.digest else {})
                for file in self.files
            ],
            "findings": [finding.to_json() for finding in self.findings],
        }


def card_of(checkpoint: Checkpoint) -> Card:
    """The card of a checkpoint."""
    description = checkpoint.description
    return Card(
        place=checkpoint.place,
        name=checkpoint.name,
        architecture=description.architecture,
        context_length=description.context_length,
        licenses=description.licenses,
        source_url=description.source_url,
        revision=description.revision,
        facts=checkpoint.facts,
        tensors=sum(len(file.tensors) for file in checkpoint.weights),
        chat_template=checkpoint.chat_template is not None,
        files=tuple(FileLine(file.path, file.kind, file.size) for file in checkpoint.files),
        findings=checkpoint.findings,
        adapter=checkpoint.adapter,
    )


def card_of_artifact(packed: Packed) -> Card:
    """The card of an artifact, from its manifest, its configurations and the headers of its weight files; a registry is
    asked for no more than that.

    Raises `Malformed` if it contradicts itself.
    """
    config, weights = packed.config, list(packed.weights().values())
    facts = facts_of(weights)
    chunks, missing = _chunks(packed)
    return Card(
        place=packed.place,
        name=config.name,
        architecture=config.architecture,
        context_length=config.context_length,
        licenses=config.licenses,
        source_url=config.source_url,
        revision=config.revision,
        facts=facts,
        tensors=sum(len(file.tensors) for file in weights),
        chat_template=CHAT_TEMPLATE in packed.layers,
        files=tuple(FileLine(path, _kind(layer), layer.size, layer.digest) for path, layer in packed.layers.items()),
        findings=(*_contradictions(packed, facts), *missing, *_content_findings(packed)),
        digest=packed.descriptor.digest,
        base=packed.manifest.annotations.get(mediatypes.BASE, ""),
        adapter=mediatypes.BASE in packed.manifest.annotations,
        index=None if missing else index_digest(packed.manifest),
        chunks=chunks,
    )


def _chunks(packed: Packed) -> tuple[int, list[Finding]]:
    """How many chunks the tensor index has, and what is wrong with it."""
    try:
        index = packed.index()
    except (NotFound, Malformed, DigestMismatch) as error:
        return 0, [Finding("index-missing", f"{error}: pulls go on without it, slower")]
    return sum(len(file.chunks) for file in index.files) if index else 0, []


def _kind(layer: Descriptor) -> str:
    word = layer.media_type.rpartition("/")[2].removeprefix("vnd.cncf.model.").removeprefix("vnd.docker.ai.")
    return word.removesuffix(".v1.raw")


def _contradictions(packed: Packed, facts: Facts) -> Iterator[Finding]:
    """Where tag, config and annotations say other than the bytes do."""
    config, tag = packed.config, packed.reference.tag
    against = disagreement(tag, facts) if tag else None
    if against:
        yield Finding("tag-mismatch", against)
    for what, stated, held in (
        ("format", config.format, facts.format),
        ("precision", config.precision, facts.precision),
        ("parameters", config.parameters, facts.parameters),
    ):
        if stated and stated != held:
            yield Finding("tag-mismatch", f"the artifact states {what} {stated}, the bytes are {held}")


def _content_findings(packed: Packed) -> Iterator[Finding]:
    """What was to be said when it was packed, or would have been."""
    try:
        checkpoint = open_artifact(packed)
    except (InvalidInput, Malformed, NotFound) as error:
        yield Finding("unreadable", str(error))
        return
    yield from checkpoint.findings
    stated, held = packed.config.context_length, checkpoint.description.context_length
    if stated and held and stated != held:
        yield Finding("context-length", f"the artifact states a context of {stated}, its files {held}")


def show(card: Card, console: Console) -> None:
    """Print the card."""
    parts: list[Any] = [_summary(card), Text(), _shares(card.facts), Text(), _files(card.files)]
    if card.findings:
        parts += [Text(), _findings(card.findings)]
    card_shown = Panel.fit(Group(*parts), title=_text(card.name or card.place), title_align="left", padding=(1, 2))
    console.print(card_shown)


def _summary(card: Card) -> Table:
    facts = card.facts
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    rows = {
        "source": card.place,
        "digest": str(card.digest or ""),
        "origin": f"{card.source_url} {card.revision}".strip(),
        "adapter for": card.base,
        "architecture": card.architecture or "not stated",
        "parameters": f"{facts.parameters:,} in {card.tensors:,} tensors",
        "precision": f"{facts.precision} ({facts.format}), canonical tag {card.tag}",
        "context": f"{card.context_length:,} tokens" if card.context_length else "not stated",
        "licence": ", ".join(card.licenses) or "not stated",
        "chat template": "yes" if card.chat_template else "none",
        "tensor index": f"{card.index.short}, {card.chunks:,} chunks" if card.index else "",
    }
    for key, value in rows.items():
        if value:
            table.add_row(key, _text(value))
    return table


def _shares(facts: Facts) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, share in facts.shares:
        filled = max(1, round(share * _BAR))
        bar = Text("█" * filled, style="green") + Text("░" * (_BAR - filled), style="dim")
        table.add_row(Text(name), bar, Text(f"{share:7.2%}"))
    return table


def _files(files: Sequence[FileLine]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    for file in files:
        digest = Text(file.digest.hex[:12] if file.digest else "", style="dim")
        table.add_row(_text(file.path), Text(file.kind, style="dim"), Text(f"{file.size:,}", justify="right"), digest)
    return table


def _findings(findings: Sequence[Finding]) -> Table:
    table = Table.grid(padding=(0, 2))
    for finding in findings:
        colour = _COLOURS[finding.severity]
        where = f"{finding.path}: " if finding.path else ""
        table.add_row(Text(finding.severity, style=colour), Text(finding.code), _text(where + finding.message))
    return table


def _text(value: str) -> Text:
    """Text from elsewhere, in which nothing steers the terminal."""
    return Text("".join(char if char.isprintable() else " " for char in value), overflow="fold")
