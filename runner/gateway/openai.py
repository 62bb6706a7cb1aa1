"""The OpenAI API: a request's ``model`` chooses the engine; the rest of it is the engine's business."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from runner.deployment import Deployment
from runner.fleet import Fleet
from runner.gateway.call import Call
from runner.gateway.errors import api_error
from runner.gateway.multipart import model_field, with_model
from runner.gateway.relay import MAX_BODY, PARSE_IN_THREAD, Relay, whole_body

PREFIXES = ("/v1", "/engines/v1", "/engines/{backend}/v1")
"""Where the API lies: at its own place, and at Docker Model Runner's."""

FORWARDED = ("chat/completions", "completions", "embeddings", "rerank", "responses")
FORMS = ("audio/transcriptions", "audio/translations")


class OpenAi:
    """The routes of the OpenAI API over the models of a fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def routes(self) -> list[BaseRoute]:
        """All of them."""
        posts = [
            Route(f"{prefix}/{path}", self._forward, methods=["POST"])
            for prefix in PREFIXES
            for path in (*FORWARDED, *FORMS)
        ]
        gets = [
            Route(f"{prefix}/models{rest}", endpoint, methods=["GET"])
            for prefix in PREFIXES
            for rest, endpoint in (("", self._models), ("/{model:path}", self._model))
        ]
        return [*posts, Route("/rerank", self._forward, methods=["POST"]), *gets]

    async def _models(self, _request: Request) -> Response:
        data = [value for item in offered(self._fleet) for value in (listed(item), *adapters(item))]
        return JSONResponse({"object": "list", "data": data})

    async def _model(self, request: Request) -> Response:
        name = request.path_params["model"]
        found = self._fleet.find(name)
        if found is None:
            return unknown(self._fleet, name)
        Call.of(request).digest = str(found.digest)
        return JSONResponse(listed(found))

    async def _forward(self, request: Request) -> Response:
        try:
            raw = await whole_body(request)
        except ClientDisconnect:
            return Response(status_code=499)
        if raw is None:
            return api_error(413, f"the request is larger than {MAX_BODY} bytes")
        path = request.url.path.rpartition("/v1/")[2].lstrip("/")
        Call.of(request).route = path
        content_type = request.headers.get("content-type", "application/json").encode("latin-1")
        if path in FORMS:
            return self._form(path, content_type, raw)
        try:
            body = await asyncio.to_thread(json.loads, raw) if len(raw) > PARSE_IN_THREAD else json.loads(raw)
        except (ValueError, RecursionError):
            return api_error(400, "the request body is not valid JSON")
        if not isinstance(body, dict) or not isinstance(body.get("model", ""), str):
            return api_error(400, "the request body must be a JSON object with a model's name", param="model")
        deployment = self._fleet.find(body.get("model") or None)
        if deployment is None:
            return unknown(self._fleet, body.get("model"))
        name = deployment.asked_as(body.get("model"))
        if body.get("model") != name:  # engines know the model by one name only
            raw = json.dumps({**body, "model": name}).encode()
        return Relay(self._fleet, deployment, f"/v1/{path}", raw)

    def _form(self, path: str, content_type: bytes, raw: bytes) -> Response:
        place = model_field(content_type, raw)
        name = raw[slice(*place)].decode("utf-8", "replace") if place else None
        deployment = self._fleet.find(name or None)
        if deployment is None:
            return unknown(self._fleet, name)
        if place and name != deployment.asked_as(name):
            raw = with_model(raw, place, deployment.name)
        return Relay(self._fleet, deployment, f"/v1/{path}", raw, content_type)


def offered(fleet: Fleet) -> list[Deployment]:
    """The models that answer: those that have been ready, and those that are loaded when they are asked for."""
    return [item for item in fleet.deployments if item.ready_at or item.keeping.lazy]


def listed(deployment: Deployment) -> dict[str, Any]:
    """A model as ``/v1/models`` lists it."""
    return {
        "id": deployment.name,
        "object": "model",
        "created": deployment.created,
        "owned_by": "stowage",
        "digest": str(deployment.digest),
        "state": deployment.state.value,
    }


def adapters(deployment: Deployment) -> list[dict[str, Any]]:
    """The adapters of a model that a request chooses by name, as ``/v1/models`` lists them."""
    return [
        {**listed(deployment), "id": name, "digest": str(digest), "parent": deployment.name}
        for name, digest in deployment.chosen.items()
    ]


def unknown(fleet: Fleet, name: str | None) -> Response:
    """The answer to a request for a model that is not served."""
    served = ", ".join(item.name for item in fleet.deployments) or "none yet"
    if not name:
        return api_error(400, f"several models are served, so model must name one: {served}", param="model")
    message = f"the model {name[:200]!r} is not served here (served: {served})"
    return api_error(404, message, param="model", code="model_not_found")
