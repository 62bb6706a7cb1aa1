"""Docker Model Runner's own routes: models in the store, and how they run.

What is there by accident is not here: a digest in a reference counts, flags are checked against the engine that is
chosen, and what is configured survives a restart.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import shutil
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from artifact.errors import InvalidInput, StowageError
from artifact.reference import Reference
from artifact.weights.precision import size_label
from runner.administration import DRAIN, Administration
from runner.deployment import State
from runner.engines.dispatch import DRIVERS
from runner.fleet import Fleet
from runner.gateway.call import Call
from runner.gateway.errors import api_error, status_of
from runner.gateway.pulling import Pull
from runner.gateway.relay import json_object
from runner.names import served_names
from runner.pull import absolute
from runner.report import human_bytes
from runner.store import Store, StoredModel
from runner.wishes import Wishes


class Docker:
    """The routes over a fleet and the store behind it."""

    def __init__(self, fleet: Fleet, administration: Administration) -> None:
        self._fleet = fleet
        self._administration = administration

    def routes(self) -> list[BaseRoute]:
        """All of them but the OpenAI API's."""
        return [
            Route("/models/create", self._create, methods=["POST"]),
            Route("/models", self._list, methods=["GET"]),
            Route("/models/{name:path}/tag", self._tag, methods=["POST"]),
            Route("/models/{name:path}", self._get, methods=["GET"]),
            Route("/models/{name:path}", self._delete, methods=["DELETE"]),
            Route("/engines/status", self._status, methods=["GET"]),
            Route("/engines/ps", self._ps, methods=["GET"]),
            Route("/engines/df", self._df, methods=["GET"]),
            Route("/engines/unload", self._unload, methods=["POST"]),
            Route("/engines/_configure", self._configure, methods=["POST"]),
            Route("/engines/{backend}/_configure", self._configure, methods=["POST"]),
        ]

    async def _create(self, request: Request) -> Response:
        try:
            body = await json_object(request, b"{}")
            text = _text(body, "from")
        except InvalidInput as error:
            return api_error(status_of(error), str(error), code=error.code)
        pull = Pull(self._fleet, self._administration, text)
        return StreamingResponse(self._pulling(pull), media_type="application/x-ndjson")

    async def _pulling(self, pull: Pull) -> AsyncIterator[bytes]:
        try:
            async for blobs in pull.changes():
                total, done = sum(blob.total for blob in blobs), sum(blob.done for blob in blobs)
                yield _line({"type": "progress", "message": f"{human_bytes(done)} of {human_bytes(total)}",
                             "total": total, "pulled": done})  # fmt: skip
            deployment = await pull.deployment()
            message = f"Model pulled successfully: {deployment.name} {deployment.digest}"
            yield _line({"type": "success", "message": message, "digest": str(deployment.digest)})
        except (StowageError, OSError) as error:
            yield _line({"type": "error", "message": str(error), "code": getattr(error, "code", "error")})

    async def _list(self, _request: Request) -> Response:
        models = await asyncio.to_thread(self._administration.store.models)
        return JSONResponse(_described(models))

    async def _get(self, request: Request) -> Response:
        found = await self._find(request.path_params["name"])
        if not found:
            return _missing(request.path_params["name"])
        Call.of(request).digest = str(found[0].model.digest)
        return JSONResponse(_described(found)[0])

    async def _delete(self, request: Request) -> Response:
        name = request.path_params["name"]
        found = await self._find(name)
        if not found:
            return _missing(name)
        if len({item.model.digest for item in found}) > 1:
            return api_error(409, f"{name} means several models: state the tag or the digest", code="ambiguous")
        try:
            for item in found:
                await self._administration.delete(item, name)
        except StowageError as error:
            return api_error(status_of(error), str(error), code=error.code)
        digest = found[0].model.digest
        Call.of(request).digest = str(digest)
        done: list[dict[str, str]] = [{"Untagged": item.name} for item in found if item.name]
        if not await self._find(str(digest)):
            done.append({"Deleted": str(digest)})
        return JSONResponse(done)

    async def _tag(self, request: Request) -> Response:
        found = await self._find(request.path_params["name"])
        if not found:
            return _missing(request.path_params["name"])
        Call.of(request).digest = str(found[0].model.digest)
        repository, tag = request.query_params.get("repo", ""), request.query_params.get("tag", "")
        try:
            target = Reference.parse(f"{repository}:{tag or 'latest'}")
            await self._administration.tag(found[0], target)
        except StowageError as error:
            return api_error(status_of(error), str(error), code=error.code)
        return JSONResponse({"message": f"Model tagged successfully with {target}"}, 201)

    async def _find(self, name: str) -> list[StoredModel]:
        return await asyncio.to_thread(stored_as, self._administration.store, name)

    async def _status(self, _request: Request) -> Response:
        running = {item.plan.command.engine for item in self._fleet.deployments if item.state is State.READY}
        return JSONResponse({driver: "running" if driver in running else "idle" for driver in DRIVERS})

    async def _ps(self, _request: Request) -> Response:
        now, monotonic = time.time(), time.monotonic()
        return JSONResponse([
            {
                "backend_name": item.plan.command.engine, "model_name": item.name, "mode": "completion",
                "last_used": _rfc3339(now - (monotonic - item.last_used)), "digest": str(item.digest),
                "state": item.state.value, "in_use": item.active > 0,
            }
            for item in self._fleet.deployments
            if item.process is not None
        ])  # fmt: skip

    async def _df(self, _request: Request) -> Response:
        store = self._administration.store

        def used() -> dict[str, int]:
            models = {item.model.digest: item.model.size for item in store.models()}
            return {"models_disk_usage": sum(models.values()), "default_backend_disk_usage": 0,
                    "disk_free": shutil.disk_usage(store.root).free}  # fmt: skip

        return JSONResponse(await asyncio.to_thread(used))

    async def _unload(self, request: Request) -> Response:
        try:
            body = await json_object(request, b"{}")
        except InvalidInput as error:
            return api_error(status_of(error), str(error), code=error.code)
        backend, names = body.get("backend"), body.get("models") or []
        if not isinstance(names, list):
            return api_error(400, "models must be a list of names", param="models")
        everything = body.get("all") is True or (bool(backend) and not names)
        wanted = [
            item
            for item in self._fleet.deployments
            if item.process is not None
            and (everything or any(name in item.names for name in names if isinstance(name, str)))
            and (not backend or backend == item.plan.command.engine)
        ]
        for item in wanted:
            await self._fleet.unload(item, DRAIN)
        return JSONResponse({"unloaded_runners": len(wanted)})

    async def _configure(self, request: Request) -> Response:
        try:
            body = await json_object(request, b"{}")
            deployment = await self._administration.configure(
                _text(body, "model"), _wishes(body, request.path_params.get("backend"))
            )
        except StowageError as error:
            return api_error(status_of(error), str(error), code=error.code)
        Call.of(request).digest = str(deployment.digest)
        return JSONResponse({"model": deployment.name, "command": str(deployment.plan.command)}, 202)


