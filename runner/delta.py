"""What a pull takes from where: chunks that models in the store have from there, the rest from the registry."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from artifact.descriptor import Descriptor
from artifact.errors import StowageError
from artifact.layout import LayoutRepository
from artifact.layout.local import find_chunks
from artifact.manifest import Manifest
from artifact.repository import Repository
from artifact.source import RangedSource, Reader, Source
from artifact.tensorindex import TensorIndex
from artifact.tensorindex.attach import read_index
from artifact.tensorindex.indexed import IndexedSource, Place
from artifact.terminal import note
from runner.store import Store


class Received:
    """Counts the bytes that came from where a model is, whoever asked for them."""

    def __init__(self) -> None:
        self.bytes = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Count bytes."""
        with self._lock:
            self.bytes += count

    def counted(self, source: Source) -> Source:
        """`source`, of which whatever is read is counted."""
        return _CountedRanges(source, self) if isinstance(source, RangedSource) else _Counted(source, self)


class _Counted:
    def __init__(self, source: Source, received: Received) -> None:
        self._source, self._received = source, received

    def __call__(self, offset: int, /) -> AbstractContextManager[Reader]:
        return self._reading(self._source(offset))

    @contextmanager
    def _reading(self, opened: AbstractContextManager[Reader]) -> Iterator[Reader]:
        with opened as reader:
            yield _CountedReader(reader, self._received)


class _CountedRanges(_Counted):
    _source: RangedSource

    def range(self, start: int, length: int, /) -> AbstractContextManager[Reader]:
        return self._reading(self._source.range(start, length))


class _CountedReader:
    def __init__(self, reader: Reader, received: Received) -> None:
        self._reader, self._received = reader, received

    def readinto(self, buffer: memoryview, /) -> int:
        count = self._reader.readinto(buffer) or 0
        self._received.add(count)
        return count


def index_of(
    origin: Repository, target: LayoutRepository, manifest: Manifest, received: Received
) -> TensorIndex | None:
    """The tensor index of a model, if it has one that can be used; a pull goes on without, and says so."""
    for place in (target, origin):
        try:
            found = read_index(place, manifest)
        except StowageError as error:
            if place is origin:
                note(f"warning: {error}: the model is pulled without its tensor index, which can be slower")
            continue
        if found is not None and place is origin:
            received.add(found[1].size)
        return found[0] if found is not None else None
    return None


def sources(
    origin: Repository,
    blobs: tuple[Descriptor, ...],
    index: TensorIndex | None,
    local: Mapping[bytes, Place],
    received: Received,
) -> dict[Descriptor, Source]:
    """Where the content of each blob comes from; what is read from `origin` is counted in `received`."""
    found: dict[Descriptor, Source] = {}
    for blob in blobs:
        source = received.counted(origin.blob_source(blob))
        file = index.file(blob.digest) if index is not None else None
        if file is not None and file.size == blob.size and isinstance(source, RangedSource):
            source = IndexedSource(source, file, local)
        found[blob] = source
    return found


def local_chunks(
    store: Store, target: LayoutRepository, blobs: tuple[Descriptor, ...], index: TensorIndex
) -> dict[bytes, Place]:
    """Where in the store, or in the system's, chunks of the blobs that are still missing are."""
    wanted: set[bytes] = set()
    for blob in blobs:
        file = index.file(blob.digest)
        if file is not None and target.blob_size(blob.digest) is None:
            wanted.update(chunk.digest for chunk in file.chunks)
    if not wanted:
        return {}
    roots = [store.root] if store.system is None else [store.root, store.system]
    return find_chunks([LayoutRepository(root) for root in roots], wanted, target.name or "")
