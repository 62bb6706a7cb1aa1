"""A GGUF file that can be made: written to disk, or read as a stream while it is made."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from pathlib import Path

from artifact.digest import Digest
from artifact.progress import Progress
from artifact.source import Reader
from packager.convert.encoding import Bytes
from packager.convert.gguf_header import Metadata
from packager.convert.tensors import Planned, Witness, encoded


@dataclass(frozen=True)
class Plan:
    """A GGUF file that can be made: its metadata, and how to make each tensor. `name` is for progress, `warning` what a
    user should know about it; `witness` is shown what is read to make it."""

    metadata: Metadata
    tensors: Sequence[Planned]
    name: str
    warning: str = ""
    witness: Witness | None = None

    @cached_property
    def header(self) -> bytes:
        """The bytes before the first tensor's."""
        return self.metadata.header(tensor.entry for tensor in self.tensors)

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + sum(tensor.entry.length + tensor.entry.padding for tensor in self.tensors)

    @contextmanager
    def source(self, offset: int) -> Iterator[Reader]:
        """The file's bytes from `offset`, made as they are read: an `artifact.source.Source`."""
        with closing(encoded(self.tensors, max(0, offset - len(self.header)), self.witness)) as chunks:
            yield _Made(memoryview(self.header)[offset:], chunks)

    def write(self, target: Path, progress: Progress) -> Digest:
        """Make the file at `target`, which is removed again on any failure."""
        try:
            return self._write(target, progress)
        except BaseException:
            target.unlink(missing_ok=True)
            raise

    def _write(self, target: Path, progress: Progress) -> Digest:
        progress.begin(self.name, self.size)
        hasher = hashlib.sha256(self.header)
        with (
            target.open("wb", buffering=0) as stream,
            closing(encoded(self.tensors, witness=self.witness)) as chunks,
            ThreadPoolExecutor(1, "write") as writer,
        ):
            _write_all(stream, memoryview(self.header), target)
            progress.advance(self.name, len(self.header))
            for chunk in chunks:
                written = writer.submit(_write_all, stream, chunk.data, target)
                hasher.update(chunk.data)
                written.result()
                progress.advance(self.name, chunk.nbytes)
        progress.finish(self.name)
        return Digest.from_hasher("sha256", hasher)


class _Made:
    """A stream of a header and what follows it. No tensor is made before it is read."""

    def __init__(self, header: memoryview, chunks: Iterator[Bytes]) -> None:
        self._left, self._chunks = header, chunks

    def readinto(self, buffer: memoryview, /) -> int:
        if not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._left = memoryview(chunk.data).cast("B")
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


def _write_all(stream: FileIO, view: memoryview, target: Path) -> None:
    try:
        while view:
            view = view[stream.write(view) :]
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error
