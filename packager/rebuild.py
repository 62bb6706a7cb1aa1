"""``packager verify --rebuild``: make an artifact again from its provenance alone, and compare.

Nothing is stored: the pack runs as it always does, into a place that only hashes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import DigestMismatch, InvalidInput, Malformed, NotFound, Refused
from artifact.locate import open_repository
from artifact.manifest import Manifest
from artifact.progress import Progress
from artifact.reference import Reference
from artifact.repository import Repository
from artifact.source import Source
from artifact.terminal import JsonOption, note, print_json, progress_bars
from artifact.version import __version__
from packager.attestations import OLLAMA
from packager.checkpoint import Checkpoint
from packager.findings import CODE, check_allowed
from packager.hashing import digests_of, hash_source
from packager.options import AllowOption, Converter, ConverterOption, ConverterPathOption, PlainHttpOption
from packager.pack import Options, conversion_precision, converts, pack
from packager.packed import Packed, open_packed
from packager.production import OWN, Production, runs_others, tools_of
from packager.quantize.command import QuantizerOption
from packager.source import open_source
from supplychain.bundle import Bundle
from supplychain.evidence import collect
from supplychain.predicate import PROVENANCE
from supplychain.provenance import LOCAL, Provenance
from supplychain.statement import Statement

_SHOWN = 5

verify_app = typer.Typer()


class NotReproduced(Refused):
    """Packing again gave another artifact."""

    code = "not-reproduced"


@dataclass(frozen=True)
class Rebuilt:
    """The digests of an artifact and of what came out when it was made again; `differences` in words, none if they are
    equal. `sources` are those files of the source that are not the recorded ones, `tools` those programs with a part in
    the bytes that are others here, in words."""

    recorded: Digest
    rebuilt: Digest
    differences: tuple[str, ...]
    sources: tuple[str, ...]
    tools: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The result for scripts."""
        return {
            "recorded": str(self.recorded), "rebuilt": str(self.rebuilt), "reproduced": self.recorded == self.rebuilt,
            "differences": list(self.differences), "sources": list(self.sources), "tools": list(self.tools),
        }  # fmt: skip


@verify_app.command("verify")
def verify_command(
    ref: Annotated[str, typer.Argument(metavar="REF", help="The artifact, in a registry, a layout or the store.")],
    again: Annotated[bool, typer.Option("--rebuild", help="Pack it again from its provenance and compare.")] = False,
    source: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Where the source is; by default what the provenance names.")
    ] = None,
    imatrix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The importance matrix it was quantised by.")
    ] = None,
    quantizer: QuantizerOption = "",
    converter: ConverterOption = Converter.OWN,
    converter_path: ConverterPathOption = "",
    allow: AllowOption = None,
    json: JsonOption = False,
    plain_http: PlainHttpOption = False,
) -> None:
    """Pack an artifact again from its recorded provenance, and compare the digests. Exit status 3 if they differ.

    Whose signature is on it is not asked here: runner verify REF --policy FILE does that. So what may run code of the
    checkpoint (--converter llama.cpp, --allow auto-map, --allow python-code) is done only if it is said here too.

    Example: packager verify localhost:5000/ai/smollm2:135M-F16 --rebuild --source ./SmolLM2-135M-Instruct
    """
    if not again:
        raise InvalidInput("say --rebuild to pack it again; signatures are verified by runner verify REF --policy FILE")
    reference = Reference.parse(ref)
    packed = open_packed(open_repository(reference, plain_http=plain_http), reference)
    made = provenance_of(packed.repository, packed.descriptor.digest)
    if made.tools.get("stowage") not in (None, __version__):
        note(f"made with version {made.tools['stowage']}, this is {__version__}: a difference may come from that")
    production = Production(imatrix, quantizer, converter.value, converter_path, made.split_max_size)
    options = options_of(made, production, check_allowed(allow or ()))
    checkpoint = open_source(named_source(made) if source is None else source, made.file_filter, plain_http=plain_http)
    with progress_bars() as progress:
        result = rebuild(packed, made, checkpoint, options, progress)
    if json:
        print_json(result.to_json())
    if result.differences:
        why = _reasons(result.sources, result.tools)
        raise NotReproduced(f"{ref} is not what its provenance gives: {_listed(result.differences)}{why}")
    if not json:
        note(f"reproduced: {len(packed.layers)} files, {packed.config.precision} {packed.config.format}, same digest")
        print(reference.with_digest(result.rebuilt), flush=True)


