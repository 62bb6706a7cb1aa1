"""What an operator sees of the registry: health, metrics, log, limits, events."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from artifact.errors import StowageError
from registry import metrics
from registry.config.sections import Config
from registry.gc.report import Report
from registry.http.accesslog import AccessLog
from registry.http.certificate import Network
from registry.http.gate import too_many
from registry.http.observed import observation_of, principal_of
from registry.limits import Buckets, RateLimits
from registry.metrics import Metrics
from registry.receiver import secret_of
from registry.store.protocol import ObjectStore
from registry.webhooks import Notice, Webhooks

_SHARE = 1.0  # seconds between two writings of the counts for the other processes
_log = logging.getLogger("registry")


@dataclass(frozen=True)
class Shared:
    """What the processes of one server have in common: a folder of counts, and a table of limits."""

    counts: Path
    limits: Path

    @classmethod
    def create(cls, folder: Path) -> Shared:
        """Make both in an empty folder."""
        shared = cls.of(folder)
        shared.counts.mkdir()
        Buckets.create(shared.limits)
        return shared

    @classmethod
    def of(cls, folder: Path) -> Shared:
        """Those in a folder in which they have been made."""
        return cls(folder / "counts", folder / "limits")


class Operation:
    """The operator's side of one server process; with `log` false there is no access log. It is as `configure` says,
    and may be configured again while it runs."""

    def __init__(self, store: ObjectStore, shared: Shared | None = None, log: bool = True) -> None:
        self.metrics = Metrics(shared.counts if shared is not None else None)
        self.log = AccessLog("none")
        self._store = store
        self._logs = log
        self.buckets = Buckets(shared.limits if shared is not None else None)
        self._webhooks = Webhooks(store, self.metrics)
        self._limits = RateLimits()
        self.trusted: tuple[Network, ...] = ()
        self._shows_metrics = True

    @staticmethod
    def check(config: Config) -> None:
        """That the files which a configuration names for `configure` can be read. Raises `InvalidInput`."""
        for hook in config.webhooks:
            secret_of(hook)

    def configure(self, config: Config) -> None:
        """Be as a configuration that has been checked says."""
        self._webhooks.configure(config.webhooks, config.server.public_url)
        self.log.format = config.log.format if self._logs else "none"
        limits = config.limits
        self._limits = RateLimits(limits.requests_per_second, limits.burst, self.buckets)
        self.trusted = networks(config)
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

    def limited(self) -> None:
        """Count that a request was refused because of too many before it."""
        self.metrics.add(metrics.LIMITED)

    def _count(self, sender: str) -> None:
        wait = self._limits.wait(sender)
        if wait:
            self.limited()
            raise too_many("too many requests", wait)

    def notice(self, request: Request) -> Notice:
        """What a request is about to do, for the webhooks to be told."""
        return self._webhooks.notice(principal_of(request.scope), observation_of(request.scope).request_id)

    def collected(self, report: Report) -> None:
        """Count what a cycle of the garbage collector did."""
        self.metrics.add(metrics.GC_CYCLES)
        for what, amount in report.to_json().items():
            if what == "deleted_bytes":
                self.metrics.add(metrics.GC_BYTES, amount=amount)
            else:
                self.metrics.add(metrics.GC_OBJECTS, what, amount=amount)

    def routes(self) -> list[Route]:
        """The endpoints outside of the distribution API."""

        async def alive(request: Request) -> Response:
            return PlainTextResponse("ok\n")

        async def ready(request: Request) -> Response:
            try:
                await asyncio.to_thread(self._store.list, "blobs/", limit=1)
            except (StowageError, OSError) as error:
                _log.error("not ready: %s", error)
                return PlainTextResponse("the object store does not answer as it should\n", 503)
            return PlainTextResponse("ok\n")

        async def show(request: Request) -> Response:
            if not self._shows_metrics:
                return PlainTextResponse("Not Found", 404)
            text = await asyncio.to_thread(self.metrics.text)
            return Response(text, 200, {"Content-Type": metrics.CONTENT_TYPE})

        return [Route("/healthz", alive), Route("/readyz", ready), Route("/metrics", show)]

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


def networks(config: Config) -> tuple[Network, ...]:
    """The networks of trusted proxies."""
    return tuple(map(ipaddress.ip_network, config.server.trusted_proxies))
