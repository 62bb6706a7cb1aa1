"""Bytes in and bytes out, with the event loop doing neither disk nor hash."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from artifact.errors import StowageError
from registry.http import connection
from registry.http.connection import Connection, Intake, uninterrupted
from registry.http.errors import RegistryError
from registry.http.observed import observation_of
from registry.store.protocol import Stream
from registry.uploads import Ingest

GATHER = 4 * 1024 * 1024
"""Bytes of a request that are hashed and written at a time, while the next are received."""

_DIRECT = 2 * 1024 * 1024  # bytes of each of the two buffers of a body that is read from the socket
_CHUNK = 1024 * 1024
_SKIPPED = 256 * 1024  # bytes of a refused request that are still read
_SKIPPING = 2.0  # seconds that may take
_log = logging.getLogger("registry")


class Body:
    """The body of a request as it is received, which knows whether it has been read to its end. A client that says
    nothing for too long before that is gone."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._ended = False

    async def __call__(self) -> Message:
        try:
            async with asyncio.timeout(None if self._ended else connection.SILENCE):
                message = await self._receive()
        except TimeoutError:
            message = {"type": "http.disconnect"}
        self._ended = not message.get("more_body", False)
        return message

    async def skip(self, request: Request) -> None:
        """Read what a refused request still brings, if it is little: proxies break the connection to a client whose
        request is answered before they have sent it on."""
        length = content_length(request)
        if "expect" in request.headers or (length is None and "transfer-encoding" not in request.headers):
            return
        left = _SKIPPED
        if length is not None and length > left:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_SKIPPING):
                while left > 0 and not self._ended:
                    left -= len((await self()).get("body", b""))


async def read_whole(request: Request, limit: int, what: str) -> bytes:
    """A small body. Raises `RegistryError` (413) if it has more than `limit` bytes; `what` names it."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise RegistryError(413, "SIZE_INVALID", f"{what} is larger than {limit} bytes")
        parts.append(part)
    return b"".join(parts)


async def disconnected(receive: Receive) -> None:
    """Returns when the client has gone; only once the body of the request has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def receive_into(ingest: Ingest, request: Request) -> int:
    """Take a request's body into an upload; return how many bytes it had. At most two gatherings are in memory. When
    the client disappears, what it has sent is kept for it to continue."""
    intake, observation = None, observation_of(request.scope)
    if "transfer-encoding" not in request.headers:
        intake = connection.intake(request.scope, content_length(request))
    before = ingest.session.offset
    try:
        with observation.receiving():
            if intake is None:
                return await _receive_stream(ingest, request.stream())
            return await _receive_directly(ingest, intake)
    finally:
        observation.received += ingest.session.offset - before
        if intake is not None:
            intake.close()


async def _receive_directly(ingest: Ingest, intake: Intake) -> int:
    """Receive into one buffer while the other is hashed and written."""
    total, work = len(intake.first), None
    buffers = [bytearray(min(_DIRECT, intake.left)) for _ in range(2)]
    try:
        if intake.first:
            await _absorb(ingest, [intake.first], total)
        while intake.left and not intake.gone:
            view = memoryview(buffers[0])[: min(_DIRECT, intake.left)]
            count = await intake.fill(view)
            if work is not None:
                await work
            work = asyncio.create_task(_absorb(ingest, [view[:count]], count))
            total += count
            buffers.reverse()
        if work is not None:
            await work
    except BaseException:
        if work is not None:
            await asyncio.wait([work])
        raise
    if intake.gone:
        await asyncio.to_thread(ingest.checkpoint)
        raise ClientDisconnect
    return total


async def _receive_stream(ingest: Ingest, stream: AsyncIterator[bytes]) -> int:
    batch: list[bytes] = []
    size = total = 0
    work: asyncio.Task[None] | None = None
    try:
        async for chunk in stream:
            batch.append(chunk)
            size += len(chunk)
            if size >= GATHER:
                if work is not None:
                    await work
                work = asyncio.create_task(_absorb(ingest, batch, size))
                total += size
                batch, size = [], 0
    except ClientDisconnect:
        if work is not None:
            await work
        await _absorb(ingest, batch, size)
        await asyncio.to_thread(ingest.checkpoint)
        raise
    except BaseException:
        if work is not None:
            await asyncio.wait([work])
        raise
    if work is not None:
        await work
    await _absorb(ingest, batch, size)
    return total + size


async def _absorb(ingest: Ingest, batch: Sequence[bytes | memoryview], size: int) -> None:
    if size < _CHUNK:  # two threads would cost more than they save
        await asyncio.to_thread(_hash_and_write, ingest, batch)
    else:
        done = await asyncio.gather(
            uninterrupted(ingest.hash, batch), uninterrupted(ingest.write, batch), return_exceptions=True
        )
        for result in done:
            if isinstance(result, BaseException):
                raise result
    if ingest.advance(size):
        await asyncio.to_thread(ingest.checkpoint)


def _hash_and_write(ingest: Ingest, batch: Sequence[bytes | memoryview]) -> None:
    ingest.hash(batch)
    ingest.write(batch)


class StreamResponse(Response):
    """`length` bytes of a stream, the next being read while one piece is sent."""

    def __init__(self, stream: Stream, length: int, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(None, status, {**headers, "Content-Length": str(length)})
        self._stream = stream
        self._length = length

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        direct = connection.of(scope) if self._length >= connection.WORTHWHILE else None
        if direct is not None:
            observation_of(scope).sent += await self._send_directly(direct, send)
        else:
            await self._send_pieces(receive, send)

    async def _send_directly(self, direct: Connection, send: Send) -> int:
        try:
            sent = await connection.send_stream(direct, self._stream, self._length)
        finally:
            self._stream.close()
        if sent == self._length:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            direct.transport.close()
        return sent

    async def _send_pieces(self, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(disconnected(receive))
        left = self._length
        following = self._read(left)
        try:
            while left and not gone.done():
                data = await following
                if not data:
                    _log.error("a stored blob is shorter than its record: run registry fsck")
                    return  # the answer ends short of its Content-Length, and so does the connection
                left -= len(data)
                following = self._read(left)
                await send({"type": "http.response.body", "body": data, "more_body": left > 0})
            if not self._length:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except StowageError as error:
            _log.error("sending a blob stopped: %s", error)
        finally:
            gone.cancel()
            await asyncio.wait([following])
            await asyncio.to_thread(self._stream.close)

    def _read(self, left: int) -> asyncio.Future[bytes]:
        loop = asyncio.get_running_loop()
        if left == 0:
            future: asyncio.Future[bytes] = loop.create_future()
            future.set_result(b"")
            return future
        return loop.run_in_executor(None, self._stream.read, min(_CHUNK, left))


def content_length(request: Request) -> int | None:
    """What a request says of the length of its body."""
    text = request.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else None