def _text(body: dict[str, Any], key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str) or not value:
        raise InvalidInput(f"the request body must state {key!r}")
    return value


def _wishes(body: dict[str, Any], backend: str | None) -> Wishes:
    """What a configuration states. Raises `InvalidInput` for what would be ignored."""
    known = {"model", "mode", "context-size", "runtime-flags", "raw-runtime-flags", "gpus"}
    if strange := sorted(set(body) - known):
        raise InvalidInput(
            f"a configuration has no {', '.join(map(repr, strange))}: it states {', '.join(sorted(known))}"
        )
    flags, raw, context = body.get("runtime-flags") or [], body.get("raw-runtime-flags") or "", body.get("context-size")
    if not isinstance(raw, str) or not isinstance(flags, list) or not all(isinstance(flag, str) for flag in flags):
        raise InvalidInput("raw-runtime-flags must be one string, runtime-flags a list of strings")
    try:
        flags = [*(shlex.split(raw)), *flags]
    except ValueError as error:
        raise InvalidInput(f"raw-runtime-flags cannot be split into flags: {error}") from None
    if context is not None and (not isinstance(context, int) or isinstance(context, bool)):
        raise InvalidInput("context-size must be a number of tokens")
    mode, gpus = body.get("mode"), body.get("gpus")
    switches = {"embedding": "--embeddings", "reranking": "--reranking"}
    if isinstance(mode, str) and mode in switches and switches[mode] not in flags:
        flags.append(switches[mode])
    elif mode not in (None, "", "completion", "embedding", "reranking"):
        raise InvalidInput(f"mode must be completion, embedding or reranking, not {mode!r}")
    if context == -1:  # how Docker's client says: the default
        context = None
    if gpus is not None and not isinstance(gpus, str):
        raise InvalidInput('gpus must be a string: "all", "none", or numbers such as "0,1"')
    return Wishes(backend, context, gpus, None, tuple(flags))


def stored_as(store: Store, name: str) -> list[StoredModel]:
    """The stored models that `name` means: by reference with or without host, tag and digest, or by digest."""
    return [item for item in store.models() if name in _names(item)]


def _names(item: StoredModel) -> frozenset[str]:
    digest = str(item.model.digest)
    names = {digest, item.model.digest.short, item.model.digest.hex, item.model.digest.hex[:12]}
    try:
        return served_names(absolute(Reference.parse(item.name)), digest) | names
    except InvalidInput:
        return frozenset(names)


def _described(models: list[StoredModel]) -> list[dict[str, Any]]:
    tags: dict[str, list[str]] = {}
    first: dict[str, StoredModel] = {}
    for item in models:
        digest = str(item.model.digest)
        first.setdefault(digest, item)
        tags.setdefault(digest, []).extend([item.name] if item.name else [])
    return [
        {
            "id": digest,
            "tags": tags[digest],
            "created": int(item.record.get("pulled", 0)),
            "config": {
                "format": item.model.config.format,
                "quantization": item.model.config.precision,
                "parameters": size_label(item.model.config.parameters) if item.model.config.parameters else "",
                "architecture": item.model.config.architecture,
                "size": human_bytes(item.model.size),
                "context_size": item.model.config.context_length,
            },
        }
        for digest, item in first.items()
    ]


def _missing(name: str) -> Response:
    return api_error(404, f"the model {name[:200]!r} is not in the store", param="model", code="model_not_found")


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _rfc3339(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
