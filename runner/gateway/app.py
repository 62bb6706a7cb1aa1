"""The application: every dialect over one fleet of models, behind one check of who asks."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from artifact.terminal import note
from runner.administration import Administration
from runner.deployment import State
from runner.fleet import Fleet
from runner.gateway.access import Access
from runner.gateway.call import Call
from runner.gateway.docker import Docker
from runner.gateway.errors import error_at
from runner.gateway.metrics import Metrics
from runner.gateway.ollama import Ollama
from runner.gateway.ollama_library import OllamaLibrary
from runner.gateway.openai import OpenAi
from runner.keys import KeyFile


class Gateway:
    """The endpoint of a fleet. It is healthy once `started` is set, while no model waits to be restarted."""

    def __init__(
        self, fleet: Fleet, administration: Administration, *, keys: KeyFile | None = None, loopback: bool = True
    ) -> None:
        self._fleet = fleet
        self._metrics = Metrics()
        self.started = False
        routes = [
            Route("/healthz", self._healthz, methods=["GET"]),
            Route("/metrics", self._text, methods=["GET"]),
            *OpenAi(fleet).routes(),
            *Docker(fleet, administration).routes(),
            *Ollama(fleet).routes(),
            *OllamaLibrary(fleet, administration).routes(),
        ]
        starlette = Starlette(routes=routes, exception_handlers={404: _no_route, 405: _no_route, 500: _failed})
        self.app: ASGIApp = Access(starlette, self._metrics, keys=keys, loopback=loopback)

    async def _healthz(self, _request: Request) -> Response:
        items = self._fleet.deployments
        bad = [item for item in items if item.state in (State.WAITING, State.FAILED)]
        well = self.started and not bad
        ready = sum(item.state is State.READY for item in items)
        status = "ok" if well else "loading" if not self.started else "failing"
        return JSONResponse({"status": status, "models": ready}, 200 if well else 503)

    async def _text(self, _request: Request) -> Response:
        return Response(await self._metrics.text(self._fleet), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _failed(request: Request, error: Exception) -> Response:
    """Our own mistake: told to who runs the gateway, under the id that the client has."""
    call = Call.of(request)
    note(f"error: request {call.id}: {request.method} {request.url.path[:200]}: {type(error).__name__}: {error}")
    return error_at(request.url.path, 500, f"the gateway failed: tell who runs it the request id {call.id}")


async def _no_route(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    path = request.url.path
    return error_at(path, status, f"no such route: {request.method} {path[:200]}")
