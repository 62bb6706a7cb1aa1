"""What an operator sees of the registry: health, metrics, log, limits, events."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from artifact.errors import StowageError
from registry import metrics
from registry.config.sections import Config
from registry.events import Event
from registry.gc.report import Report
from registry.http.accesslog import AccessLog
from registry.http.errors import RegistryError
from registry.http.observed import observation_of, principal_of
from registry.limits import RateLimits
from registry.metrics import Metrics
from registry.store.protocol import ObjectStore
from registry.webhooks import Webhooks

_SHARE = 1.0  # seconds between two writings of the counts for the other processes


class Operation:
    """The operator's side of one server process. `shared` is a folder that the processes of one server have in common;
    with `log` false there is no access log."""

    def __init__(self, config: Config | None = None, shared: Path | None = None, log: bool = True) -> None:
        config = config or Config()
        self.metrics = Metrics(shared)
        self.log = AccessLog(config.log.format if log else "none")
        self._limits = RateLimits(config.limits.requests_per_second, config.limits.burst)
        self._webhooks = Webhooks(config.webhooks, config.server.public_url, self.metrics)
        self.trusted = tuple(map(ipaddress.ip_network, config.server.trusted_proxies))
        self._shows_metrics = config.metrics.enabled

    def limit(self, request: Request) -> None:
        """Count a request against its principal, or against its address where there is none. Raises
        `RegistryError`."""
        name = principal_of(request.scope)
        sender = f"address {observation_of(request.scope).client}" if name == "anonymous" else f"principal {name}"
        self._count(sender)

    def limit_address(self, request: Request) -> None:
        """Count a request whose login was refused against its address. Raises `RegistryError`."""
        self._count(f"address {observation_of(request.scope).client}")

    def _count(self, sender: str) -> None:
        wait = self._limits.wait(sender)
        if wait:
            self.metrics.add(metrics.LIMITED)
            seconds = str(max(1, round(wait + 0.5)))
            raise RegistryError(
                429, "TOOMANYREQUESTS", f"too many requests: wait {seconds} s", {"Retry-After": seconds}
            )

    def publish(self, request: Request, event: Event) -> None:
        """Tell the webhooks of something that a request has done. Does not wait for them."""
        request_id = observation_of(request.scope).request_id
        self._webhooks.publish(replace(event, principal=principal_of(request.scope), request_id=request_id))

    def collected(self, report: Report) -> None:
        """Count what a cycle of the garbage collector did."""
        self.metrics.add(metrics.GC_CYCLES)
        for what, amount in report.to_json().items():
            if what == "deleted_bytes":
                self.metrics.add(metrics.GC_BYTES, amount=amount)
            else:
                self.metrics.add(metrics.GC_OBJECTS, what, amount=amount)

    def routes(self, store: ObjectStore) -> list[Route]:
        """The endpoints outside of the distribution API."""

        async def alive(request: Request) -> Response:
            return PlainTextResponse("ok\n")

        async def ready(request: Request) -> Response:
            try:
                await asyncio.to_thread(store.list, "blobs/", limit=1)
            except (StowageError, OSError) as error:
                return PlainTextResponse(f"object store: {error}\n", 503)
            return PlainTextResponse("ok\n")

        async def show(request: Request) -> Response:
            text = await asyncio.to_thread(self.metrics.text)
            return Response(text, 200, {"Content-Type": metrics.CONTENT_TYPE})

        shown = [Route("/metrics", show)] if self._shows_metrics else []
        return [Route("/healthz", alive), Route("/readyz", ready), *shown]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While the server runs; at its end what waits is written and sent."""
        sharing = asyncio.create_task(self._share())
        try:
            yield
        finally:
            sharing.cancel()
            with suppress(asyncio.CancelledError):
                await sharing
            await asyncio.to_thread(self._webhooks.close)
            await asyncio.to_thread(self.metrics.share)
            await asyncio.to_thread(self.log.flush)

    async def _share(self) -> None:
        while True:
            with suppress(OSError):  # a full disk: the registry goes on, uncounted
                await asyncio.to_thread(self.metrics.share)
            await asyncio.sleep(_SHARE)
