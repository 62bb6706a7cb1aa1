"""The tensor index of an artifact, made of the bytes of its weight files while they go by on their way to a repository.

Whoever stores a file reads it once, in order, and hashes it as a whole; the chunks are hashed beside that, of the same
reads. A file that nobody has to read, because the repository has it already, is read for its index alone, unless the
artifact it comes from has an index itself.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from artifact.digest import Digest
from artifact.errors import DigestMismatch
from artifact.progress import Progress
from artifact.source import Reader
from artifact.tensorindex import CHUNK_SIZE, JOIN_SIZE, Chunker, FileIndex, TensorIndex
from artifact.weights import gguf
from artifact.weights.tensor import Tensor, WeightFile
from packager.checkpoint import PackFile
from packager.files import Kind, is_projector
from packager.hashing import hash_source

_BESIDE = 128 * 1024
"""Reads from so many bytes on are hashed in a thread, while the reader does something else with them."""

Tables = Mapping[str, Sequence[Tensor]]
"""The tensors of every weight file, by its path in the artifact."""


def tables_of(files: Sequence[PackFile], weights: Sequence[WeightFile]) -> Tables:
    """The tensor tables of an artifact's weight files: `weights` are the headers of the model's own, in order; those of
    projectors are read."""
    held = [file for file in files if file.kind is Kind.WEIGHT]
    own = [file.path for file in held if not is_projector(file.path)]
    tables = {path: header.tensors for path, header in zip(own, weights, strict=True)}
    for file in held:
        if file.path not in tables:
            tables[file.path] = gguf.read_source(file.source, file.size, file.path).tensors
    return tables


def usable(index: TensorIndex | None) -> dict[Digest, FileIndex]:
    """What an earlier artifact's index says of its files, if it was cut as they are cut now."""
    if index is None or (index.chunk_size, index.join_size) != (CHUNK_SIZE, JOIN_SIZE):
        return {}
    return {file.digest: file for file in index.files}


class Indexing:
    """The index of one weight file: a source of its bytes that is looked at while it is read."""

    def __init__(self, file: PackFile, tensors: Sequence[Tensor]) -> None:
        self._file, self._tensors = file, tensors
        self._chunker = self._new()
        self._pending: Future[None] | None = None
        self._broken = False

    def _new(self) -> Chunker:
        return Chunker(self._tensors, self._file.size, name=self._file.path)

    @contextmanager
    def source(self, offset: int) -> Iterator[Reader]:
        """The file's bytes from `offset`: an `artifact.source.Source`, to be read by one thread at a time."""
        if offset > self._chunker.position:
            self._broken = True  # somebody goes on where an earlier attempt stopped
        with self._file.source(offset) as reader, ThreadPoolExecutor(1, "index") as beside:
            try:
                yield _Reader(self, reader, offset, beside)
            finally:
                self.settle()

    def take(self, data: bytes) -> None:
        """All bytes of a small file, at once."""
        self._chunker.update(data)

    def settle(self) -> None:
        """Wait until what was read last is hashed: before its buffer is used again."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def saw(self, offset: int, data: memoryview, beside: ThreadPoolExecutor) -> None:
        """`data` was read at `offset`. What was seen before counts once."""
        fresh = data[max(0, self._chunker.position - offset) :]
        if self._broken or not fresh:
            return
        if len(fresh) < _BESIDE:
            self._chunker.update(fresh)
        else:
            self._pending = beside.submit(self._chunker.update, fresh)

    def result(self, digest: Digest, progress: Progress, stop: threading.Event) -> FileIndex:
        """The index of the file, whose digest is `digest`. What did not pass by is read now, and checked.

        Raises `Malformed` if the file was written to meanwhile, `DigestMismatch` if it has other bytes.
        """
        if self._broken or self._chunker.position != self._file.size:
            self._chunker, self._broken = self._new(), False
            name = f"{self._file.path} (indexing)"
            if hash_source(name, self._file.size, self.source, progress, stop) != digest:
                self._broken = True
                raise DigestMismatch(f"{self._file.path}: not the bytes of {digest}: damaged, or changed meanwhile")
        return FileIndex(self._file.path, digest, self._file.size, self._tensors, self._chunker.finish())


class _Reader:
    def __init__(self, indexing: Indexing, reader: Reader, offset: int, beside: ThreadPoolExecutor) -> None:
        self._indexing, self._reader, self._offset, self._beside = indexing, reader, offset, beside

    def readinto(self, buffer: memoryview, /) -> int:
        self._indexing.settle()
        count = self._reader.readinto(buffer) or 0
        self._indexing.saw(self._offset, buffer[:count], self._beside)
        self._offset += count
        return count
