"""Getting the files of an artifact into a repository, each byte of their sources read once.

A file's digest comes out of the same pass that stores or sends it. Small files are read whole; a blob that another
repository holds is mounted, or copied from there; and a file that the repository may well hold already (the tag's
present artifact has one of that very size) is hashed first, so that nothing is sent in vain. The tensor index comes out
of that pass as well (`packager.indexing`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import DigestMismatch, Malformed, NotFound
from artifact.manifest import Manifest
from artifact.parallel import Stopped, run_all, stoppable
from artifact.progress import Progress
from artifact.repository import Repository
from artifact.source import Source, bytes_source
from artifact.tensorindex import FileIndex
from packager.checkpoint import PackFile
from packager.content import Made, OnDisk, Stored, read
from packager.hashing import hash_source
from packager.indexing import Indexing, Tables

CONCURRENCY = 4
_SMALL = 4 * 1024 * 1024
"""Files up to this many bytes are read whole."""
_BLOB = "application/octet-stream"


class Target(Protocol):
    """The part of a repository that packing needs. See `artifact.repository.Repository` for what it shares with it."""

    def manifest(self, reference: str | Digest) -> tuple[Descriptor, bytes]:
        """The manifest there is already. Raises `NotFound`."""

    def push_manifest(self, raw: bytes, media_type: str, tag: str | None = None) -> Descriptor:
        """Store a manifest, and point `tag` at it."""

    def push_blob(self, descriptor: Descriptor, source: Source, progress: Progress) -> bool:
        """Store content whose digest is known. Raises `DigestMismatch` if it is other content."""

    def add_blob(self, name: str, size: int, source: Source, progress: Progress) -> Digest:
        """Store content, reading each byte once; the digest it got. `name` is for progress and errors."""

    def mount_blob(self, digest: Digest, origin: Repository) -> bool:
        """Make a blob that `origin` has appear here. False if that is not possible."""


@dataclass(frozen=True)
class Kept:
    """What became of a file: the digest it is stored under, and of weights the part of the tensor index about them."""

    digest: Digest
    index: FileIndex | None = None


@dataclass(frozen=True)
class Indexes:
    """What there is to make the tensor index of: the `tables` of the weight files, and what is `known` of files that an
    artifact with an index of its own holds already."""

    tables: Tables
    known: Callable[[], Mapping[Digest, FileIndex]] = dict


def store_files(
    target: Target, files: Sequence[PackFile], indexes: Indexes, tag: str | None, progress: Progress
) -> list[Kept]:
    """Store the content of every file; what became of them, in order. `tag` is the one the artifact will have.

    Raises `Malformed` if a file was written to meanwhile, `DigestMismatch` if it has not the bytes that are expected.
    """
    sizes = _held_sizes(target, tag)
    late = [file for file in files if file.size > _SMALL or isinstance(file.content, Made)]
    small = [file for file in files if file not in late]
    kept: dict[str, Kept] = {}
    for group in (late, small):  # what can go wrong in the middle goes first
        work = [partial(_keep, target, file, indexes, sizes, progress) for file in group]
        # What is made keeps all processors busy by itself, and is made of one source, from front to back.
        concurrency = 1 if any(isinstance(file.content, Made) for file in group) else CONCURRENCY
        kept.update(zip([file.path for file in group], run_all(work, concurrency), strict=True))
    check_unchanged(files)
    return [kept[file.path] for file in files]


def check_unchanged(files: Sequence[PackFile]) -> None:
    """Raise `Malformed` if a file was written to since it was opened: what was read is not known."""
    for file in files:
        if isinstance(file.content, OnDisk):
            file.content.check_unchanged()


def _held_sizes(target: Target, tag: str | None) -> frozenset[int]:
    if tag is None:
        return frozenset()
    try:
        descriptor, raw = target.manifest(tag)
        return frozenset(layer.size for layer in Manifest.parse(raw, descriptor.media_type).layers)
    except (NotFound, Malformed):
        return frozenset()


def _keep(
    target: Target, file: PackFile, indexes: Indexes, sizes: frozenset[int], progress: Progress, stop: threading.Event
) -> Kept:
    if stop.is_set():
        raise Stopped("stopped")
    table = indexes.tables.get(file.path)
    if table is None:
        return Kept(_store(target, file, None, sizes, progress, stop))
    if file.content.digest is not None and (known := indexes.known().get(file.content.digest)) is not None:
        return Kept(_store(target, file, None, sizes, progress, stop), replace(known, path=file.path))
    indexing = Indexing(file, table)
    digest = _store(target, file, indexing, sizes, progress, stop)
    return Kept(digest, indexing.result(digest, progress, stop))


def _store(
    target: Target, file: PackFile, indexing: Indexing | None, sizes: frozenset[int], progress: Progress,
    stop: threading.Event,
) -> Digest:  # fmt: skip
    """Store `file`, and let `indexing` see what is read of it; its digest."""
    content = file.content
    if isinstance(content, Stored):
        if target.mount_blob(content.digest, content.repository):
            progress.finish(file.path, "mounted")
            return content.digest
        blob = indexing.source if indexing is not None else content.repository.blob_source(content.blob)
        return _push(target, file, content.digest, stoppable(blob, stop), progress)
    if file.size <= _SMALL and not isinstance(content, Made):
        data = read(content, _SMALL, file.path)
        if indexing is not None:
            indexing.take(data)
        return _push(target, file, _expected(file, Digest.of(data)), bytes_source(data), progress)
    source = stoppable(indexing.source if indexing is not None else file.source, stop)
    if file.expected is not None:
        return _push(target, file, file.expected, source, progress)
    if file.size in sizes:
        digest = hash_source(f"{file.path} (hashing)", file.size, source, progress)
        return _push(target, file, digest, stoppable(file.source, stop), progress)
    return target.add_blob(file.path, file.size, source, progress)


def _push(target: Target, file: PackFile, digest: Digest, source: Source, progress: Progress) -> Digest:
    named = Named(progress, {str(digest): file.path})
    try:
        target.push_blob(Descriptor(_BLOB, digest, file.size), source, named)
    except DigestMismatch:
        if file.expected is not None:
            raise DigestMismatch(_other_bytes(file)) from None
        raise
    return digest


def _expected(file: PackFile, digest: Digest) -> Digest:
    if file.expected not in (None, digest):
        raise DigestMismatch(_other_bytes(file))
    return digest


def _other_bytes(file: PackFile) -> str:
    return f"{file.path}: not the bytes the hub has under {file.expected}: damaged; delete it and download it again"


class Named:
    """Progress of blobs, told under the names of their files: `paths` by the digests the blobs go by."""

    def __init__(self, progress: Progress, paths: Mapping[str, str]) -> None:
        self._progress, self._paths = progress, paths

    def begin(self, name: str, total: int) -> None:
        self._progress.begin(self._paths.get(name, name), total)

    def advance(self, name: str, count: int) -> None:
        self._progress.advance(self._paths.get(name, name), count)

    def finish(self, name: str, note: str = "") -> None:
        self._progress.finish(self._paths.get(name, name), note)
