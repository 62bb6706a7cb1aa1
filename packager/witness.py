"""The digests of the files that a conversion reads, made of the very reads of the converter.

A converter reads tensors in the order of its result, which is the order of the source's own tensors wherever one tensor
becomes one; a digest needs the file's own order. What is skipped (a header, a tensor that is left out), and what comes
too late (of experts, whose matrices are joined across the file), is read for the digest alone.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from artifact.digest import Digest
from artifact.errors import DigestMismatch, Malformed
from artifact.progress import Progress
from packager.checkpoint import PackFile
from packager.files import Kind
from packager.hashing import digests_of

_BUFFER = 4 * 1024 * 1024


class SourceDigests:
    """The digests of `files`. Weights that are `shown` are hashed when the converter reads them; everything else in a
    thread, meanwhile. To be used as a context, which ends that thread."""

    def __init__(self, files: Sequence[PackFile], progress: Progress, *, shown: bool) -> None:
        self._files, self._progress = files, progress
        watched = [file for file in files if shown and file.kind is Kind.WEIGHT and file.content.digest is None]
        self._watched = {file.path: _Watched(file) for file in watched}
        self._others = [file for file in files if file.path not in self._watched]
        self._cancelled = threading.Event()
        self._pool = ThreadPoolExecutor(1, "hash")
        self._hashed: Future[list[Digest]] | None = None

    def __enter__(self) -> SourceDigests:
        if self._others:
            self._hashed = self._pool.submit(digests_of, self._others, self._progress, self._cancelled)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cancelled.set()
        self._pool.shutdown(wait=True)

    def saw(self, path: str, offset: int, data: memoryview) -> None:
        """`data` was read at `offset` of the source's file `path`."""
        watched = self._watched.get(path)
        if watched is not None:
            watched.saw(offset, data)

    def digests(self) -> dict[str, Digest]:
        """All digests, by path; waits for the thread, and reads what nobody has read. Raises `Malformed` if a file was
        written to meanwhile, `DigestMismatch` if it has not the bytes that are expected."""
        found = {path: watched.digest(self._progress) for path, watched in self._watched.items()}
        if self._hashed is not None:
            found |= zip([file.path for file in self._others], self._hashed.result(), strict=True)
        return {file.path: found[file.path] for file in self._files}


class InFolder:
    """Tells `digests` what is read of the files in `folder`, where a converter sees them under their own paths: a
    `packager.convert.tensors.Witness`."""

    def __init__(self, folder: Path, digests: SourceDigests) -> None:
        self._folder, self._digests = folder, digests

    def saw(self, path: Path, offset: int, data: memoryview) -> None:
        """`data` was read at `offset` of the file at `path`."""
        if path.is_relative_to(self._folder):
            self._digests.saw(path.relative_to(self._folder).as_posix(), offset, data)


class _Watched:
    """A file, hashed up to `_position`."""

    def __init__(self, file: PackFile) -> None:
        self._file = file
        self._hasher, self._position = hashlib.sha256(), 0
        self._lock = threading.Lock()

    def saw(self, offset: int, data: memoryview) -> None:
        with self._lock:
            if offset > self._position:
                self._read(offset)
            fresh = data[self._position - offset :]
            self._hasher.update(fresh)
            self._position += len(fresh)

    def digest(self, progress: Progress) -> Digest:
        with self._lock:
            name, size = f"{self._file.path} (hashing)", self._file.size
            if left := size - self._position:
                progress.begin(name, left)
                self._read(size)
                progress.advance(name, left)
                progress.finish(name)
            digest = Digest.from_hasher("sha256", self._hasher)
        if self._file.expected not in (None, digest):
            raise DigestMismatch(f"{self._file.path}: not the bytes the hub has under {self._file.expected}: damaged; "
                                 "delete it and download it again")  # fmt: skip
        return digest

    def _read(self, end: int) -> None:
        """Hash up to `end` what nobody has shown."""
        if self._position >= end:
            return
        buffer = memoryview(bytearray(min(_BUFFER, end - self._position)))
        with self._file.source(self._position) as reader:
            while self._position < end:
                count = reader.readinto(buffer[: end - self._position])
                if not count:
                    raise Malformed(f"{self._file.path}: changed while it was packed; pack again when it is still")
                self._hasher.update(buffer[:count])
                self._position += count
