"""The endpoint clients talk to: one OpenAI API over many models, each answered by its own engine.

A request's ``model`` chooses the engine. Bytes are passed through as they come, and a client that goes away takes its
request to the engine with it. Every answer names the digest of the manifest that gave it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from artifact.digest import Digest
from runner.supervise import EngineProcess

DIGEST_HEADER = "Stowage-Digest"
"""The response header that names the manifest digest of the model that answered."""

MAX_BODY = 64 * 1024 * 1024
"""Largest request body, in bytes: room for images written as base64."""

_PARSE_IN_THREAD = 1024 * 1024
_PASSED_UP = ("content-type", "content-length", "content-encoding", "retry-after")
_FORWARDED = ("chat/completions", "completions", "embeddings")


@dataclass(frozen=True)
class Endpoint:
    """One served model: `name` is what its engine calls it, `names` all that clients may call it."""

    name: str
    names: frozenset[str]
    digest: Digest
    process: EngineProcess
    client: httpx.AsyncClient
    created: int

    def to_json(self) -> dict[str, Any]:
        """The model as ``/v1/models`` lists it."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "stowage",
            "digest": str(self.digest),
        }


class Gateway:
    """The models served now. Start with `expected` models: the gateway is healthy when that many are there."""

    def __init__(self, expected: int, *, loopback: bool = True) -> None:
        self._expected = expected
        self._endpoints: dict[str, Endpoint] = {}
        routes = [
            Route("/healthz", self._healthz, methods=["GET"]),
            *(
                Route(f"{prefix}/{path}", self._forward, methods=["POST"], name=path)
                for prefix in ("/v1", "/engines/v1", "/engines/{backend}/v1")
                for path in _FORWARDED
            ),
            *(
                Route(f"{prefix}/models{rest}", endpoint, methods=["GET"])
                for prefix in ("/v1", "/engines/v1", "/engines/{backend}/v1")
                for rest, endpoint in (("", self._models), ("/{model:path}", self._model))
            ),
        ]
        starlette = Starlette(routes=routes, exception_handlers={404: _no_route, 405: _no_route})
        self.app: ASGIApp = _SameOrigin(starlette) if loopback else starlette

    @property
    def endpoints(self) -> list[Endpoint]:
        """The models served now, in the order they were added."""
        return list(self._endpoints.values())

    def add(self, endpoint: Endpoint) -> None:
        """Serve a model from now on."""
        self._endpoints[str(endpoint.digest)] = endpoint

    def remove(self, digest: Digest) -> None:
        """Serve a model no more. Requests under way go on."""
        if self._endpoints.pop(str(digest), None):
            self._expected -= 1

    def find(self, name: str | None) -> Endpoint | None:
        """The model a client means: by any of its names if only one model has it; without a name, the only one."""
        candidates = [item for item in self.endpoints if name is None or name in item.names]
        exact = [item for item in candidates if item.name == name]
        return (exact or candidates)[0] if len(exact or candidates) == 1 else None

    async def _healthz(self, _request: Request) -> Response:
        ready = sum(endpoint.process.running for endpoint in self.endpoints)
        status = {"status": "ok" if ready == self._expected else "loading", "models": ready}
        return JSONResponse(status, 200 if ready == self._expected else 503)

    async def _models(self, _request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [endpoint.to_json() for endpoint in self.endpoints]})

    async def _model(self, request: Request) -> Response:
        name = request.path_params["model"]
        endpoint = self.find(name)
        return JSONResponse(endpoint.to_json()) if endpoint else self._unknown(name)

    async def _forward(self, request: Request) -> Response:
        try:
            raw = await _body(request)
        except ClientDisconnect:
            return Response(status_code=499)
        if raw is None:
            return api_error(413, f"the request is larger than {MAX_BODY} bytes")
        try:
            body = await asyncio.to_thread(json.loads, raw) if len(raw) > _PARSE_IN_THREAD else json.loads(raw)
        except (ValueError, RecursionError):
            return api_error(400, "the request body is not valid JSON")
        if not isinstance(body, dict) or not isinstance(body.get("model", ""), str):
            return api_error(400, "the request body must be a JSON object with a model's name", param="model")
        endpoint = self.find(body.get("model") or None)
        if endpoint is None:
            return self._unknown(body.get("model"))
        if not endpoint.process.running:
            return api_error(503, f"the engine of {endpoint.name} has stopped", type_="server_error")
        if body.get("model") != endpoint.name:  # engines know the model by one name only
            raw = json.dumps({**body, "model": endpoint.name}).encode()
        path = f"/v1/{request.url.path.rpartition('/v1/')[2]}"
        return _Relay(endpoint, path, raw)

    def _unknown(self, name: str | None) -> Response:
        served = ", ".join(endpoint.name for endpoint in self.endpoints) or "none yet"
        if name is None:
            return api_error(400, f"several models are served, so model must name one: {served}", param="model")
        message = f"the model {name[:200]!r} is not served here (served: {served})"
        return api_error(404, message, param="model", code="model_not_found")


