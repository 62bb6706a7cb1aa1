"""Copying parts of local files into a file: by the kernel where it can, which shares blocks where the disk lets it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from artifact.layout.plan import Copy

_BUFFER = 1024 * 1024


class Gone(Exception):
    """A local file is not there any more, shorter than it was, or cannot be read."""


class Copier:
    """Copies into the open file `target`."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._path: Path | None = None
        self._source = -1

    def __enter__(self) -> Copier:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def copy(self, item: Copy) -> None:
        """Copy one range. Raises `Gone`."""
        self._open(item.path)
        done = 0
        while done < item.length:
            count = self._step(item.at + done, item.offset + done, item.length - done)
            if not count:
                raise Gone(item.path)
            done += count

    def _step(self, at: int, offset: int, length: int) -> int:
        try:
            return os.copy_file_range(self._source, self._target, length, at, offset)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
        try:  # another file system, or an old kernel; else this fails as well
            data = os.pread(self._source, min(_BUFFER, length), at)
        except OSError:
            raise Gone(self._path) from None
        return os.pwrite(self._target, data, offset) if data else 0

    def _open(self, path: Path) -> None:
        if path != self._path:
            self._close()
            try:
                self._source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                raise Gone(path) from None
            self._path = path

    def _close(self) -> None:
        if self._path is not None:
            os.close(self._source)
            self._path = None
