"""From a checkpoint to an artifact in a repository.

Everything that can be refused is refused before the first blob is stored, and the manifest is stored last: a pack that
fails leaves nothing under the tag.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import InvalidInput, Malformed, StowageError
from artifact.modelconfig import ModelConfig
from artifact.progress import Progress
from artifact.repository import Repository
from artifact.source import bytes_source
from artifact.transfer import push_blobs
from artifact.weights import gguf
from artifact.weights.precision import Facts, disagreement, facts_of
from artifact.weights.tensor import WeightFile
from packager.checkpoint import CHAT_TEMPLATE, Checkpoint, PackFile, in_order
from packager.description import slug
from packager.files import Kind
from packager.findings import Finding, FindingsRefused, enforce
from packager.hashing import digests_of
from packager.layouts import Sealed, docker, modelpack

EPOCH = "1970-01-01T00:00:00Z"
_ALIASES = {"FP16": "F16", "FP32": "F32", "FP64": "F64"}
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:[Zz]|[+-]\d\d:\d\d)")


@dataclass(frozen=True)
class Options:
    """What a user may choose. `format` and `precision` None: what the checkpoint is. `created` is RFC 3339."""

    format: str | None = None
    precision: str | None = None
    layout: str = "modelpack"
    created: str = EPOCH
    allowed: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True)
class Material:
    """The files of the artifact to be, as they are or converted, with the digests that are known already."""

    files: tuple[PackFile, ...]
    weights: tuple[WeightFile, ...]
    facts: Facts
    known: dict[str, Digest] = field(default_factory=dict)


def created_at(stated: str | None) -> str:
    """The time an artifact is said to be from: as stated, else ``SOURCE_DATE_EPOCH``, else the epoch; never now.

    RFC 3339 in UTC with whole seconds. Raises `InvalidInput`.
    """
    if stated is not None:
        try:
            if not _RFC3339.fullmatch(stated):
                raise ValueError
            moment = datetime.fromisoformat(stated.upper().replace("Z", "+00:00")).astimezone(UTC)
        except (ValueError, OverflowError):
            raise InvalidInput(f"--created {stated[:40]!r} is not a time: want 2026-01-31T12:00:00Z") from None
    else:
        seconds = os.environ.get("SOURCE_DATE_EPOCH", "0")
        if not re.fullmatch(r"[0-9]{1,11}", seconds):
            raise InvalidInput(f"SOURCE_DATE_EPOCH is not a number of seconds: {seconds[:40]!r}")
        moment = datetime.fromtimestamp(int(seconds), UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def check(checkpoint: Checkpoint, options: Options, tag: str | None) -> None:
    """Raise whatever can be said against packing `checkpoint` before any work is done on it."""
    enforce(checkpoint.findings, options.allowed)
    facts, precision = checkpoint.facts, _precision(options)
    if converts(checkpoint, options):
        if facts.format != "safetensors":
            raise InvalidInput(f"{checkpoint.place} is GGUF and stays GGUF: it cannot be packed as {options.format}")
        expected = conversion_precision(checkpoint, options)
        facts = Facts("gguf", expected, facts.parameters, ((expected, 1.0),))
    elif precision and precision != facts.precision:
        held = ", ".join(f"{name} {share:.0%}" for name, share in facts.shares[:3])
        if facts.format == "gguf":
            raise StowageError(
                f"{checkpoint.place} is {facts.precision} ({held}), not {precision}: a GGUF file is packed as it is; "
                f"convert to {precision} from the original checkpoint"
            )
        message = f"--precision {precision}, but the bytes are {facts.precision} ({held}); "
        raise _mismatch(message + f"--format gguf --precision {precision} would convert")
    _check_tag(tag, facts)


def converts(checkpoint: Checkpoint, options: Options) -> bool:
    """Whether packing means converting: the wanted format is not the checkpoint's."""
    return options.format is not None and options.format != checkpoint.facts.format


def conversion_precision(checkpoint: Checkpoint, options: Options) -> str:
    """The precision of the converted file: as stated, else the checkpoint's own. Raises `InvalidInput`."""
    precision = _precision(options) or checkpoint.facts.precision
    if precision not in ("F32", "F16", "BF16") and not options.precision:
        raise InvalidInput(f"{checkpoint.place} is {precision}: say --precision for the conversion")
    return precision


