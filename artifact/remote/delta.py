"""Which blobs of an artifact a registry can make of blobs that it has: those of an earlier version there."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from typing import NamedTuple

from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import DigestMismatch, InvalidInput, Malformed, NotFound, ServerError
from artifact.manifest import Manifest
from artifact.moved import Moved
from artifact.progress import Progress
from artifact.remote.composition import Composition, Held
from artifact.remote.repository import RemoteRepository
from artifact.repository import Repository
from artifact.source import Source
from artifact.tensorindex import Chunker, FileIndex
from artifact.tensorindex.attach import read_index
from artifact.weights import gguf, safetensors
from artifact.weights.tensor import Tensor

_OCTETS = "application/octet-stream"
_BUFFER = 1024 * 1024
LEAST = 4 * 1024 * 1024
"""Blobs smaller than this are sent whole."""


class Base(NamedTuple):
    """An earlier version of an artifact, by tag or digest, in the registry that the new one goes to."""

    repository: RemoteRepository
    reference: str | Digest


def base_of(target: Repository, tag: str | None, stated: Base | None) -> Base | None:
    """What a push to `tag` can rest on: what was `stated`, or else what the tag points at. None if the target is no
    registry. Raises `InvalidInput` if something was stated that lies elsewhere."""
    if not isinstance(target, RemoteRepository):
        if stated is not None:
            raise InvalidInput(f"{target.place} is no registry: only to a registry a part of an artifact can be pushed")
        return None
    if stated is not None and stated.repository.host != target.host:
        raise InvalidInput(
            f"{stated.repository.place} is not in the registry {target.host}: name an artifact that the target has"
        )
    return stated or (Base(target, tag) if tag is not None else None)


def held_in(base: Base, target: RemoteRepository) -> Held | None:
    """The chunks that a base holds; None if it has no tensor index. Raises what reading it raises."""
    descriptor, raw = base.repository.manifest(base.reference)
    found = read_index(base.repository, Manifest.parse(raw, descriptor.media_type))
    if found is None:
        return None
    held = Held()
    held.add(found[0], None if base.repository.name == target.name else base.repository.name)
    return held


class Delta:
    """The blobs of the artifact `manifest` in `source` that `target` can make, if in part, of what it has in `base`.

    An artifact or a base without a tensor index, or with one that is damaged, makes nothing possible and is no error.
    """

    def __init__(self, source: Repository, target: RemoteRepository, manifest: Manifest, base: Base) -> None:
        self._source, self._target, self._manifest, self._base = source, target, manifest, base
        self._lock = threading.Lock()

    def composition(self, digest: Digest) -> Composition | None:
        """The way to make a blob; None if it has to be sent whole. Raises what the network raises."""
        with self._lock:
            return self._compositions.get(digest)

    @cached_property
    def _compositions(self) -> Mapping[Digest, Composition]:
        with suppress(NotFound, Malformed, DigestMismatch, ServerError):
            held = held_in(self._base, self._target)
            found = read_index(self._source, self._manifest)
            if held is not None and found is not None:
                ways = {file.digest: Composition.of(file, held) for file in found[0].files if file.size >= LEAST}
                return {digest: way for digest, way in ways.items() if way is not None}
        return {}


class DeltaTarget:
    """A registry's repository that is packed into. Of weight files that are not there it is sent what `base` does not
    have; without one, what the tag has that is asked about first, as whoever packs does.

    Files that may profit are read once for their chunks, and where they are sent again: what is local is read faster
    than it is sent. `moved` is the number of bytes that were sent. Safe for several threads.
    """

    def __init__(self, repository: RemoteRepository, base: Base | None) -> None:
        self._repository, self._base = repository, base_of(repository, None, base)
        self._lock = threading.Lock()
        self.moved = 0

    def manifest(self, reference: str | Digest) -> tuple[Descriptor, bytes]:
        """As the repository's; what it answers is what later pushes rest on."""
        found = self._repository.manifest(reference)
        with self._lock:
            self._base = self._base or Base(self._repository, found[0].digest)
        return found

    def push_manifest(self, raw: bytes, media_type: str, tag: str | None = None) -> Descriptor:
        """As the repository's."""
        return self._repository.push_manifest(raw, media_type, tag)

    def mount_blob(self, digest: Digest, origin: Repository) -> bool:
        """As the repository's."""
        return self._repository.mount_blob(digest, origin)

    def push_blob(self, descriptor: Descriptor, source: Source, progress: Progress) -> bool:
        """As the repository's."""
        held = self._held(descriptor.size)
        with self._counting(progress) as counted:
            if held is None:
                return self._repository.push_blob(descriptor, source, counted)
            find = partial(self._way, held, descriptor, source, progress)
            return self._repository.compose_blob(descriptor, source, find, counted)

    def add_blob(self, name: str, size: int, source: Source, progress: Progress) -> Digest:
        """As the repository's; but a file of which something may be there is hashed first."""
        held = self._held(size)
        tensors = _tensors(source, size) if held is not None else None
        with self._counting(progress) as counted:
            if held is None or tensors is None:
                return self._repository.add_blob(name, size, source, counted)
            index = _indexed(source, size, tensors, name, progress)
            way = partial(Composition.of, index, held)
            named = _Renamed(counted, str(index.digest), name)
            self._repository.compose_blob(Descriptor(_OCTETS, index.digest, size), source, way, named)
            return index.digest

    @contextmanager
    def _counting(self, progress: Progress) -> Iterator[Progress]:
        moved = Moved(progress)
        yield moved
        with self._lock:
            self.moved += moved.count

    def _way(self, held: Held, descriptor: Descriptor, source: Source, progress: Progress) -> Composition | None:
        tensors = _tensors(source, descriptor.size)
        if tensors is None:
            return None
        index = _indexed(source, descriptor.size, tensors, descriptor.digest.short, progress)
        return Composition.of(index, held) if index.digest == descriptor.digest else None

    def _held(self, size: int) -> Held | None:
        if size < LEAST:
            return None
        with self._lock:
            return self._known

    @cached_property
    def _known(self) -> Held | None:
        if self._base is None:
            return None
        with suppress(NotFound, Malformed, DigestMismatch, ServerError):
            return held_in(self._base, self._repository)
        return None


