"""Ollama's API over the same engines: requests translated to the OpenAI API, answers back, streams as they come.

Nothing is dropped in silence: an option that the engine cannot be given with a request is refused with 400.
"""

from __future__ import annotations

import json
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Send

from artifact.errors import InvalidInput, StowageError
from artifact.version import __version__
from artifact.weights.precision import size_label
from runner.configured import Keeping
from runner.deployment import Deployment, State
from runner.fleet import Fleet
from runner.gateway import translation
from runner.gateway.call import Call
from runner.gateway.connection import Connection
from runner.gateway.errors import plain_error, status_of
from runner.gateway.openai import offered
from runner.gateway.relay import Relay, json_object
from runner.gateway.translation import Request as Asked
from runner.gateway.translation import Transcript
from runner.gateway.upstream import Answer
from runner.keys import ADMIN

_LARGEST = 256 * 1024 * 1024


class Ollama:
    """The routes."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def routes(self) -> list[BaseRoute]:
        """All of them."""
        return [
            Route("/api/version", self._version, methods=["GET"]),
            Route("/api/tags", self._tags, methods=["GET"]),
            Route("/api/ps", self._ps, methods=["GET"]),
            Route("/api/show", self._show, methods=["POST"]),
            *(Route(f"/api/{name}", self._ask, methods=["POST"]) for name in translation.ROUTES),
        ]

    async def _version(self, _request: Request) -> Response:
        return JSONResponse({"version": __version__})

    async def _tags(self, _request: Request) -> Response:
        return JSONResponse({"models": [_listed(item) for item in offered(self._fleet)]})

    async def _ps(self, _request: Request) -> Response:
        ready = [item for item in self._fleet.deployments if item.state is State.READY]
        return JSONResponse({"models": [{**_listed(item), **_loaded(item)} for item in ready]})

    async def _show(self, request: Request) -> Response:
        found = await self._asked(request)
        if isinstance(found, Response):
            return found
        deployment, _ = found
        Call.of(request).digest = str(deployment.digest)
        config = deployment.plan.found.model.config
        information = {
            "general.architecture": config.architecture or "",
            "general.parameter_count": config.parameters or 0,
            f"{config.architecture or 'general'}.context_length": config.context_length or 0,
        }
        return JSONResponse({
            "license": ", ".join(config.licenses), "modelfile": "", "parameters": "", "template": "",
            "details": _details(deployment), "model_info": information, "capabilities": ["completion"],
            "modified_at": _now(deployment.created),
        })  # fmt: skip

    async def _ask(self, request: Request) -> Response:
        found = await self._asked(request)
        if isinstance(found, Response):
            return found
        deployment, body = found
        call = Call.of(request)
        call.route, call.digest = request.url.path.strip("/"), str(deployment.digest)
        try:
            kept = translation.seconds(body.get("keep_alive"))
            if kept is not None and ADMIN not in call.scopes:
                return plain_error(403, "keep_alive changes how the model is served, which needs the scope admin")
            asked = translation.translated(request.url.path, body, deployment.name, deployment.plan.context_size)
            if kept is not None:
                await self._keep(deployment, kept, asked)
            if asked is None:
                return await self._touched(deployment, request.url.path, kept)
        except InvalidInput as error:
            return plain_error(400, str(error))
        except StowageError as error:
            return plain_error(status_of(error), str(error))
        return _Translated(self._fleet, deployment, asked, str(body["model"]))

    async def _keep(self, deployment: Deployment, kept: float, asked: Asked | None) -> None:
        """What ``keep_alive`` says: for how long the model stays loaded from now on; less than nothing, for ever."""
        if kept or asked is not None:
            timeout = max(0.001, kept) if kept >= 0 else 0.0
            deployment.keeping = Keeping(timeout, deployment.keeping.pinned, deployment.keeping.lazy)

    async def _touched(self, deployment: Deployment, path: str, kept: float | None) -> Response:
        """A request without a prompt: only loads the model, or with ``keep_alive`` 0 unloads it."""
        if kept == 0:
            await self._fleet.unload(deployment)
        else:
            async with self._fleet.using(deployment):
                pass
        reason = "unload" if kept == 0 else "load"
        empty = translation.empty(path)
        value = {"model": deployment.name, "created_at": _now(), **empty, "done": True, "done_reason": reason}
        return JSONResponse(value)

    async def _asked(self, request: Request) -> tuple[Deployment, dict[str, Any]] | Response:
        try:
            body = await json_object(request)
        except InvalidInput as error:
            return plain_error(status_of(error), str(error))
        name = body.get("model") or body.get("name")
        if not isinstance(name, str):
            return plain_error(400, "the request must name a model")
        found = self._fleet.find(name) or self._fleet.find(name.removesuffix(":latest"))
        if found is None:
            return plain_error(404, f"model '{name[:200]}' not found")
        return found, {**body, "model": name}


class _Translated(Relay):
    """Passes an engine's answer on in Ollama's form."""

    def __init__(self, fleet: Fleet, deployment: Deployment, asked: Asked, name: str) -> None:
        super().__init__(fleet, deployment, asked.target, json.dumps(asked.body).encode(), refuse=_refused)
        self._asked = asked
        self._name = name
        self._began = time.monotonic_ns()

    async def passed(self, answer: Answer, _connection: Connection, send: Send) -> None:
        """Translate the answer: one JSON object, or one line for each event of the stream."""
        if answer.status != 200:
            message = translation.message_of(await answer.read(_LARGEST))
            await self._json(answer.status, {"error": message}, send)
        elif not self._asked.stream:
            whole = json.loads(await answer.read(_LARGEST))
            value = self._asked.whole(whole, self._name, _now(), time.monotonic_ns() - self._began)
            await self._json(200, value, send)
        else:
            await self.begin(200, [(b"content-type", b"application/x-ndjson")], send, streaming=True)
            transcript = Transcript(self._asked, self._name, self._began)
            async for line in answer.lines():
                for value in transcript.take(line, _now):
                    await _line(value, send)
            await _line(transcript.end(_now()), send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _json(self, status: int, value: dict[str, Any], send: Send) -> None:
        body = json.dumps(value).encode()
        length = (b"content-length", str(len(body)).encode())
        await self.begin(status, [(b"content-type", b"application/json"), length], send, streaming=False)
        await send({"type": "http.response.body", "body": body, "more_body": False})

    def broken_off(self, error: StowageError) -> bytes:
        """An error as Ollama writes it into a stream."""
        return json.dumps({"error": str(error)}).encode() + b"\n"


async def _line(value: dict[str, Any], send: Send) -> None:
    await send({"type": "http.response.body", "body": json.dumps(value).encode() + b"\n", "more_body": True})


def _refused(error: StowageError) -> Response:
    return plain_error(status_of(error), str(error))


def _details(deployment: Deployment) -> dict[str, Any]:
    config = deployment.plan.found.model.config
    return {
        "parent_model": "", "format": config.format, "family": config.architecture or "",
        "families": [config.architecture] if config.architecture else [],
        "parameter_size": size_label(config.parameters) if config.parameters else "",
        "quantization_level": config.precision or "",
    }  # fmt: skip


def _listed(deployment: Deployment) -> dict[str, Any]:
    return {
        "name": deployment.name, "model": deployment.name, "modified_at": _now(deployment.created),
        "size": deployment.plan.found.model.size, "digest": deployment.digest.hex, "details": _details(deployment),
    }  # fmt: skip


def _loaded(deployment: Deployment) -> dict[str, Any]:
    estimate, timeout = deployment.estimate, deployment.keeping.idle_timeout
    left = timeout - (time.monotonic() - deployment.last_used) if timeout else translation.LONGEST
    return {
        "size_vram": estimate.total if estimate and estimate.on_gpu else 0,
        "expires_at": _now(time.time() + min(left, translation.LONGEST)),
        "context_length": deployment.plan.context_size,
    }


def _now(seconds: float | None = None) -> str:
    at = time.time() if seconds is None else seconds
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) + f".{int(at % 1 * 1e6):06d}Z"
