"""A checkpoint that is a GGUF file, or a set of GGUF shards, with what lies beside it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from artifact.errors import InvalidInput, Malformed, NotFound
from artifact.filepath import checked_path, checked_paths
from artifact.filetypes import is_pickle_name
from artifact.weights import gguf
from artifact.weights.precision import GGUF_FILE_TYPES, Facts, facts_of
from artifact.weights.tensor import WeightFile
from packager.checkpoint import CHAT_TEMPLATE, Checkpoint, PackFile, in_order
from packager.content import Content, InMemory, OnDisk, read
from packager.description import from_gguf, front_matter, licenses_of
from packager.files import Kind, is_license, is_projector, kind_of, shards_of
from packager.findings import Finding
from packager.huggingface import content_findings, pickle_finding, readme_of
from packager.template import MAX_TEMPLATE, template_findings

_MAX_LISTED = 6
_TEMPLATE = "tokenizer.chat_template"
"""The key of the chat template, and what the keys of others (``tokenizer.chat_template.tool_use``) begin with."""


def open_gguf(path: Path, place: str) -> Checkpoint:
    """Open a GGUF file, or the whole set whose first shard `path` is.

    Raises `Malformed` on a broken file or set, `NotFound` on a missing shard, `InvalidInput` on a later shard.
    """
    names = shards_of(path.name) or (path.name,)
    if path.name != names[0]:
        raise InvalidInput(f"{path} is one shard of {len(names)}: give the first, {names[0]}")
    for name in names:
        if not path.with_name(name).is_file():
            raise NotFound(f"{path.parent}: shard {name} is missing (of {len(names)})")
    return open_files(place, {checked_path(name): OnDisk(path.with_name(name)) for name in names}, [])


def open_files(place: str, listed: Mapping[str, Content], findings: list[Finding]) -> Checkpoint:
    """Open the one GGUF model among the files `listed`, with its projectors, its licence and its model card.

    Raises `Malformed` on a broken file or set, `NotFound` on a missing shard, `InvalidInput` if there are several
    models to choose from.
    """
    names = model_of(place, listed)
    weights = tuple(_header(place, name, listed[name]) for name in names)
    _check_kind(names[0] if len(listed) > 1 else place, weights)
    files = [PackFile(name, Kind.WEIGHT, listed[name]) for name in names]
    for name in listed:
        if name not in names:
            files += _beside(place, name, listed[name], findings)
    findings += [pickle_finding(name) for name in listed if is_pickle_name(name)]
    facts, metadata = facts_of(weights), weights[0].metadata
    adapter = metadata.get("general.type") == "adapter"
    template, files = (None, files) if adapter else _template(metadata, files)
    findings += [] if adapter else _findings(names[0], weights[0], facts, template)
    description = from_gguf(metadata)
    licenses = description.licenses or licenses_of(front_matter(readme_of(listed)))
    if not licenses and not any(is_license(file.path) for file in files):
        findings.append(Finding("license-missing", "no general.license in the metadata, and no licence file", names[0]))
    findings += content_findings([file for file in files if file.path != CHAT_TEMPLATE])
    checked_paths([file.path for file in files])
    return Checkpoint(
        place=place,
        files=in_order(files),
        weights=weights,
        facts=facts,
        description=replace(description, licenses=licenses, inputs=("text", *_senses(place, listed))),
        chat_template=template,
        findings=tuple(findings),
        adapter=adapter,
    )


def model_of(place: str, listed: Collection[str]) -> tuple[str, ...]:
    """The names of the one model's file or shards, in order, among the names of all files. Raises `NotFound`,
    `InvalidInput` if there are several models."""
    models = [name for name in listed if name.endswith(".gguf") and "/" not in name and not is_projector(name)]
    sets = {shards_of(name) or (name,) for name in models}
    if not sets:
        raise NotFound(f"{place}: no model among its GGUF files")
    if len(sets) > 1:
        told = ", ".join(sorted(names[0] for names in sets)[:_MAX_LISTED])
        raise InvalidInput(f"{place} holds several models ({told}): choose one with --file-filter")
    (names,) = sets
    for name in names:
        if name not in listed:
            raise NotFound(f"{place}: shard {name} is missing (of {len(names)})")
    return names


def _header(place: str, name: str, content: Content) -> WeightFile:
    return gguf.read_source(content.source, content.size, name)


def _check_kind(path: str, weights: tuple[WeightFile, ...]) -> None:
    metadata = weights[0].metadata
    if not isinstance(metadata.get("general.architecture"), str):
        raise Malformed(f"{path}: a GGUF file without general.architecture is not a model")
    kind = metadata.get("general.type", "model")
    if kind not in ("model", "adapter") or (kind == "adapter" and metadata.get("adapter.type") != "lora"):
        raise Malformed(f"{path}: general.type is {kind!r}: only whole models and LoRA adapters are packed")
    stated = metadata.get("split.count", 1)
    if stated and stated != len(weights):
        raise Malformed(f"{path}: says it is one of {stated} shards, there are {len(weights)}")


def _beside(place: str, name: str, content: Content, findings: list[Finding]) -> list[PackFile]:
    """What else belongs to the artifact: projectors, documents, the template."""
    kind = kind_of(name)
    if is_projector(name):
        header = _header(place, name, content)
        if header.metadata.get("general.architecture") != "clip":
            raise Malformed(f"{place}/{name}: named like a projector, but its architecture is not clip")
        return [PackFile(name, Kind.WEIGHT, content)]
    if kind in (Kind.DOC, Kind.CODE) or name == CHAT_TEMPLATE:
        return [PackFile(name, kind or Kind.CONFIG, content)]
    if not is_pickle_name(name):
        findings.append(Finding("file-skipped", "not a file of the model that is loaded, not packed", name))
    return []


def _senses(place: str, listed: Mapping[str, Content]) -> list[str]:
    """What else than text the projectors make the model read (llama.cpp, clip-impl.h)."""
    headers = [_header(place, name, content).metadata for name, content in listed.items() if is_projector(name)]
    audio = any(header.get("clip.has_audio_encoder") is True for header in headers)
    image = any(header.get("clip.has_vision_encoder", not audio) is True for header in headers)
    return ["image"] * image + ["audio"] * audio


def _template(metadata: Mapping[str, object], files: list[PackFile]) -> tuple[str | None, list[PackFile]]:
    """The chat template, and the files with it: the one beside the model, else the one inside."""
    for file in files:
        if file.path == CHAT_TEMPLATE:
            return read(file.content, 4 * MAX_TEMPLATE, file.path).decode("utf-8", "replace"), files
    inside = metadata.get(_TEMPLATE)
    if not isinstance(inside, str) or not inside:
        return None, files
    return inside, [*files, PackFile(CHAT_TEMPLATE, Kind.CONFIG, InMemory(inside.encode()))]


def _findings(path: str, weights: WeightFile, facts: Facts, template: str | None) -> list[Finding]:
    metadata, found = weights.metadata, []
    inside = metadata.get(_TEMPLATE)
    if template and isinstance(inside, str) and inside.strip() != template.strip():
        found.append(Finding("template-differs", "differs from the one in the metadata", CHAT_TEMPLATE))
    # An engine may be told to use any of them: all are looked through, each once.
    texts = [template, *(value for key, value in metadata.items() if key.startswith(_TEMPLATE))]
    for text in dict.fromkeys(text for text in texts if isinstance(text, str)):
        found += template_findings(text, path)
    if not template and _TEMPLATE not in metadata and "tokenizer.ggml.bos_token_id" in metadata:
        found.append(Finding("chat-template-missing", "no tokenizer.chat_template in the metadata", path))
    if "tokenizer.ggml.model" not in metadata:
        found.append(Finding("tokenizer-missing", "no tokenizer in the metadata", path))
    architecture = metadata.get("general.architecture")
    context, trained = (
        metadata.get(f"{architecture}.{key}") for key in ("context_length", "rope.scaling.original_context_length")
    )
    if isinstance(context, int) and isinstance(trained, int) and trained > context:
        found.append(
            Finding("context-length", f"context_length is {context}, trained before scaling with {trained}", path)
        )
    stated = GGUF_FILE_TYPES.get(metadata.get("general.file_type", -1))
    if stated is not None and stated != facts.precision:
        found.append(
            Finding("file-type-mismatch", f"general.file_type says {stated}, the tensors are {facts.precision}", path)
        )
    return found