def pack(
    checkpoint: Checkpoint, repository: Repository, tag: str | None, options: Options, progress: Progress
) -> tuple[Descriptor, str]:
    """Pack `checkpoint` into `repository` under `tag` (None: the canonical one).

    Returns the manifest's descriptor and the tag. Raises `FindingsRefused` on what the findings forbid and on a tag
    that disagrees with the bytes, `InvalidInput` on options that cannot be met.
    """
    check(checkpoint, options, tag)
    with _material(checkpoint, options, progress) as material:
        _check_tag(tag, material.facts)
        sealed = seal(checkpoint, material, options, progress)
        tag = tag or material.facts.tag
        _push_blobs(repository, sealed, progress)
        return repository.push_manifest(sealed.raw, sealed.manifest.media_type, tag), tag


def seal(checkpoint: Checkpoint, material: Material, options: Options, progress: Progress) -> Sealed:
    """Hash the files and write the manifest that holds them."""
    unknown = [file for file in material.files if file.path not in material.known]
    digests = dict(zip([file.path for file in unknown], digests_of(unknown, progress), strict=True)) | material.known
    description, facts = checkpoint.description, material.facts
    config = ModelConfig(
        format=facts.format,
        precision=facts.precision,
        parameters=facts.parameters,
        architecture=description.architecture,
        name=checkpoint.name,
        family=description.architecture,
        context_length=description.context_length,
        licenses=description.licenses,
        source_url=description.source_url,
        revision=description.revision,
        created=options.created,
    )
    ordered = [digests[file.path] for file in material.files]
    if options.layout == "docker":
        return docker(material.files, ordered, config, material.weights[0].metadata)
    return modelpack(material.files, ordered, config)


@contextmanager
def _material(checkpoint: Checkpoint, options: Options, progress: Progress) -> Iterator[Material]:
    if not converts(checkpoint, options):
        yield Material(checkpoint.files, checkpoint.weights, checkpoint.facts)
        return
    with _scratch_folder() as folder:
        yield _converted(checkpoint, conversion_precision(checkpoint, options), folder, progress)


@contextmanager
def _scratch_folder() -> Iterator[Path]:
    """A folder that is gone afterwards. Its name is known before it exists: an interrupt that arrives while it is being
    made finds it too."""
    folder = Path(tempfile.gettempdir()) / f"packager-{secrets.token_hex(8)}"
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _converted(checkpoint: Checkpoint, precision: str, folder: Path, progress: Progress) -> Material:
    from packager.convert import convert  # numpy and gguf take a while to load, and only conversions need them

    assert checkpoint.folder is not None
    target = folder / f"{slug(checkpoint.name)}-{precision}.gguf"
    conversion = convert(checkpoint.folder, precision, target, progress)
    weights = (gguf.read_header(conversion.path),)
    facts = facts_of(weights)
    if facts.precision != precision or conversion.size != weights[0].size:
        raise Malformed(f"the conversion to {precision} came out as {facts.precision}, {weights[0].size} bytes")
    files = [PackFile(target.name, Kind.WEIGHT, conversion.path, conversion.size)]
    files += [file for file in checkpoint.files if file.kind is Kind.DOC and "/" not in file.path]
    if checkpoint.chat_template is not None:
        files += [file for file in checkpoint.files if file.path == CHAT_TEMPLATE]
    return Material(in_order(files), weights, facts, {target.name: conversion.digest})


def _push_blobs(repository: Repository, sealed: Sealed, progress: Progress) -> None:
    """Store config and layers, each content once."""
    contents = {layer: file.source for layer, file in reversed(sealed.layers)}
    contents[sealed.manifest.config] = bytes_source(sealed.config)
    unique = {blob.digest: (blob, content) for blob, content in contents.items()}
    push_blobs(repository, dict(unique.values()), progress)


def _check_tag(tag: str | None, facts: Facts) -> None:
    against = disagreement(tag, facts) if tag else None
    if against:
        raise _mismatch(against)


def _mismatch(message: str) -> FindingsRefused:
    return FindingsRefused([Finding("tag-mismatch", message)])


def _precision(options: Options) -> str | None:
    if options.precision is None:
        return None
    upper = options.precision.upper()
    return _ALIASES.get(upper, upper)
