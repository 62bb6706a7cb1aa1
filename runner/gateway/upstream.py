"""Requests to an engine on its unix socket, with nothing between its bytes and ours but an HTTP/1.1 parser.

Every request has a connection of its own: llama-server closes idle ones whenever it likes, and a request sent on one at
that moment is lost. On a unix socket a new one costs next to nothing, and closing it is how a request is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import cast

import httptools

Headers = Sequence[tuple[bytes, bytes]]

_HIGH_WATER = 1024 * 1024


class UpstreamError(Exception):
    """The engine could not be reached, or stopped in the middle of its answer."""


class Answer(asyncio.Protocol):
    """The answer to one request. Close it, whatever happens: that cancels what the engine has not sent yet."""

    def __init__(self, request: bytes, body: bytes) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self._request = (request, body)
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: list[bytes] = []
        self._size = 0
        self._sink: Callable[[bytes], bool] | None = None
        self._full = False
        self._complete = False
        self._error: UpstreamError | None = None
        self._news = asyncio.Event()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by inheritance
        self._transport.writelines(self._request)

    def data_received(self, data: bytes) -> None:
        """Take what the engine sends."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"its answer is not HTTP ({error})")
        if self._sink is None:
            if self._size > _HIGH_WATER:
                self._pause()
            self._news.set()
        else:
            self._hand_over(self._sink)
            if self._full or self._complete or self._error:
                self._news.set()

    def _hand_over(self, sink: Callable[[bytes], bool]) -> None:
        if self._pieces and not sink(self._taken()):
            self._full = True
            self._pause()

    def _taken(self) -> bytes:
        """All of the body that is there and has not been taken before."""
        pieces = self._pieces
        whole = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._size = 0
        return whole

    def _pause(self) -> None:
        if self._transport is not None and self._transport.is_reading():
            self._transport.pause_reading()

    def _resume(self) -> None:
        if self._transport is not None and not self._transport.is_closing() and not self._transport.is_reading():
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits if the answer is not whole."""
        if not self._complete:
            self._fail("it broke off in the middle of its answer" if self.status else "it did not answer")
        self._news.set()

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header of the answer."""
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The status is known."""
        status = self._parser.get_status_code()
        if status >= 200:
            self.status = status
        else:
            self.headers.clear()

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._pieces.append(body)
        self._size += len(body)

    def on_message_complete(self) -> None:
        """The answer is whole."""
        if self.status:
            self._complete = True

    def _fail(self, why: str) -> None:
        if self._error is None and not self._complete:
            self._error = UpstreamError(why)

    async def started(self) -> None:
        """Return when status and headers are there. Raises `UpstreamError`."""
        while not self.status:
            if self._error:
                raise self._error
            await self._news.wait()
            self._news.clear()

    def header(self, name: bytes) -> bytes:
        """A header's value, empty if it is not there."""
        return next((value for key, value in self.headers if key == name), b"")

    async def piece(self) -> bytes:
        """The next piece of the body, as it comes; empty at the end. Raises `UpstreamError` if it ends too early."""
        while not self._pieces:
            if self._complete:
                return b""
            if self._error:
                raise self._error
            await self._news.wait()
            self._news.clear()
        self._resume()
        return self._taken()

    async def pour(self, sink: Callable[[bytes], bool], room: Callable[[], Awaitable[None]]) -> None:
        """Hand the rest of the body to `sink`, each piece at the moment it comes and without waking a task. When `sink`
        says that it is full, the engine has to wait until `room` returns. Raises `UpstreamError`."""
        self._sink = sink
        self._hand_over(sink)
        while not self._complete or self._full:
            if self._full:
                await room()
                self._full = False
                self._resume()
            elif self._error:
                raise self._error
            else:
                await self._news.wait()
                self._news.clear()

    async def lines(self) -> AsyncIterator[bytes]:
        """The body line by line, without line ends. Raises `UpstreamError`."""
        rest = b""
        while piece := await self.piece():
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                yield line.rstrip(b"\r")
        if rest:
            yield rest

    async def read(self, limit: int = 1 << 62) -> bytes:
        """The whole body. Raises `UpstreamError`, also for one larger than `limit` bytes."""
        pieces, size = [], 0
        while piece := await self.piece():
            size += len(piece)
            if size > limit:
                raise UpstreamError(f"its answer is larger than {limit} bytes")
            pieces.append(piece)
        return b"".join(pieces)

    def close(self) -> None:
        """Close the connection; to an engine that is a cancelled request."""
        if self._transport is not None:
            self._transport.abort()


class Upstream:
    """The engine that listens on the unix socket at `path`."""

    def __init__(self, path: str) -> None:
        self._path = path

    async def send(self, method: str, target: str, headers: Headers = (), body: bytes = b"") -> Answer:
        """Send a request; return when its answer begins. Raises `UpstreamError`."""
        lines = [f"{method} {target} HTTP/1.1\r\nhost: engine\r\nconnection: close\r\n".encode()]
        lines += [b"%s: %s\r\n" % header for header in headers]
        if body or method == "POST":
            lines.append(b"content-length: %d\r\n" % len(body))
        answer = Answer(b"".join([*lines, b"\r\n"]), body)
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: answer, self._path)
            await answer.started()
        except OSError as error:
            raise UpstreamError(f"its socket cannot be reached: {error.strerror or error}") from None
        except BaseException:
            answer.close()
            raise
        return answer
