"""Bytes in and bytes out, with the event loop doing neither disk nor hash."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from artifact.errors import StowageError
from registry.store.protocol import Stream
from registry.uploads import Ingest

GATHER = 4 * 1024 * 1024
"""Bytes of a request that are hashed and written at a time, while the next are received."""

_CHUNK = 1024 * 1024
_log = logging.getLogger("registry")


async def receive_into(ingest: Ingest, stream: AsyncIterator[bytes]) -> int:
    """Take a request's body into an upload; return how many bytes it had. At most two gatherings are in memory. When
    the client disappears, what it has sent is kept for it to continue."""
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


async def _absorb(ingest: Ingest, batch: list[bytes], size: int) -> None:
    if size < _CHUNK:  # two threads would cost more than they save
        await asyncio.to_thread(_hash_and_write, ingest, batch)
    else:
        done = await asyncio.gather(
            asyncio.to_thread(ingest.hash, batch), asyncio.to_thread(ingest.write, batch), return_exceptions=True
        )
        for result in done:
            if isinstance(result, BaseException):
                raise result
    if ingest.advance(size):
        await asyncio.to_thread(ingest.checkpoint)


def _hash_and_write(ingest: Ingest, batch: list[bytes]) -> None:
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
        gone = asyncio.ensure_future(_disconnected(receive))
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


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
