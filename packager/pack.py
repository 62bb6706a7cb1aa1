"""From a checkpoint to an artifact in a repository.

Everything that can be refused is refused before the first blob is stored, and the manifest is stored last: a pack that
fails leaves nothing under the tag.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import InvalidInput, ServerError, Unauthorized
from artifact.modelconfig import ModelConfig
from artifact.progress import Progress, Quiet
from artifact.source import bytes_source
from artifact.tensorindex import TensorIndex
from artifact.tensorindex.attach import push_index, push_referrer
from artifact.terminal import note
from artifact.weights.precision import Facts, disagreement
from packager import ollama
from packager.checkpoint import ADAPTER_SUFFIX, Checkpoint
from packager.content import read
from packager.findings import Finding, FindingsRefused, enforce
from packager.indexing import tables_of
from packager.layouts import Sealed, docker, modelpack
from packager.material import Material
from packager.production import (
    OWN,
    Production,
    check_production,
    imatrix_digest,
    produced,
    produces,
    production_findings,
)
from packager.quantize.recipes import canonical
from packager.storing import Indexes, Target, check_unchanged, store_files
from packager.witness import SourceDigests

EPOCH = "1970-01-01T00:00:00Z"
_ALIASES = {"FP16": "F16", "FP32": "F32", "FP64": "F64"}
_UNQUANTIZED = ("F64", "F32", "F16", "BF16")
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:[Zz]|[+-]\d\d:\d\d)")


@dataclass(frozen=True)
class Options:
    """What a user may choose. `format` and `precision` None: what the checkpoint is. `created` is RFC 3339. `base` is
    the digest of the model an adapter is for; with `ollama` there is a manifest for Ollama beside the artifact;
    `production` says how weights are made that are not the checkpoint's own."""

    format: str | None = None
    precision: str | None = None
    layout: str = "modelpack"
    created: str = EPOCH
    allowed: frozenset[str] = field(default_factory=frozenset)
    base: Digest | None = None
    ollama: bool = False
    production: Production = field(default_factory=Production)


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
    enforce(findings_of(checkpoint, options), options.allowed)
    if checkpoint.adapter:
        _check_adapter(checkpoint, options)
    facts, precision = checkpoint.facts, _precision(checkpoint, options)
    if converts(checkpoint, options):
        if options.format == "safetensors":
            raise InvalidInput(f"{checkpoint.place} is GGUF and stays GGUF: it cannot be packed as {options.format}")
        expected = conversion_precision(checkpoint, options)
        check_production(checkpoint, expected, options.production)
        facts = Facts("gguf", expected, facts.parameters, ((expected, 1.0),))
    elif options.production != Production():
        raise InvalidInput(
            f"{checkpoint.place} is packed as it is: the options for conversion and quantisation want --format gguf, "
            "or --precision for a GGUF file"
        )
    elif precision and precision != facts.precision:
        held = ", ".join(f"{name} {share:.0%}" for name, share in facts.shares[:3])
        message = f"--precision {precision}, but the bytes are {facts.precision} ({held}); "
        raise _mismatch(message + f"--format gguf --precision {precision} would convert")
    _check_tag(tag, facts)


def converts(checkpoint: Checkpoint, options: Options) -> bool:
    """Whether packing means making other weights: another format, precision or number of files."""
    return produces(checkpoint, options.format, _precision(checkpoint, options), options.production)


def shows_sources(checkpoint: Checkpoint, options: Options) -> bool:
    """Whether it is this program that reads the weights, when others are made of them."""
    if checkpoint.facts.format == "gguf":
        return _precision(checkpoint, options) in (None, checkpoint.facts.precision)
    return options.production.converter == OWN


def findings_of(checkpoint: Checkpoint, options: Options) -> tuple[Finding, ...]:
    """What is wrong with the checkpoint, and with what is to be made of it."""
    return (*checkpoint.findings, *production_findings(checkpoint, _precision(checkpoint, options)))


def conversion_precision(checkpoint: Checkpoint, options: Options) -> str:
    """The precision of the converted file: as stated, else the checkpoint's own. Raises `InvalidInput`."""
    precision = _precision(checkpoint, options) or checkpoint.facts.precision
    if precision not in ("F32", "F16", "BF16") and not options.precision and checkpoint.facts.format != "gguf":
        raise InvalidInput(f"{checkpoint.place} is {precision}: say --precision for the conversion")
    return precision


