"""What every upload is made of: where it goes on, how far it got, and the body of one request.

Source: distribution-spec, "Pushing a blob in chunks".
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http import HTTPStatus
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from artifact.digest import Digest
from artifact.errors import ServerError, StowageError, Unreachable
from artifact.progress import Progress
from artifact.remote.answer import Response, number
from artifact.remote.transport import Busy, Transport
from artifact.source import Reader, Source

CHUNK = 64 * 1024 * 1024
"""Bytes sent in one request, unless the registry wants more."""

LARGE_CHUNK = 1024 * 1024 * 1024
"""Bytes sent in one request to a registry of ours, which keeps what has arrived of it: fewer answers to wait for."""

ATTEMPTS = 5
"""How often a request that makes no headway is sent again."""

OCTETS = {"Content-Type": "application/octet-stream"}
RANGES = {"Content-Type": "application/vnd.dev.stowage.ranges.v1+json"}
_BUFFER = 1024 * 1024
_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,18})")


class SessionLost(ServerError):
    """The registry does not know an upload that it began: it expired, or was ended."""


class Patience:
    """Bears with requests that make no headway, `ATTEMPTS` times in a row, and with as many lost uploads in all."""

    def __init__(self) -> None:
        self._failures = self._lost = 0

    def headway(self) -> None:
        """A request got through."""
        self._failures = 0

    def bear(self, error: Unreachable | SessionLost) -> None:
        """Wait a while. Raises `error` if there has been enough of it; `ServerError` if the registry had an answer
        every time, but no other than that it cannot."""
        self._failures += 1
        self._lost += isinstance(error, SessionLost)
        if max(self._failures, self._lost) < ATTEMPTS:
            time.sleep(min(0.25 * 2**self._failures, 5))
        elif isinstance(error, Busy) and error.status == HTTPStatus.INTERNAL_SERVER_ERROR:
            raise ServerError(str(error)) from None
        else:
            raise error


class ChunkSize:
    """How many bytes of an upload go in one request: `count`."""

    def __init__(self) -> None:
        self.count = self._least = CHUNK
        self._most = LARGE_CHUNK

    def heed(self, response: Response) -> None:
        """Take what the answer that began an upload says of it."""
        self._least = max(CHUNK, number(response.headers.get("OCI-Chunk-Min-Length")) or 0)
        self.count = max(self._least, self._most) if composes(response) else self._least

    def shrink(self) -> bool:
        """A request did not get through: send less in each. False if it was no more than the registry wants at
        least, or than usual."""
        large, self._most, self.count = self.count > self._least, self._least, self._least
        return large


def composes(response: Response) -> bool:
    """Whether the registry takes ranges of its blobs for bytes of an upload, as its answer about the upload says."""
    return response.headers.get("Stowage-Compose") == "v1"


def received(response: Response) -> int:
    """Bytes that the registry says it has of an upload."""
    match = _RANGE.fullmatch(response.headers.get("Range", ""))
    return int(match[1]) + 1 if match and match[1] != "0" else 0


def location_of(response: Response, transport: Transport) -> str:
    """Where an upload goes on. Raises `ServerError` if the registry gives no usable place."""
    location = response.headers.get("Location", "")
    if not location:
        raise ServerError(f"{transport.host} gave no usable upload location")
    return transport.location(location)


def with_digest(location: str, digest: Digest) -> str:
    """An upload location with the digest added to whatever query it has."""
    parts = urlsplit(location)
    query = urlencode([*parse_qsl(parts.query, keep_blank_values=True), ("digest", str(digest))])
    return urlunsplit((parts.scheme, parts.netloc, parts.path, query, ""))


class Sent:
    """How much of a blob was sent, as its progress is told it: what went in vain is taken back. `travelled` says how
    many of the blob's first so many bytes are sent; all of them, unless the registry takes some from elsewhere."""

    def __init__(self, progress: Progress, name: str, travelled: Callable[[int], int] = int) -> None:
        self.name = name
        self._progress = progress
        self._travelled = travelled
        self._reported = 0

    def stands_at(self, done: int) -> None:
        """`done` bytes are safe, nothing else is under way."""
        self._report(self._travelled(done))

    def _report(self, sent: int) -> None:
        self._progress.advance(self.name, sent - self._reported)
        self._reported = sent

    def count(self, amount: int) -> None:
        """Further bytes on their way, acknowledged or not."""
        self._report(self._reported + amount)


class Chunk:
    """The body of one request: the bytes of a source from `start` to `end`, opened afresh for every attempt. `ended`
    is raised if the source ends before."""

    def __init__(self, source: Source, start: int, end: int, sent: Sent, ended: StowageError) -> None:
        self._source, self._start, self._end = source, start, end
        self._sent, self._ended = sent, ended
        self._body: _Body | None = None

    def __call__(self) -> _Body:
        self.close()
        self._sent.stands_at(self._start)
        length = self._end - self._start
        self._body = _Body(self._source(self._start), self._sent.name, length, self._sent.count, self._ended)
        return self._body

    def close(self) -> None:
        """Let go of the source."""
        if self._body is not None:
            self._body.close()


class _Body:
    """The file object that the HTTP library reads a body from. Each read gives the same buffer again: what was read
    before has been sent by then."""

    def __init__(
        self,
        opened: AbstractContextManager[Reader],
        name: str,
        length: int,
        count: Callable[[int], None],
        ended: StowageError,
    ) -> None:
        self._opened: AbstractContextManager[Reader] | None = opened
        self._name = name
        with self._reading():
            self._reader = opened.__enter__()
        self._left, self._count, self._ended = length, count, ended
        self._buffer = memoryview(b"")

    def read(self, size: int = -1, /) -> memoryview:
        """The next bytes, at most `size`; valid until the next call."""
        wanted = min(size if size >= 0 else _BUFFER, self._left)
        if len(self._buffer) < wanted:
            self._buffer = memoryview(bytearray(wanted))
        with self._reading():
            count = (self._reader.readinto(self._buffer[:wanted]) or 0) if wanted else 0
        if wanted and not count:
            raise self._ended
        self._left -= count
        self._count(count)
        return self._buffer[:count]

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """A failure of the source is its own: the HTTP library would take it for one of the connection."""
        try:
            yield
        except OSError as error:
            where = f"{self._name}: {error.filename}" if error.filename else self._name
            raise StowageError(f"{where}: cannot be read to be sent: {error.strerror or error}") from error

    def close(self) -> None:
        """Let go of the source."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.__exit__(None, None, None)
