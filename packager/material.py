"""What the files of an artifact are made of: the checkpoint's own, or what it is converted to."""

from __future__ import annotations

import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from artifact.errors import Malformed, StowageError
from artifact.layout import LayoutRepository
from artifact.progress import Progress
from artifact.terminal import note
from artifact.weights import gguf
from artifact.weights.precision import Facts, facts_of
from artifact.weights.tensor import WeightFile
from packager.checkpoint import CHAT_TEMPLATE, Checkpoint, PackFile, in_order
from packager.content import Made, OnDisk, Stored
from packager.description import slug
from packager.files import Kind, is_projector
from packager.storing import Named
from packager.witness import InFolder, SourceDigests

if TYPE_CHECKING:
    from packager.convert import Plan

_PROJECTOR = re.compile("mmproj", re.IGNORECASE)


@dataclass(frozen=True)
class Material:
    """The files of the artifact to be, as they are or converted, and the headers of their weights."""

    files: tuple[PackFile, ...]
    weights: tuple[WeightFile, ...]
    facts: Facts


@contextmanager
def converted(
    checkpoint: Checkpoint, precision: str, progress: Progress, sources: SourceDigests | None
) -> Iterator[Material]:
    """The checkpoint as one GGUF file, which is made while it is read: no copy of it lies anywhere."""
    from packager.convert import plan_conversion  # numpy takes a while to load, and only conversions need it

    with as_folder(checkpoint, progress) as folder:
        plan = watched(plan_conversion(folder, precision), folder, sources)
        if plan.warning:
            note(f"warning: {plan.warning}")
        name = f"{weights_stem(checkpoint)}-{precision}.gguf"
        weights = (gguf.read_source(plan.source, plan.size, name),)
        facts = facts_of(weights)
        if facts.precision != precision:
            raise Malformed(f"the conversion to {precision} came out as {facts.precision}")
        yield Material(
            with_documents(checkpoint, [PackFile(name, Kind.WEIGHT, Made(plan.size, plan.source))]), weights, facts
        )


def weights_stem(checkpoint: Checkpoint) -> str:
    """What the names of GGUF files made for `checkpoint` begin with: the model's name, but never so that llama.cpp, and
    who reads the artifact, take them for a projector."""
    stem = slug(checkpoint.name)
    return _PROJECTOR.sub("model", stem) if is_projector(f"{stem}.gguf") else stem


def watched(plan: Plan, folder: Path, sources: SourceDigests | None) -> Plan:
    """`plan`, which shows `sources` what it reads of the files in `folder`."""
    return replace(plan, witness=InFolder(folder, sources)) if sources is not None else plan


def with_documents(checkpoint: Checkpoint, weights: Sequence[PackFile]) -> tuple[PackFile, ...]:
    """The files of an artifact of converted `weights`: with the checkpoint's template, licence and model card."""
    files = [*weights]
    files += [file for file in checkpoint.files if file.kind is Kind.DOC and "/" not in file.path]
    if checkpoint.chat_template is not None:
        files += [file for file in checkpoint.files if file.path == CHAT_TEMPLATE]
    return in_order(files)


@contextmanager
def as_folder(checkpoint: Checkpoint, progress: Progress) -> Iterator[Path]:
    """A folder with exactly the checkpoint's own files, as links: whoever converts sees what the filter left, no more.

    Blobs of a registry are fetched, and checked, for as long as the folder is there. Errors name the checkpoint.
    """
    with scratch_folder() as scratch:
        folder = scratch / slug(checkpoint.name)
        folder.mkdir()
        for file in checkpoint.sources:
            link = folder / file.path
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(_location(file, scratch, progress).resolve())
        try:
            yield folder
        except StowageError as error:
            error.args = (str(error).replace(str(folder), checkpoint.place),)
            raise


def _location(file: PackFile, scratch: Path, progress: Progress) -> Path:
    content = file.content
    if isinstance(content, OnDisk):
        return content.location
    assert isinstance(content, Stored)
    holder = content.repository
    if not isinstance(holder, LayoutRepository):
        holder = LayoutRepository(scratch / "fetched")
        holder.push_blob(content.blob, content.source, Named(progress, {str(content.digest): file.path}))
    return holder.blob_path(content.digest)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder that is gone afterwards. Its name is known before it exists: an interrupt that arrives while it is being
    made finds it too."""
    folder = Path(tempfile.gettempdir()) / f"packager-{secrets.token_hex(8)}"
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
