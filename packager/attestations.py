"""What a pack can vouch for: where an artifact came from, what it consists of, and what was found in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.errors import Malformed
from artifact.manifest import Manifest, canonical_json
from artifact.modelconfig import ModelConfig
from artifact.progress import Progress
from artifact.repository import Repository
from artifact.version import __version__
from packager.checkpoint import Checkpoint, PackFile
from packager.files import Kind, kind_of
from packager.findings import RULES, Severity
from packager.folder import list_files
from packager.hashing import digests_of
from packager.hub import SCHEME
from packager.pack import EPOCH, Options, converts
from supplychain import bom, provenance
from supplychain.attest import attest
from supplychain.bom import Training, bill_of_materials
from supplychain.keys import PrivateKey
from supplychain.predicate import CYCLONEDX, PROVENANCE, SCAN
from supplychain.provenance import Build, Provenance, SourceFile
from supplychain.referrer import attach_document
from supplychain.scan import Scan, ScanFinding
from supplychain.statement import Statement

SCANNER = "https://stowage.dev/packager"
_FLOATS = ("F64", "F32", "F16", "BF16")
_TOOLS = {Build.PACK: (), Build.CONVERT: ("numpy",), Build.QUANTIZE: ("numpy", "llama-cpp-python")}
"""Distributions that have a part in the bytes of an artifact, besides this one."""


@dataclass(frozen=True)
class Packing:
    """What a pack was asked for: the checkpoint as it was opened with `file_filter`, the options, and the URI of who
    runs it. `sources` are the source's files, if they are not those of the artifact, and `states` what the disk said
    of each before it was hashed."""

    checkpoint: Checkpoint
    options: Options
    file_filter: Sequence[str] = ()
    builder: str = provenance.BUILDER
    sources: Sequence[SourceFile] = field(default_factory=tuple)
    states: Mapping[Path, tuple[int, ...]] = field(default_factory=dict)

    def with_sources(self, progress: Progress) -> Packing:
        """With the source's files hashed, where packing does not do that: before a conversion."""
        if not converts(self.checkpoint, self.options):
            return self
        files = self._files()
        states = {file.content: _state(file.content) for file in files if isinstance(file.content, Path)}
        digests = digests_of(files, progress)
        sources = tuple(SourceFile(file.path, digest) for file, digest in zip(files, digests, strict=True))
        return replace(self, sources=sources, states=states)

    def check_unchanged(self) -> None:
        """Raise `Malformed` if a source file was written to since it was hashed: what was converted is not known."""
        for path, before in self.states.items():
            if not path.exists() or _state(path) != before:
                raise Malformed(f"{path}: changed while it was packed; pack again when it is still")

    def _files(self) -> list[PackFile]:
        files = {file.path: file for file in self.checkpoint.files if isinstance(file.content, Path)}
        if self.file_filter and self.checkpoint.folder is not None:
            # The converter reads what it needs from the folder, whether or not it is to be packed.
            for path, location in list_files(self.checkpoint.folder, ())[0].items():
                kind = kind_of(path)
                if path not in files and kind in (Kind.CONFIG, Kind.DOC):
                    files[path] = PackFile.on_disk(path, kind, location)
        return list(files.values())


def attest_pack(repository: Repository, subject: Descriptor, packing: Packing, key: PrivateKey) -> list[Descriptor]:
    """Attest the packed artifact `subject`: provenance, bill of materials, scan; and the bill unsigned as a document.

    Returns the descriptors of the referrers. Everything in them follows from the artifact and `packing`. Raises
    `Malformed` if a source file was written to meanwhile.
    """
    packing.check_unchanged()
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
    from_hub = checkpoint.place.startswith(SCHEME)
    return Provenance(
        build=build,
        # Where files lay on this machine's disk means nothing elsewhere, and is nobody's business.
        source=checkpoint.place.rpartition("@")[0] if from_hub else provenance.LOCAL,
        source_url=checkpoint.description.source_url if from_hub else "",
        revision=checkpoint.description.revision if from_hub else "",
        format=config.format,
        precision=config.precision,
        layout=options.layout,
        created=options.created,
        file_filter=tuple(packing.file_filter),
        allowed=tuple(options.allowed),
        files=packing.sources or _sources(checkpoint, manifest),
        tools={"stowage": __version__} | {name: found for name in _TOOLS[build] if (found := _version(name))},
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
        for finding in packing.checkpoint.findings
    ]
    return Scan(SCANNER, __version__, RULES.keys(), findings)


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
    files = [file.path for file in checkpoint.files if isinstance(file.content, Path)]
    return tuple(SourceFile(path, digests[path]) for path in files)


def _state(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _stated(created: str) -> str:
    """A time somebody stated; empty for the one that stands for none."""
    return "" if created == EPOCH else created


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""