def pack(
    checkpoint: Checkpoint,
    repository: Target,
    tag: str | None,
    options: Options,
    progress: Progress,
    sources: SourceDigests | None = None,
) -> tuple[Descriptor, str]:
    """Pack `checkpoint` into `repository` under `tag` (None: the canonical one).

    Returns the manifest's descriptor and the tag. `sources` is shown what a conversion reads; its digests are asked for
    when everything is stored and nothing named yet. Raises `FindingsRefused` on what the findings forbid and on a tag
    that disagrees with the bytes, `InvalidInput` on options that cannot be met.
    """
    check(checkpoint, options, tag)
    with _material(checkpoint, options, progress, sources) as material:
        _check_tag(tag, material.facts)
        tag = tag or material.facts.tag + (ADAPTER_SUFFIX if checkpoint.adapter else "")
        if options.ollama:
            ollama.check_layout(material.files, material.facts)
        indexes = Indexes(tables_of(material.files, material.weights), checkpoint.indexed)
        kept = store_files(repository, material.files, indexes, tag, progress)
        check_unchanged(checkpoint.sources)
        if sources is not None:
            sources.digests()
        digests = [file.digest for file in kept]
        index = push_index(repository, TensorIndex.of(file.index for file in kept if file.index).to_bytes())
        sealed = seal(checkpoint, material, digests, options).with_annotation(mediatypes.INDEX, str(index.digest))
        if options.ollama:
            sealed = sealed.with_annotation(
                mediatypes.OLLAMA, str(_push_sibling(checkpoint, repository, material, digests, tag))
            )
        repository.push_blob(sealed.manifest.config, bytes_source(sealed.config), Quiet())
        descriptor = repository.push_manifest(sealed.raw, sealed.manifest.media_type, tag)
        _attach(repository, descriptor, index)
        return descriptor, tag


def _attach(repository: Target, model: Descriptor, index: Descriptor) -> None:
    """Refer from the tensor index to the model. A registry that takes no such manifests has the model all the same."""
    try:
        push_referrer(repository, model, index)
    except (ServerError, Unauthorized) as error:
        note(f"warning: the tensor index is not attached, so the registry may drop it: {error}")


def seal(checkpoint: Checkpoint, material: Material, digests: Sequence[Digest], options: Options) -> Sealed:
    """Write the manifest that holds the files of `material`, which have these digests."""
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
        input_types=description.inputs,
    )
    if options.layout == "docker":
        sealed = docker(material.files, digests, config, material.weights[0].metadata)
    else:
        sealed = modelpack(material.files, digests, config)
    for key, value in _annotations(facts, options).items():
        sealed = sealed.with_annotation(key, value)
    return sealed


def _annotations(facts: Facts, options: Options) -> dict[str, str]:
    """What stands in the manifest besides the config's own annotations."""
    found = {mediatypes.BASE: str(options.base)} if options.base else {}
    if facts.precision not in _UNQUANTIZED:
        found[mediatypes.TENSOR_TYPES] = ", ".join(f"{name} {share:.2%}" for name, share in facts.shares)
    if digest := imatrix_digest(options.production):
        found[mediatypes.IMATRIX] = str(digest)
    return found


def _push_sibling(
    checkpoint: Checkpoint, repository: Target, material: Material, digests: Sequence[Digest], tag: str
) -> Digest:
    licenses = [
        read(file.content, ollama.MAX_LICENSE, file.path) for file in material.files if ollama.is_text_license(file)
    ]
    sibling = ollama.sibling(
        material.files, digests, material.facts, material.weights[0].metadata, checkpoint.chat_template, licenses
    )
    for descriptor, data in sibling.blobs:
        repository.push_blob(descriptor, bytes_source(data), Quiet())
    manifest = sibling.manifest
    return repository.push_manifest(manifest.to_bytes(), manifest.media_type, tag + ollama.SUFFIX).digest


def _check_adapter(checkpoint: Checkpoint, options: Options) -> None:
    if options.base is None:
        raise InvalidInput(f"{checkpoint.place} is an adapter: --base REF names the model it is for")
    if converts(checkpoint, options):
        raise InvalidInput(f"{checkpoint.place} is an adapter: it cannot be converted to {options.format}")
    if options.layout != "modelpack" or options.ollama:
        raise InvalidInput(f"{checkpoint.place} is an adapter: only the ModelPack layout has a place for it")


@contextmanager
def _material(
    checkpoint: Checkpoint, options: Options, progress: Progress, sources: SourceDigests | None
) -> Iterator[Material]:
    if not converts(checkpoint, options):
        yield Material(checkpoint.files, checkpoint.weights, checkpoint.facts)
        return
    precision = conversion_precision(checkpoint, options)
    with produced(checkpoint, precision, options.production, options.allowed, progress, sources) as material:
        yield material


def _check_tag(tag: str | None, facts: Facts) -> None:
    against = disagreement(tag, facts) if tag else None
    if against:
        raise _mismatch(against)


def _mismatch(message: str) -> FindingsRefused:
    return FindingsRefused([Finding("tag-mismatch", message)])


def _precision(checkpoint: Checkpoint, options: Options) -> str | None:
    """The precision as stated, by the name it goes by: an alias of a mixture is the name of a tensor type too, which
    is meant if the checkpoint has that."""
    if options.precision is None:
        return None
    if not options.precision:
        raise InvalidInput("--precision is empty: is the variable set that it is taken from?")
    upper = options.precision.upper()
    name = _ALIASES.get(upper, upper)
    return name if name == checkpoint.facts.precision else canonical(name)
