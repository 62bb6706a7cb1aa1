"""Passing one request to a model's engine and the answer back, until either side ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from artifact.errors import InvalidInput, StowageError
from runner.deployment import Deployment
from runner.fleet import Fleet
from runner.gateway.call import Call
from runner.gateway.connection import Connection
from runner.gateway.errors import TooLarge, engine_error
from runner.gateway.events import WholeEvents, broken_off
from runner.gateway.upstream import Answer, UpstreamError

MAX_BODY = 64 * 1024 * 1024
"""Largest request body, in bytes: room for images written as base64."""

PARSE_IN_THREAD = 1024 * 1024
"""Bytes from which on a body is parsed beside the event loop."""

JSON_TYPE = (b"content-type", b"application/json")

_PASSED_UP = frozenset((b"content-type", b"content-length", b"content-encoding", b"retry-after"))


class EngineBroken(StowageError):
    """An engine stopped answering."""

    code = "engine-broken"


async def whole_body(request: Request) -> bytes | None:
    """The whole body, None if it is too large. Raises `ClientDisconnect`."""
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > MAX_BODY:
            return None
        pieces.append(piece)
    return b"".join(pieces)


async def json_object(request: Request, empty: bytes = b"null") -> dict[str, Any]:
    """The JSON object in a request's body; `empty` is what stands for a body without anything. Raises `InvalidInput`,
    `TooLarge`."""
    try:
        raw = await whole_body(request)
        if raw is None:
            raise TooLarge(f"the request is larger than {MAX_BODY} bytes")
        body = await asyncio.to_thread(json.loads, raw) if len(raw) > PARSE_IN_THREAD else json.loads(raw or empty)
    except ClientDisconnect:
        raise InvalidInput("the request broke off") from None
    except (ValueError, RecursionError):
        raise InvalidInput("the request body is not valid JSON") from None
    if not isinstance(body, dict):
        raise InvalidInput("the request body must be a JSON object")
    return body


class Relay(Response):
    """Passes a request on and the answer back as it comes. When the client goes away, so does the request."""

    def __init__(
        self,
        fleet: Fleet,
        deployment: Deployment,
        target: str,
        body: bytes,
        content_type: bytes = b"application/json",
        refuse: Callable[[StowageError], Response] = engine_error,
    ) -> None:
        self._fleet = fleet
        self._deployment = deployment
        self._target = target
        self._body = body
        self._content_type = content_type
        self._refuse = refuse
        self._begun = False
        self._streaming = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = Call.of(scope)
        call.digest = str(self._deployment.digest)
        relaying = asyncio.ensure_future(self._relay(call, Connection.of(scope), send))
        leaving = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({relaying, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (relaying, leaving):
                task.cancel()
            with suppress(asyncio.CancelledError, ClientDisconnect):
                await asyncio.gather(relaying, leaving, return_exceptions=True)
        if relaying.cancelled() or (error := relaying.exception()) is None:
            return
        if isinstance(error, UpstreamError):
            name = self._deployment.name
            cause = await self._fleet.cause(self._deployment)
            error = EngineBroken(f"the engine of {name} failed: {error}{f': {cause.summary}' if cause else ''}")
        if not isinstance(error, StowageError):
            raise error
        if not self._begun:
            await self._refuse(error)(scope, receive, send)
        elif self._streaming:  # what has begun cannot be unsaid: it ends in an error, and stays without an end in HTTP
            await send({"type": "http.response.body", "body": self.broken_off(error), "more_body": True})

    async def _relay(self, call: Call, connection: Connection, send: Send) -> None:
        async with self._fleet.using(self._deployment) as upstream:
            headers = ((b"content-type", self._content_type), (b"x-request-id", call.id.encode()))
            answer = await upstream.send("POST", self._target, headers, self._body)
            try:
                await self.passed(answer, connection, send)
            finally:
                answer.close()

    async def begin(self, status: int, headers: list[tuple[bytes, bytes]], send: Send, *, streaming: bool) -> None:
        """Begin the answer to the client; `streaming` says that it is one to which an error can be added."""
        self._begun, self._streaming = True, streaming
        await send({"type": "http.response.start", "status": status, "headers": headers})

    async def passed(self, answer: Answer, connection: Connection, send: Send) -> None:
        """Pass an engine's answer to the client: here, byte by byte as it comes."""
        headers = [header for header in answer.headers if header[0] in _PASSED_UP]
        if answer.header(b"content-type").startswith(b"text/event-stream"):
            await self._events(answer, connection, send)
            return
        await self.begin(answer.status, headers, send, streaming=False)
        while piece := await answer.piece():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self, answer: Answer, connection: Connection, send: Send) -> None:
        """Pass a stream of events on: the first as any answer, which counts it, the others straight."""
        content_type = (b"content-type", answer.header(b"content-type"))
        headers = [content_type, (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
        await self.begin(answer.status, headers, send, streaming=True)
        whole = WholeEvents()
        if first := whole.take(await answer.piece()):
            await send({"type": "http.response.body", "body": first, "more_body": True})

        def write(piece: bytes) -> bool:
            events = whole.take(piece)
            return connection.write_piece(events) if events else True

        await answer.pour(write, connection.room)
        await send({"type": "http.response.body", "body": whole.rest(), "more_body": False})

    def broken_off(self, error: StowageError) -> bytes:
        """What a client gets at the place where an engine stopped in the middle of a stream."""
        return broken_off(self._target, error)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
