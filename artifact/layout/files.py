"""Files that are either whole or absent, whatever happens while they are written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def name_complete(file: int, size: int, temporary: Path, final: Path) -> None:
    """Give the open file `temporary`, whose first `size` bytes are right, its name, without what is behind them.

    The order is for whoever is killed on the way: until all bytes are on the disk, which takes long, the file stays
    what the next one can open and go on with.
    """
    os.fsync(file)
    if os.fstat(file).st_size != size:
        os.ftruncate(file, size)
        os.fsync(file)
    os.fchmod(file, 0o444)
    temporary.replace(final)
    sync_folder(final.parent)


def write_atomically(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a small file so that a reader sees its old content or its new content, never a part."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_all(file: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at `offset`."""
    while data:
        count = os.pwrite(file, data, offset)
        data, offset = data[count:], offset + count