def provenance_of(repository: Repository, subject: Digest) -> Provenance:
    """The provenance recorded of `subject`, whoever signed it: to repeat it needs no trust. Raises `NotFound`."""
    broken = None
    for item in collect(repository, subject).items:
        if not isinstance(item.content, Bundle):
            continue
        try:
            statement = Statement.parse(item.content.envelope.payload)
            if statement.predicate_type == PROVENANCE and statement.names(subject):
                return Provenance.parse(statement.predicate)
        except Malformed as error:
            broken = error
    raise broken or NotFound(f"{repository.place} has no provenance of {subject.short}: packager pack --sign writes it")


def named_source(made: Provenance) -> str:
    """The source as a user would name it. Raises `InvalidInput` if it is known only to who packed it."""
    if made.source == LOCAL:
        raise InvalidInput("the source was local and its place is not recorded: name it with --source")
    return f"{made.source}@{made.revision}"


def options_of(made: Provenance, production: Production, allowed: frozenset[str]) -> Options:
    """The options that give the recorded artifact again; of `production` and `allowed`, what the user says.

    Anyone can sign a provenance: what may run code of the checkpoint is taken from the user alone. Raises
    `InvalidInput` if the record has more of that than the user allows, or another converter, and if it wants an
    importance matrix that `production` does not have.
    """
    _check_code(made, production, allowed)
    imatrix = production.imatrix
    recorded = next((file.digest for file in made.files if file.path == made.imatrix), None)
    if recorded is not None:
        if imatrix is None:
            raise InvalidInput(
                f"it was quantised by the importance matrix {made.imatrix}: name the file with --imatrix"
            )
        if not recorded.matches(imatrix.read_bytes()):
            raise InvalidInput(f"{imatrix} is not the importance matrix it was quantised by ({recorded.short})")
    return Options(
        format=made.format,
        precision=made.precision,
        layout=made.layout.removesuffix(OLLAMA),
        created=made.created,
        allowed=frozenset(made.allowed) - CODE | allowed,
        base=Digest.parse(made.base) if made.base else None,
        ollama=made.layout.endswith(OLLAMA),
        production=replace(production, imatrix=imatrix if recorded else None, split_max_size=made.split_max_size),
    )


def _check_code(made: Provenance, production: Production, allowed: frozenset[str]) -> None:
    stated = made.converter or OWN
    if stated not in list(Converter):
        raise InvalidInput(f"its provenance names a converter that is not known here: {stated!r:.60}")
    if stated == OWN != production.converter:
        raise InvalidInput(f"--converter {production.converter}: its provenance names no other converter than {OWN}")
    if stated != production.converter:
        raise InvalidInput(
            f"its provenance says that {stated} converted it, which is not done on its word alone: say --converter "
            f"{stated} to run that on the source"
        )
    if wanted := sorted(CODE.intersection(made.allowed) - allowed):
        raise InvalidInput(
            "its provenance says that it was packed in spite of Python code, which is not done on its word alone: say "
            f"--allow {' --allow '.join(wanted)} to do so"
        )


def rebuild(packed: Packed, made: Provenance, checkpoint: Checkpoint, options: Options, progress: Progress) -> Rebuilt:
    """Pack `checkpoint` with `options`, those of `made`, and compare with `packed`. Raises `NotReproduced` if another
    program would be given files that `made` does not name."""
    place = _Nowhere()
    if checkpoint.adapter:
        # An adapter has its base's architecture where it states none itself.
        description = replace(checkpoint.description, architecture=packed.config.architecture)
        checkpoint = replace(checkpoint, description=description)
    if _runs_others(checkpoint, options) and (sources := _other_sources(made, checkpoint, progress)):
        raise NotReproduced(
            f"{packed.place} is not made again: no other program is given what its provenance does not name"
            + _reasons(sources, _other_tools(made, checkpoint, options))
        )
    descriptor, _ = pack(checkpoint, place, None, options, progress)
    if descriptor.digest == packed.descriptor.digest:
        return Rebuilt(packed.descriptor.digest, descriptor.digest, (), ())
    differences = _differences(packed.manifest, place.model)
    sources, tools = _other_sources(made, checkpoint, progress), _other_tools(made, checkpoint, options)
    return Rebuilt(packed.descriptor.digest, descriptor.digest, differences, sources, tools)


