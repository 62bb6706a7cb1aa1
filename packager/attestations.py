"""What a pack can vouch for: where an artifact came from, what it consists of, and what was found in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.manifest import Manifest, canonical_json
from artifact.modelconfig import ModelConfig
from artifact.progress import Progress
from artifact.repository import Repository
from artifact.version import __version__
from packager.checkpoint import Checkpoint
from packager.findings import RULES, Severity
from packager.pack import EPOCH, Options, conversion_precision, converts, findings_of, shows_sources
from packager.production import LLAMA_CPP, Production, imatrix_digest, tools_of
from packager.storing import check_unchanged
from packager.witness import SourceDigests
from supplychain import bom, provenance
from supplychain.attest import attest
from supplychain.bom import Training, bill_of_materials
from supplychain.keyless import KeylessSigner
from supplychain.keys import PrivateKey
from supplychain.predicate import CYCLONEDX, PROVENANCE, SCAN
from supplychain.provenance import Build, Provenance, SourceFile
from supplychain.referrer import attach_document
from supplychain.scan import Scan, ScanFinding
from supplychain.statement import Statement

SCANNER = "https://stowage.dev/packager"
OLLAMA = "+ollama"
"""Ends the layout's name where there is a manifest for Ollama as well."""
_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Packing:
    """What a pack was asked for: the checkpoint as it was opened with `file_filter`, the options, and the URI of who
    runs it. `sources` are the source's files, if they are not those of the artifact."""

    checkpoint: Checkpoint
    options: Options
    file_filter: Sequence[str] = ()
    builder: str = provenance.BUILDER
    sources: Sequence[SourceFile] = field(default_factory=tuple)

    @contextmanager
    def hashing_sources(self, progress: Progress, attested: bool) -> Iterator[SourceDigests]:
        """While something else goes on, hash the source's files where packing does not do that: beside a conversion.
        All of them if they are to be `attested`, else those of which a hub has said what they should be. Yields who
        has to be shown what is read of them.
        """
        files = [file for file in self.checkpoint.sources if attested or file.expected is not None]
        if not converts(self.checkpoint, self.options):
            files = []
        with SourceDigests(files, progress, shown=shows_sources(self.checkpoint, self.options)) as digests:
            yield digests

    def with_sources(self, digests: SourceDigests) -> Packing:
        """The pack, and what its source's files were, where packing itself does not say."""
        return replace(self, sources=tuple(SourceFile(*item) for item in digests.digests().items()))


def attest_pack(
    repository: Repository, subject: Descriptor, packing: Packing, key: PrivateKey | KeylessSigner
) -> list[Descriptor]:
    """Attest the packed artifact `subject`: provenance, bill of materials, scan; and the bill unsigned as a document.

    Returns the descriptors of the referrers. Everything in them follows from the artifact and `packing`. Raises
    `Malformed` if a source file was written to meanwhile.
    """
    check_unchanged(packing.checkpoint.sources)
    descriptor, raw = repository.manifest(subject.digest)
    manifest = Manifest.parse(raw, descriptor.media_type)
    config = _config(manifest, repository.read_blob(manifest.config), packing.checkpoint)
    created = packing.options.created
    description = packing.checkpoint.description
    bill = bill_of_materials(
        subject.digest, manifest, config, Training(description.task, description.datasets), timestamp=_stated(created)
    )
    predicates = {
        PROVENANCE: provenance_of(packing, manifest, config).to_predicate(),
        CYCLONEDX: bill,
        SCAN: scan_of(packing).to_predicate(),
    }
    statements = [Statement.about(subject.digest, type_, predicate) for type_, predicate in predicates.items()]
    written = [attest(repository, subject, statement, key, created=created) for statement in statements]
    document = canonical_json(bill)
    return [*written, attach_document(repository, subject, document, bom.MEDIA_TYPE, bom.FILE_NAME, created)]


def provenance_of(packing: Packing, manifest: Manifest, config: ModelConfig) -> Provenance:
    """How the artifact was made. Format and precision are what came out: stated, they give the same bytes again."""
    checkpoint, options = packing.checkpoint, packing.options
    build = _build(packing, config)
    origin = checkpoint.origin
    return Provenance(
        build=build,
        # Where files lay on this machine's disk means nothing elsewhere, and is nobody's business.
        source=origin.source if origin else provenance.LOCAL,
        source_url=origin.url if origin else "",
        revision=origin.revision if origin else "",
        format=config.format,
        # What was asked for: asked for again, it gives the same bytes, whatever they are called.
        precision=conversion_precision(checkpoint, options) if build is not Build.PACK else config.precision,
        layout=options.layout + (OLLAMA if options.ollama else ""),
        base=str(options.base or ""),
        created=options.created,
        file_filter=tuple(packing.file_filter),
        allowed=tuple(options.allowed),
        files=(*(packing.sources or _sources(checkpoint, manifest)), *_imatrix(options.production)),
        imatrix=next((file.path for file in _imatrix(options.production)), ""),
        converter=LLAMA_CPP if options.production.converter == LLAMA_CPP else "",
        split_max_size=options.production.split_max_size,
        tools={"stowage": __version__} | _tools(packing),
        builder=packing.builder,
        builder_version={"stowage": __version__},
        finished=_stated(options.created),
    )


def scan_of(packing: Packing) -> Scan:
    """What was found in the checkpoint."""
    allowed = packing.options.allowed
    findings = [
        ScanFinding(
            finding.code,
            finding.severity.value,
            finding.path,
            finding.message,
            finding.severity is Severity.ERROR and finding.code in allowed,
        )
        for finding in findings_of(packing.checkpoint, packing.options)
    ]
    return Scan(SCANNER, __version__, [code for code, rule in RULES.items() if rule.at_pack], findings)


def _config(manifest: Manifest, raw: bytes, checkpoint: Checkpoint) -> ModelConfig:
    """The artifact's config with what Docker's layout has no field for."""
    description = checkpoint.description
    return replace(
        ModelConfig.read(manifest, raw),
        name=checkpoint.name,
        architecture=description.architecture,
        context_length=description.context_length,
        licenses=description.licenses,
        source_url=description.source_url,
        revision=description.revision,
    )


def _build(packing: Packing, config: ModelConfig) -> Build:
    if not converts(packing.checkpoint, packing.options):
        return Build.PACK
    return Build.CONVERT if config.precision in _FLOATS else Build.QUANTIZE


def _sources(checkpoint: Checkpoint, manifest: Manifest) -> tuple[SourceFile, ...]:
    """The source's files with the digests the artifact's layers have: packed as they are, they were hashed once."""
    digests = {layer.annotations[mediatypes.FILEPATH]: layer.digest for layer in manifest.layers}
    return tuple(SourceFile(file.path, digests[file.path]) for file in checkpoint.sources)


def _stated(created: str) -> str:
    """A time somebody stated; empty for the one that stands for none."""
    return "" if created == EPOCH else created


def _imatrix(production: Production) -> tuple[SourceFile, ...]:
    """The importance matrix as one more file the artifact was made from, apart from the model's own."""
    digest = imatrix_digest(production)
    if digest is None or production.imatrix is None:
        return ()
    return (SourceFile(f"imatrix/{production.imatrix.name}", digest),)


def _tools(packing: Packing) -> dict[str, str]:
    """The programs that have a part in the bytes of the artifact, besides this one."""
    checkpoint, options = packing.checkpoint, packing.options
    if not converts(checkpoint, options):
        return {}
    precision = conversion_precision(checkpoint, options)
    return {"numpy": _version("numpy")} | tools_of(checkpoint, precision, options.production)


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""
