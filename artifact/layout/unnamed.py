"""Storing content whose digest nobody knows yet: hashed while it is written, named when it has ended."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import secrets
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from artifact.digest import Digest
from artifact.errors import Malformed, StorageFull
from artifact.layout.files import name_complete, write_all
from artifact.progress import Progress
from artifact.source import Source

_BUFFER = 4 * 1024 * 1024


def store_unnamed(
    root: Path, name: str, size: int, source: Source, progress: Progress, create: Callable[[], None]
) -> Digest:
    """Store the `size` bytes of `source` as a blob of the layout at `root`, reading each once; returns their digest.

    `name` is what the bytes are called in progress and errors; `create` makes the folder a layout, once there is
    something to name. Raises `Malformed`, and keeps nothing, if the source has another size by now, and `StorageFull`.
    """
    ingest = root / "ingest"
    ingest.mkdir(parents=True, exist_ok=True)
    partial = ingest / f"unnamed-{secrets.token_hex(16)}"
    progress.begin(name, size)
    try:
        with partial.open("xb", buffering=0) as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            digest = _copy(name, size, source, stream.fileno(), progress)
            create()
            final = root / "blobs" / digest.algorithm / digest.hex
            final.parent.mkdir(parents=True, exist_ok=True)
            name_complete(stream.fileno(), size, partial, final)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"disk full while storing {name} ({size:,} bytes) in {root}: free some space") from None
        raise
    finally:
        partial.unlink(missing_ok=True)
    progress.finish(name)
    return digest


def _copy(name: str, size: int, source: Source, target: int, progress: Progress) -> Digest:
    """Read into one buffer while the other is hashed and written."""
    hasher, done = hashlib.sha256(), 0
    work: list[Future[None]] = []
    length = min(_BUFFER, size + 1)
    buffers = (memoryview(bytearray(length)), memoryview(bytearray(length)))
    with ThreadPoolExecutor(2, "store") as pool, source(0) as reader:
        for buffer in itertools.cycle(buffers):
            count = reader.readinto(buffer)
            for future in work:
                future.result()
            if not count:
                break
            data = buffer[:count]
            work = [pool.submit(hasher.update, data), pool.submit(write_all, target, data, done)]
            done += count
            progress.advance(name, count)
    if done != size:
        raise Malformed(f"{name}: changed while it was packed ({size} bytes, then {done}); pack again when it is still")
    return Digest.from_hasher("sha256", hasher)