def _differences(recorded: Manifest, rebuilt: Manifest) -> tuple[str, ...]:
    found = []
    before, after = (
        {layer.annotations.get(mediatypes.FILEPATH, ""): layer for layer in manifest.layers}
        for manifest in (recorded, rebuilt)
    )
    for path in sorted(before.keys() | after.keys()):
        if path not in after:
            found.append(f"{path} is not made any more")
        elif path not in before:
            found.append(f"{path} was not there")
        elif before[path].digest != after[path].digest:
            found.append(f"{path} is {after[path].digest.short}, recorded is {before[path].digest.short}")
        elif before[path] != after[path] or before[path].annotations != after[path].annotations:
            found.append(f"{path} is described otherwise")
    keys = sorted(recorded.annotations.keys() | rebuilt.annotations.keys())
    if found:
        keys = [key for key in keys if key != mediatypes.INDEX]  # of other files it is another one
    found += [
        f"annotation {key} is {rebuilt.annotations.get(key)!r}, recorded is {recorded.annotations.get(key)!r}"
        for key in keys
        if recorded.annotations.get(key) != rebuilt.annotations.get(key)
    ]
    return tuple(found) or ("the config is another one",)


def _other_sources(made: Provenance, checkpoint: Checkpoint, progress: Progress) -> tuple[str, ...]:
    recorded = {file.path: file.digest for file in made.files if file.path != made.imatrix}
    files = checkpoint.sources
    held = dict(zip([file.path for file in files], digests_of(files, progress), strict=True))
    return tuple(sorted(path for path in recorded.keys() | held.keys() if recorded.get(path) != held.get(path)))


def _runs_others(checkpoint: Checkpoint, options: Options) -> bool:
    if not converts(checkpoint, options):
        return False
    return runs_others(checkpoint, conversion_precision(checkpoint, options), options.production)


def _other_tools(made: Provenance, checkpoint: Checkpoint, options: Options) -> tuple[str, ...]:
    if not converts(checkpoint, options):
        return ()
    here = tools_of(checkpoint, conversion_precision(checkpoint, options), options.production)
    return tuple(
        f"{name} {made.tools.get(name, 'not recorded')}, here {version}"
        for name, version in here.items()
        if made.tools.get(name) != version
    )


def _reasons(sources: tuple[str, ...], tools: tuple[str, ...]) -> str:
    why = f"; the source has other bytes: {_listed(sources)}" if sources else ""
    return why + (f"; it was made with other programs: {_listed(tools)}" if tools else "")


def _listed(items: tuple[str, ...]) -> str:
    more = f", and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more


class _Nowhere:
    """A place for an artifact that keeps nothing of it but the manifest."""

    def __init__(self) -> None:
        self.model = Manifest(Descriptor.of(b"", "application/octet-stream"), ())

    def manifest(self, reference: str | Digest) -> tuple[Descriptor, bytes]:
        raise NotFound(f"no manifest {reference}")

    def push_manifest(self, raw: bytes, media_type: str, tag: str | None = None) -> Descriptor:
        manifest = Manifest.parse(raw, media_type)
        if manifest.subject is None:
            self.model = manifest
        return Descriptor.of(raw, media_type)

    def push_blob(self, descriptor: Descriptor, source: Source, progress: Progress) -> bool:
        if self.add_blob(str(descriptor.digest), descriptor.size, source, progress) != descriptor.digest:
            raise DigestMismatch(f"the bytes are not those of {descriptor.digest}")
        return True

    def add_blob(self, name: str, size: int, source: Source, progress: Progress) -> Digest:
        return hash_source(name, size, source, progress)

    def mount_blob(self, digest: Digest, origin: Repository) -> bool:
        return True
