"""Digests of many files at once."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from functools import partial

from artifact.digest import Digest
from artifact.errors import DigestMismatch, Malformed
from artifact.parallel import Stopped, run_all
from artifact.progress import Progress
from artifact.source import Source
from packager.checkpoint import PackFile

_BUFFER = 4 * 1024 * 1024


def digests_of(files: Sequence[PackFile], progress: Progress, cancelled: threading.Event | None = None) -> list[Digest]:
    """The sha256 digest of each file, in order. Threads share the work: hashing and reading leave the interpreter.
    What a repository holds is known already. Setting `cancelled` ends it with `Stopped`.

    Raises `Malformed` if a file's size is not the one it had when it was opened: it is being written to; and
    `DigestMismatch` if it has not the bytes that are expected.
    """
    return run_all(
        [partial(digest_of, file, progress, cancelled or threading.Event()) for file in files],
        min(8, os.cpu_count() or 1),
    )


def digest_of(file: PackFile, progress: Progress, *stops: threading.Event) -> Digest:
    """The sha256 digest of one file; any of `stops` ends the work."""
    if file.content.digest is not None:
        return file.content.digest
    digest = hash_source(f"{file.path} (hashing)", file.size, file.source, progress, *stops)
    if file.expected not in (None, digest):
        raise DigestMismatch(f"{file.path}: not the bytes the hub has under {file.expected}: download it again")
    return digest


def hash_source(name: str, size: int, source: Source, progress: Progress, *stops: threading.Event) -> Digest:
    """The sha256 digest of `size` bytes; `name` is for progress and errors."""
    hasher, view, done = hashlib.sha256(), memoryview(bytearray(min(_BUFFER, size + 1))), 0
    progress.begin(name, size)
    with source(0) as reader:
        while count := reader.readinto(view):
            if any(stop.is_set() for stop in stops):
                raise Stopped("stopped")
            hasher.update(view[:count])
            done += count
            progress.advance(name, count)
    if done != size:
        raise Malformed(f"{name}: changed while it was packed ({size} bytes, then {done}); pack again when it is still")
    progress.finish(name)
    return Digest.from_hasher("sha256", hasher)
