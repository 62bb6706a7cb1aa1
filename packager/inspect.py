"""What a checkpoint or an artifact is: a card for people, and the same for scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import Malformed
from artifact.filepath import checked_paths
from artifact.locate import resolve
from artifact.manifest import Manifest
from artifact.modelconfig import ModelConfig
from artifact.reference import Reference
from artifact.repository import Repository
from artifact.weights import gguf, safetensors
from artifact.weights.precision import Facts, disagreement, facts_of
from artifact.weights.tensor import WeightFile
from packager.checkpoint import CHAT_TEMPLATE, Checkpoint
from packager.findings import Finding, Severity
from packager.template import template_findings

_MAX_TEMPLATE_BLOB = 4 * 1024 * 1024
_UNNAMED = {
    mediatypes.DOCKER_GGUF: "model.gguf",
    mediatypes.DOCKER_MMPROJ: "mmproj.gguf",
    mediatypes.DOCKER_CHAT_TEMPLATE: CHAT_TEMPLATE,
    mediatypes.DOCKER_LICENSE: "LICENSE",
}
"""What the layers of Docker's earlier artifacts are, which have no paths."""
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
    """Everything `inspect` reports. `digest` is that of an artifact's manifest; a checkpoint has none."""

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
            "tag": self.facts.tag,
            "tensors": self.tensors,
            "shares": [{"type": name, "share": round(share, 6)} for name, share in self.facts.shares],
            "contextLength": self.context_length,
            "licenses": list(self.licenses),
            "sourceURL": self.source_url,
            "revision": self.revision,
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
    )


def card_of_artifact(repository: Repository, reference: Reference) -> Card:
    """The card of an artifact, from its manifest, its config and the headers of its weight files; a registry is asked
    for no more of them than that.

    Raises `NotFound`, `DigestMismatch`, and `Malformed` if it is no model or contradicts itself.
    """
    descriptor, raw = repository.manifest(resolve(repository, reference).digest)
    manifest = Manifest.parse(raw, descriptor.media_type)
    config = ModelConfig.read(manifest, repository.read_blob(manifest.config))
    layers = dict(zip(checked_paths([_path(layer) for layer in manifest.layers]), manifest.layers, strict=True))
    weights = [_header(repository, path, layer) for path, layer in layers.items() if _is_weight(path)]
    facts = facts_of(weights)
    template = layers.get(CHAT_TEMPLATE)
    return Card(
        place=f"{reference.repository}" + (f":{reference.tag}" if reference.tag else ""),
        name=config.name,
        architecture=config.architecture,
        context_length=config.context_length,
        licenses=config.licenses,
        source_url=config.source_url,
        revision=config.revision,
        facts=facts,
        tensors=sum(len(file.tensors) for file in weights),
        chat_template=template is not None,
        files=tuple(FileLine(path, _kind(layer), layer.size, layer.digest) for path, layer in layers.items()),
        findings=tuple(_artifact_findings(repository, reference, config, facts, template)),
        digest=descriptor.digest,
    )


def _path(layer: Descriptor) -> str:
    path = layer.annotations.get(mediatypes.FILEPATH) or layer.annotations.get(mediatypes.TITLE)
    path = path or _UNNAMED.get(layer.media_type)
    if path is None:
        raise Malformed(f"layer {layer.digest.short} ({layer.media_type}) has no file path")
    return path


def _is_weight(path: str) -> bool:
    return path.endswith((".gguf", ".safetensors")) and "mmproj" not in path


def _kind(layer: Descriptor) -> str:
    word = layer.media_type.rpartition("/")[2].removeprefix("vnd.cncf.model.").removeprefix("vnd.docker.ai.")
    return word.removesuffix(".v1.raw")


def _header(repository: Repository, path: str, layer: Descriptor) -> WeightFile:
    read = gguf.read_source if path.endswith(".gguf") else safetensors.read_source
    return read(lambda offset: repository.open_blob(layer, offset), layer.size, path)


def _artifact_findings(
    repository: Repository, reference: Reference, config: ModelConfig, facts: Facts, template: Descriptor | None
) -> list[Finding]:
    found = []
    against = disagreement(reference.tag, facts) if reference.tag else None
    if against:
        found.append(Finding("tag-mismatch", against))
    for what, stated, held in (
        ("format", config.format, facts.format),
        ("precision", config.precision, facts.precision),
        ("parameters", config.parameters, facts.parameters),
    ):
        if stated and stated != held:
            found.append(Finding("tag-mismatch", f"the artifact states {what} {stated}, the bytes are {held}"))
    if template is not None:
        text = repository.read_blob(template, _MAX_TEMPLATE_BLOB).decode("utf-8", "replace")
        found += template_findings(text, CHAT_TEMPLATE)
    return found


def show(card: Card, console: Console) -> None:
    """Print the card."""
    parts: list[Any] = [_summary(card), Text(), _shares(card.facts), Text(), _files(card.files)]
    if card.findings:
        parts += [Text(), _findings(card.findings)]
    console.print(Panel(Group(*parts), title=_text(card.name or card.place), title_align="left", padding=(1, 2)))


def _summary(card: Card) -> Table:
    facts = card.facts
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    rows = {
        "source": card.place,
        "digest": str(card.digest or ""),
        "origin": f"{card.source_url} {card.revision}".strip(),
        "architecture": card.architecture or "not stated",
        "parameters": f"{facts.parameters:,} in {card.tensors:,} tensors",
        "precision": f"{facts.precision} ({facts.format}), canonical tag {facts.tag}",
        "context": f"{card.context_length:,} tokens" if card.context_length else "not stated",
        "licence": ", ".join(card.licenses) or "not stated",
        "chat template": "yes" if card.chat_template else "none",
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
    for file in files:
        digest = Text(file.digest.short if file.digest else "", style="dim")
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
