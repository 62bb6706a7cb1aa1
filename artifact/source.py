"""Where bytes come from: something that can be opened again at any offset, so that a transfer can start over."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable


class Reader(Protocol):
    """A stream of bytes, filled into the caller's buffer."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill some of `buffer`; return how many bytes, 0 or None at the end."""


Source = Callable[[int], AbstractContextManager[Reader]]
"""Opens the same content at a byte offset, as often as a transfer has to start over."""


class NoRanges(Exception):
    """The place a `RangedSource` reads from does not do ranges: read it from the beginning."""


@runtime_checkable
class RangedSource(Protocol):
    """A `Source` whose parts can be asked for side by side, by several threads."""

    def __call__(self, offset: int, /) -> AbstractContextManager[Reader]: ...

    def range(self, start: int, length: int, /) -> AbstractContextManager[Reader]:
        """Exactly the bytes from `start` on. Raises `NoRanges`, and what the place raises."""


def file_source(path: Path) -> Source:
    """The content of a file."""

    @contextmanager
    def open_at(offset: int) -> Iterator[Reader]:
        with path.open("rb", buffering=0) as stream:
            stream.seek(offset)
            yield stream

    return open_at


def bytes_source(data: bytes) -> Source:
    """The content of `data`."""

    @contextmanager
    def open_at(offset: int) -> Iterator[Reader]:
        stream = io.BytesIO(data)
        stream.seek(offset)
        yield stream

    return open_at
