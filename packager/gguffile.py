"""A checkpoint that is a GGUF file, or a set of GGUF shards."""

from __future__ import annotations

from pathlib import Path

from artifact.errors import InvalidInput, Malformed, NotFound
from artifact.filepath import checked_path
from artifact.weights import gguf
from artifact.weights.precision import GGUF_FILE_TYPES, Facts, facts_of
from artifact.weights.tensor import WeightFile
from packager.checkpoint import CHAT_TEMPLATE, Checkpoint, PackFile, in_order
from packager.description import from_gguf
from packager.files import Kind, shards_of
from packager.findings import Finding
from packager.template import template_findings


def open_gguf(path: Path, place: str) -> Checkpoint:
    """Open a GGUF file, or the whole set whose first shard `path` is.

    Raises `Malformed` on a broken file or set, `NotFound` on a missing shard, `InvalidInput` on a later shard.
    """
    paths = _set(path)
    weights = tuple(gguf.read_header(item) for item in paths)
    metadata = weights[0].metadata
    _check_kind(path, weights)
    facts = facts_of(weights)
    template = metadata.get("tokenizer.chat_template")
    template = template if isinstance(template, str) and template else None
    files = [PackFile.on_disk(checked_path(item.name), Kind.WEIGHT, item) for item in paths]
    if template:
        files.append(PackFile.in_memory(CHAT_TEMPLATE, Kind.CONFIG, template.encode()))
    return Checkpoint(
        place=place,
        files=in_order(files),
        weights=weights,
        facts=facts,
        description=from_gguf(metadata),
        chat_template=template,
        findings=tuple(_findings(path.name, weights[0], facts, template)),
    )


def _set(path: Path) -> list[Path]:
    names = shards_of(path.name)
    if names is None:
        return [path]
    if path.name != names[0]:
        raise InvalidInput(f"{path} is one shard of {len(names)}: give the first, {names[0]}")
    paths = [path.with_name(name) for name in names]
    for item in paths:
        if not item.is_file():
            raise NotFound(f"{path.parent}: shard {item.name} is missing (of {len(names)})")
    return paths


def _check_kind(path: Path, weights: tuple[WeightFile, ...]) -> None:
    metadata = weights[0].metadata
    if not isinstance(metadata.get("general.architecture"), str):
        raise Malformed(f"{path}: a GGUF file without general.architecture is not a model")
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise Malformed(f"{path}: general.type is {kind!r}: only whole models are packed")
    stated = metadata.get("split.count", 1)
    if stated and stated != len(weights):
        raise Malformed(f"{path}: says it is one of {stated} shards, there are {len(weights)}")


def _findings(path: str, weights: WeightFile, facts: Facts, template: str | None) -> list[Finding]:
    metadata, found = weights.metadata, []
    if template:
        found += template_findings(template, path)
    elif "tokenizer.chat_template" not in metadata and "tokenizer.ggml.bos_token_id" in metadata:
        found.append(Finding("chat-template-missing", "no tokenizer.chat_template in the metadata", path))
    if "tokenizer.ggml.model" not in metadata:
        found.append(Finding("tokenizer-missing", "no tokenizer in the metadata", path))
    if not metadata.get("general.license"):
        found.append(Finding("license-missing", "no general.license in the metadata", path))
    stated = GGUF_FILE_TYPES.get(metadata.get("general.file_type", -1))
    if stated is not None and stated != facts.precision:
        found.append(
            Finding("file-type-mismatch", f"general.file_type says {stated}, the tensors are {facts.precision}", path)
        )
    return found
