"""Digests of many files at once."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from artifact.digest import Digest
from artifact.errors import Malformed
from artifact.parallel import Stopped, run_all
from artifact.progress import Progress
from packager.checkpoint import PackFile

_BUFFER = 4 * 1024 * 1024


def digests_of(files: Sequence[PackFile], progress: Progress) -> list[Digest]:
    """The sha256 digest of each file, in order. Threads share the work: hashing and reading leave the interpreter.

    Raises `Malformed` if a file's size is not the one it had when it was opened: it is being written to.
    """
    return run_all([partial(_digest, file, progress) for file in files], min(8, os.cpu_count() or 1))


def _digest(file: PackFile, progress: Progress, stop: threading.Event) -> Digest:
    if isinstance(file.content, bytes):
        return Digest.of(file.content)
    return _digest_on_disk(file.path, file.content, file.size, progress, stop)


def _digest_on_disk(name: str, path: Path, size: int, progress: Progress, stop: threading.Event) -> Digest:
    hasher, buffer, done = hashlib.sha256(), bytearray(min(_BUFFER, size + 1)), 0
    view = memoryview(buffer)
    progress.begin(name, size)
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            if stop.is_set():
                raise Stopped("stopped")
            hasher.update(view[:count])
            done += count
            progress.advance(name, count)
    if done != size:
        raise Malformed(f"{path}: changed while it was packed ({size} bytes, then {done}); pack again when it is still")
    progress.finish(name, "hashed")
    return Digest.from_hasher("sha256", hasher)
