"""What Ollama's API changes in the store: models pulled, named and deleted. Making one is the packager's work."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from artifact.errors import InvalidInput, StowageError
from artifact.reference import Reference
from runner.administration import Administration
from runner.fleet import Fleet
from runner.gateway.call import Call
from runner.gateway.docker import stored_as
from runner.gateway.errors import plain_error, status_of
from runner.gateway.pulling import Blob, Pull
from runner.gateway.relay import json_object
from runner.store import StoredModel

_REFUSED = {
    "create": "models are not made here: packager pack makes one of a checkpoint or a GGUF file, /api/pull fetches it",
    "push": "models are not sent from here: packager push sends one to a registry",
}


class OllamaLibrary:
    """The routes."""

    def __init__(self, fleet: Fleet, administration: Administration) -> None:
        self._fleet = fleet
        self._administration = administration

    def routes(self) -> list[BaseRoute]:
        """All of them."""
        return [
            Route("/api/pull", self._pull, methods=["POST"]),
            Route("/api/copy", self._copy, methods=["POST"]),
            Route("/api/delete", self._delete, methods=["DELETE"]),
            *(Route(f"/api/{name}", self._refuse, methods=["POST"]) for name in _REFUSED),
        ]

    async def _pull(self, request: Request) -> Response:
        try:
            body = await json_object(request)
            name = _text(body, "model", "name")
        except InvalidInput as error:
            return plain_error(status_of(error), str(error))
        pull = Pull(self._fleet, self._administration, name)
        if body.get("stream", True) is not False:
            return StreamingResponse(_told(pull), media_type="application/x-ndjson")
        try:
            Call.of(request).digest = str((await pull.deployment()).digest)
        except StowageError as error:
            return plain_error(status_of(error), str(error))
        except OSError as error:
            return plain_error(500, str(error))
        return JSONResponse({"status": "success"})

    async def _copy(self, request: Request) -> Response:
        try:
            body = await json_object(request)
            source, target = _text(body, "source"), Reference.parse(_text(body, "destination"))
            found = await self._find(source)
            if not found:
                return plain_error(404, f"model '{source[:200]}' not found")
            Call.of(request).digest = str(found[0].model.digest)
            await self._administration.tag(found[0], target if target.tag else target.with_tag("latest"))
        except StowageError as error:
            return plain_error(status_of(error), str(error))
        return Response(status_code=200)

    async def _delete(self, request: Request) -> Response:
        try:
            name = _text(await json_object(request), "model", "name")
            found = await self._find(name)
            if not found:
                return plain_error(404, f"model '{name[:200]}' not found")
            if len({item.model.digest for item in found}) > 1:
                return plain_error(409, f"{name} means several models: state the tag or the digest")
            Call.of(request).digest = str(found[0].model.digest)
            for item in found:
                await self._administration.delete(item, name)
        except StowageError as error:
            return plain_error(status_of(error), str(error))
        return Response(status_code=200)

    async def _refuse(self, request: Request) -> Response:
        return plain_error(501, _REFUSED[request.url.path.rpartition("/")[2]])

    async def _find(self, name: str) -> list[StoredModel]:
        store = self._administration.store
        found = await asyncio.to_thread(stored_as, store, name)
        return found or await asyncio.to_thread(stored_as, store, name.removesuffix(":latest"))


async def _told(pull: Pull) -> AsyncIterator[bytes]:
    """A pull as Ollama tells of it."""
    yield _line({"status": "pulling manifest"})
    shown: dict[str, Blob] = {}
    try:
        async for blobs in pull.changes():
            for blob in blobs:
                if shown.get(blob.digest) != blob:
                    shown[blob.digest] = blob
                    short = blob.digest.rpartition(":")[2][:12]
                    yield _line({"status": f"pulling {short}", "digest": blob.digest, "total": blob.total,
                                 "completed": blob.done})  # fmt: skip
        await pull.deployment()
    except (StowageError, OSError) as error:
        yield _line({"error": str(error)})
        return
    for status in ("verifying sha256 digest", "writing manifest", "success"):
        yield _line({"status": status})


def _text(body: dict[str, Any], *keys: str) -> str:
    value = next((body[key] for key in keys if body.get(key)), None)
    if not isinstance(value, str):
        raise InvalidInput(f"the request must state {keys[0]!r}")
    return value


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"