def _tensors(source: Source, size: int) -> Sequence[Tensor] | None:
    """The tensors of a weight file, as its header has them; None if it is none."""
    with suppress(Malformed):
        return gguf.read_source(source, size, "").tensors
    with suppress(Malformed):
        return safetensors.read_source(source, size, "").tensors
    return None


def _indexed(source: Source, size: int, tensors: Sequence[Tensor], name: str, progress: Progress) -> FileIndex:
    """The chunks and the digest of a weight file, read once."""
    chunker, hasher, buffer = Chunker(tensors, size, name=name), hashlib.sha256(), memoryview(bytearray(_BUFFER))
    label = f"{name} (hashing)"
    progress.begin(label, size)
    with source(0) as reader:
        while count := reader.readinto(buffer):
            chunker.update(buffer[:count])
            hasher.update(buffer[:count])
            progress.advance(label, count)
    progress.finish(label)
    return FileIndex(name, Digest.from_hasher("sha256", hasher), size, tensors, chunker.finish())


class _Renamed:
    """Progress of one blob, told under another name."""

    def __init__(self, progress: Progress, old: str, new: str) -> None:
        self._progress, self._old, self._new = progress, old, new

    def begin(self, name: str, total: int) -> None:
        self._progress.begin(self._named(name), total)

    def advance(self, name: str, count: int) -> None:
        self._progress.advance(self._named(name), count)

    def finish(self, name: str, note: str = "") -> None:
        self._progress.finish(self._named(name), note)

    def _named(self, name: str) -> str:
        return self._new if name == self._old else name