def api_error(
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    type_: str = "invalid_request_error",
) -> Response:
    """An error as the OpenAI API writes it."""
    return JSONResponse({"error": {"message": message, "type": type_, "param": param, "code": code}}, status)


async def _no_route(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    return api_error(status, f"no such route: {request.method} {request.url.path[:200]}")


async def _body(request: Request) -> bytes | None:
    """The whole body, None if it is too large."""
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > MAX_BODY:
            return None
        pieces.append(piece)
    return b"".join(pieces)


class _Relay(Response):
    """Passes one request to an engine and its answer back, until either side ends."""

    def __init__(self, endpoint: Endpoint, path: str, body: bytes) -> None:
        self._endpoint = endpoint
        self._request = endpoint.client.build_request(
            "POST", path, content=body, headers={"content-type": "application/json", "accept-encoding": "identity"}
        )
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        relaying = asyncio.ensure_future(self._relay(send))
        leaving = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({relaying, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (relaying, leaving):
                task.cancel()
        with suppress(asyncio.CancelledError):
            try:
                await relaying
            except httpx.HTTPError as error:
                await self._broken(error, scope, receive, send)

    async def _relay(self, send: Send) -> None:
        answer = await self._endpoint.client.send(self._request, stream=True)
        try:
            headers = [(name, value) for name, value in answer.headers.raw if name.decode().lower() in _PASSED_UP]
            headers.append((DIGEST_HEADER.encode(), str(self._endpoint.digest).encode()))
            if answer.headers.get("content-type", "").startswith("text/event-stream"):
                headers += [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
            await send({"type": "http.response.start", "status": answer.status_code, "headers": headers})
            self._begun = True
            async for chunk in answer.aiter_raw():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await answer.aclose()  # to an engine a closed connection is a cancelled request

    async def _broken(self, error: httpx.HTTPError, scope: Scope, receive: Receive, send: Send) -> None:
        if self._begun:  # the answer cannot be unsaid: cut it off, so that no client takes it for whole
            raise error
        message = f"the engine of {self._endpoint.name} did not answer: {type(error).__name__}"
        response = api_error(502, message, type_="server_error")
        await response(scope, receive, send)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _SameOrigin:
    """Keeps web pages away from a gateway that listens on the loopback interface only: neither a page of another site
    nor a name that was made to point here may use it (CVE-2024-28224)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
            origin = headers.get(b"origin")
            if not _is_loopback(urlsplit(f"//{headers.get(b'host', 'localhost')}").hostname) or (
                origin is not None and not _is_loopback(urlsplit(origin).hostname)
            ):
                response = api_error(403, "this endpoint answers only requests from this machine")
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _is_loopback(host: str | None) -> bool:
    if host == "localhost" or (host or "").endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False
