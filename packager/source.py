"""What a user may name as SOURCE: a checkpoint folder, a GGUF file, a model on a hub, or an artifact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from artifact import mediatypes
from artifact.digest import Digest
from artifact.errors import DigestMismatch, InvalidInput, Malformed, NotFound, StowageError
from artifact.filetypes import is_pickle_name
from artifact.layout import LayoutRepository
from artifact.locate import open_repository
from artifact.reference import Reference
from artifact.tensorindex import FileIndex
from artifact.terminal import note
from packager import adapter, gguffile, huggingface
from packager.checkpoint import Checkpoint, Origin
from packager.content import Content, Stored
from packager.files import is_filtered_out, is_gguf_folder, misspelt
from packager.findings import Finding
from packager.folder import list_files
from packager.hub import SCHEME, HubModel, snapshot
from packager.indexing import usable
from packager.packed import Packed, open_packed
from supplychain.provenance import LOCAL


def is_source(text: str) -> bool:
    """Whether `text` names something to pack rather than an artifact: a hub model, or a path that exists."""
    return text.startswith(SCHEME) or Path(text).exists()


def is_reference(text: str) -> bool:
    """Whether a SOURCE that is no existing path can be meant as a reference rather than as a path."""
    if text.startswith((".", "/", "~", SCHEME)) or text.endswith((".gguf", ".safetensors", "/")):
        return False
    try:
        reference = Reference.parse(text)
    except StowageError:
        return False
    return not reference.is_local or reference.tag is not None or reference.digest is not None


def open_source(text: str, globs: Sequence[str] = (), *, plain_http: bool = False) -> Checkpoint:
    """The checkpoint `text` names; a hub model is downloaded into the hub client's cache, of an artifact only what is
    needed to know it is read.

    `globs` are those of ``--file-filter``. Raises `NotFound`, `Malformed`, `InvalidInput`, `Unreachable`.
    """
    if not text:
        raise InvalidInput("the source is empty: name a folder, a .gguf file, hf://ORG/NAME@REV, or a reference")
    if text.startswith(SCHEME):
        return open_hub(HubModel.parse(text), globs)
    if not Path(text).exists() and is_reference(text):
        reference = Reference.parse(text)
        return open_artifact(open_packed(open_repository(reference, plain_http=plain_http), reference), globs)
    return open_path(Path(text), globs)


def open_hub(model: HubModel, globs: Sequence[str] = ()) -> Checkpoint:
    """A model on a hub, downloaded."""
    found = snapshot(model, globs)
    place = f"{SCHEME}{model.repository}@{found.commit}"
    listed, findings = list_files(found.folder, found.globs)
    checkpoint = open_listed(place, listed, findings)
    files = tuple(replace(file, expected=found.digests.get(file.path)) for file in checkpoint.files)
    name = model.repository.rpartition("/")[2]
    return replace(
        checkpoint,
        files=files,
        origin=Origin(f"{SCHEME}{model.repository}", found.url, found.commit),
        description=replace(checkpoint.description, source_url=found.url, revision=found.commit, name=name),
    )


def open_artifact(packed: Packed, globs: Sequence[str] = ()) -> Checkpoint:
    """An artifact as something to pack again. What it says about itself stays said."""
    repository = packed.repository
    listed = {
        path: Stored(repository, layer) for path, layer in packed.layers.items() if not is_filtered_out(path, globs)
    }
    checkpoint = open_listed(packed.place, listed, [])
    # Where a layout lies is this machine's own affair.
    source = LOCAL if isinstance(repository, LayoutRepository) else packed.reference.repository
    stated, annotations = packed.config, packed.manifest.annotations
    description = replace(
        checkpoint.description,
        name=stated.name or checkpoint.description.name,
        licenses=stated.licenses or checkpoint.description.licenses,
        source_url=stated.source_url or annotations.get(mediatypes.SOURCE, ""),
        revision=stated.revision or annotations.get(mediatypes.REVISION, ""),
    )
    origin = Origin(source, "", str(packed.descriptor.digest))
    return replace(checkpoint, origin=origin, description=description, indexed=cache(partial(_indexed, packed)))


def _indexed(packed: Packed) -> dict[Digest, FileIndex]:
    try:
        return usable(packed.index())
    except (NotFound, Malformed, DigestMismatch) as error:
        note(f"warning: {error}: the weights are read instead")
        return {}


def open_listed(place: str, listed: Mapping[str, Content], findings: list[Finding]) -> Checkpoint:
    """The checkpoint that these files make, whatever kind it is. Raises `NotFound` if they make none."""
    if "model_index.json" in listed:
        raise Malformed(f"{place}: a diffusers pipeline, not a language model; it cannot be packed")
    if is_gguf_folder(listed):
        return gguffile.open_files(place, listed, findings)
    if "config.json" in listed:
        return huggingface.open_files(place, listed, findings)
    if adapter.CONFIG in listed:
        return adapter.open_files(place, listed, findings)
    if name := misspelt(listed):
        raise InvalidInput(_renamed(f"{place}/{name}"))
    raise NotFound(f"{place}: not a checkpoint: it has no config.json, and no GGUF file")


def _renamed(path: str) -> str:
    return f"{path}: engines look for .gguf in small letters: rename it to {path[:-5].rpartition('/')[2]}.gguf"


def open_path(path: Path, globs: Sequence[str] = ()) -> Checkpoint:
    """The checkpoint at a path. Raises `NotFound`, `Malformed`, `InvalidInput`."""
    if path.is_dir():
        listed, findings = list_files(path, globs)
        return open_listed(str(path), listed, findings)
    if not path.exists():
        raise NotFound(f"{path}: no such file or folder (a model on a hub is {SCHEME}ORG/NAME@REV)")
    if not path.is_file():
        raise Malformed(f"{path}: not a regular file")
    if misspelt([path.name]):
        raise InvalidInput(_renamed(str(path)))
    if path.suffix == ".gguf":
        if globs:
            raise InvalidInput("--file-filter applies to folders, not to a GGUF file")
        return gguffile.open_gguf(path, str(path))
    if is_pickle_name(path.name):
        raise Malformed(f"{path}: a pickle runs code when it is loaded and is never packed; use safetensors weights")
    if path.suffix.lower() == ".safetensors":
        raise Malformed(f"{path}: weights alone are no checkpoint; give the folder with its config.json")
    raise Malformed(f"{path}: not a checkpoint: want a folder with config.json and safetensors, or a .gguf file")
