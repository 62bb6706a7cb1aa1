"""A blob on its way from the original into the store, and to everyone who waits for it.

The bytes come once. A thread hashes them, writes them into the store and into a nameless file, from which any number of
clients read what is there. The last byte is let out when the digest has been found right and the blob is stored: of
bytes that are something else nothing is kept, and nobody gets a whole answer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import StowageError, Unreachable
from artifact.source import Reader, Source
from registry.http.body import disconnected
from registry.store.protocol import StoreUnavailable
from registry.uploads import Ingest

_BUFFER = 1024 * 1024
_ATTEMPTS = 5
_log = logging.getLogger("registry.proxy")


class Broken(StoreUnavailable):
    """The blob cannot be kept, for a reason on this side."""

    code = "fetch-broken"


class Fetch:
    """One blob of `size` bytes. `come` is how many of them may be read; it and `failure` are for the event loop."""

    def __init__(
        self, descriptor: Descriptor, spool: Path | None, stopping: threading.Event, done: Callable[[], None]
    ) -> None:
        self._stopping = stopping
        self.descriptor = descriptor
        self.come = 0
        self.failure: StowageError | None = None
        self._done = done
        self._loop = asyncio.get_running_loop()
        self._moved = asyncio.Event()
        self._file = tempfile.TemporaryFile(dir=spool, prefix="stowage-fetch-")  # noqa: SIM115  as long as this is

    @property
    def size(self) -> int:
        return self.descriptor.size

    def run(self, source: Source, open_ingest: Callable[[], Ingest]) -> None:
        """Fetch it; in a thread."""
        failure: StowageError | None = None
        try:
            ingest = open_ingest()
            try:
                self._receive(source, ingest)
                ingest.commit(self.descriptor.digest)
            except BaseException:
                ingest.abandon()
                raise
            finally:
                ingest.close()
        except StowageError as error:
            failure = error
        except OSError as error:
            failure = Broken(f"storage failed: {error.strerror}")
        except Exception as error:
            _log.exception("fetching %s", self.descriptor.digest)
            failure = Broken(f"internal error: {type(error).__name__}")
        if failure is not None:
            _log.error("%s is not stored: %s", self.descriptor.digest, failure)
        self._tell(self._end, failure)

    def _receive(self, source: Source, ingest: Ingest) -> None:
        position, failures = 0, 0
        buffer = memoryview(bytearray(min(_BUFFER, max(self.size, 1))))
        while position < self.size:
            before = position
            try:
                with source(position) as reader:
                    while position < self.size:
                        if self._stopping.is_set():
                            raise Broken("the server stops")
                        count = _fill(reader, buffer[: min(len(buffer), self.size - position)])
                        self._absorb(ingest, buffer[:count], position)
                        position += count
            except Unreachable:
                failures = failures + 1 if position == before else 1
                if failures >= _ATTEMPTS:
                    raise
                time.sleep(min(0.2 * 2**failures, 3))

    def _absorb(self, ingest: Ingest, data: memoryview, position: int) -> None:
        os.pwrite(self._file.fileno(), data, position)
        ingest.hash([data])
        try:
            ingest.write([data])
        except StoreUnavailable as error:  # not to be taken for a broken connection to the original
            raise Broken(str(error)) from None
        ingest.advance(len(data))
        self._tell(self._move, min(position + len(data), self.size - 1))

    def _tell(self, what: Callable[..., None], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop has ended, and with it everyone who waits
            self._loop.call_soon_threadsafe(what, *arguments)

    def _move(self, come: int) -> None:
        self.come = come
        self._moved.set()
        self._moved = asyncio.Event()

    def _end(self, failure: StowageError | None) -> None:
        self.failure = failure
        self._move(self.size if failure is None else self.come)
        self._done()

    async def beyond(self, position: int) -> int:
        """How many bytes may be read, once it is more than `position`. Raises what broke the fetch."""
        while self.come <= position:
            if self.failure is not None:
                raise self.failure
            await self._moved.wait()
        return self.come

    def read(self, position: int, count: int) -> bytes:
        """Bytes that have come; in a thread."""
        return os.pread(self._file.fileno(), count, position)


def _fill(reader: Reader, buffer: memoryview) -> int:
    filled = 0
    while filled < len(buffer) and (count := reader.readinto(buffer[filled:])):
        filled += count
    if not filled:
        raise Unreachable("the original ended early")
    return filled


class Following(Response):
    """The bytes of a fetch from `start` on, as they come. It ends short of its length where the fetch breaks."""

    def __init__(self, fetch: Fetch, start: int, length: int, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(None, status, {**headers, "Content-Length": str(length)})
        self._fetch, self._start, self._length = fetch, start, length

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        position, end = self._start, self._start + self._length
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if not self._length:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        gone = asyncio.ensure_future(disconnected(receive))
        try:
            while position < end and not gone.done():
                come = await self._fetch.beyond(position)
                count = min(come, end) - position
                data = await asyncio.to_thread(self._fetch.read, position, min(count, _BUFFER))
                position += len(data)
                await send({"type": "http.response.body", "body": data, "more_body": position < end})
        except StowageError as error:
            _log.warning("an answer was cut: %s", error)
        finally:
            gone.cancel()


class Passing(Response):
    """A range of a blob as the original sends it, past the fetch: nothing of it is kept. `work` runs calls that wait
    for the original."""

    def __init__(
        self,
        reader: Reader,
        close: Callable[[], None],
        work: Callable[..., asyncio.Future[int]],
        length: int,
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(None, 206, {**headers, "Content-Length": str(length)})
        self._reader, self._close, self._work, self._length = reader, close, work, length

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(disconnected(receive))
        buffer, left = memoryview(bytearray(min(_BUFFER, self._length))), self._length
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            while left and not gone.done():
                count = await self._work(_fill, self._reader, buffer[: min(len(buffer), left)])
                left -= count
                body = bytes(buffer[:count])
                await send({"type": "http.response.body", "body": body, "more_body": left > 0})
        except StowageError as error:
            _log.warning("a range was cut: %s", error)
        finally:
            gone.cancel()
            await asyncio.shield(self._work(_closed, self._close))


def _closed(close: Callable[[], None]) -> int:
    close()
    return 0


def blob_of(digest: Digest, size: int) -> Descriptor:
    """The descriptor of a blob of which no more is known."""
    return Descriptor("application/octet-stream", digest, size)
