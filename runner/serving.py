"""One runner while it serves: the fleet, the endpoint before it, and the orders it takes from outside."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import math
import signal
import socket
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import uvicorn

from artifact.errors import StowageError
from artifact.reference import Reference
from artifact.terminal import note
from runner import orders
from runner.administration import Administration
from runner.configured import configuration_path
from runner.deployment import Deployment, State
from runner.fleet import Fleet
from runner.gateway.app import Gateway
from runner.gateway.connection import Connection
from runner.keys import KeyFile
from runner.orders import Order
from runner.plan import Plan
from runner.revocation import Watch
from runner.state import NEWS, Registration
from runner.store import Store
from runner.stream.streaming import Streaming
from supplychain.policy import Policy

if TYPE_CHECKING:
    from runner.serve import Settings

_AGAIN = 2.0
"""Seconds after which what could not be written is written again."""


class _Server(uvicorn.Server):
    """Leaves signals to the one who runs it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Serving:
    """Serves `plans` on `listener`, whose `address` is HOST:PORT. With `keep` what is configured is written down for
    the next start."""

    def __init__(
        self,
        plans: Sequence[Plan],
        store: Store,
        registration: Registration,
        listener: socket.socket,
        address: str,
        settings: Settings,
        keys: KeyFile | None,
        *,
        keep: bool,
    ) -> None:
        self._plans = plans
        self._store = store
        self._registration = registration
        self._listener = listener
        self._settings = settings
        self._keys = keys
        self._keep = keep
        self._place = listener.getsockname()[:2]
        self._address = address
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: StowageError | None = None

    async def run(self) -> None:
        """Serve until told to stop. Raises `StowageError` as `serve` does."""
        self._stopping, self._news = asyncio.Event(), asyncio.Event()
        settings, place = self._settings, self._place
        watch = Watch(self._store)
        self._fleet = Fleet(
            self._store, self._registration.folder, memory=settings.memory, max_restarts=settings.max_restarts,
            changed=self._news.set, gave_up=self._gave_up, allow=watch.check,
        )  # fmt: skip
        policy_file = str(settings.policy_file.absolute()) if settings.policy_file else None
        self._administration = Administration(
            self._store, self._fleet, configuration_path(self._store.root, place) if self._keep else None,
            settings.policy, policy_file, settings.plain_http, settings.keeping, settings.wishes.sandbox,
            divided=settings.divided,
        )  # fmt: skip
        self._gateway = Gateway(
            self._fleet, self._administration, keys=self._keys, loopback=ipaddress.ip_address(place[0]).is_loopback
        )
        config = uvicorn.Config(
            self._gateway.app, lifespan="off", access_log=False, log_level="critical", server_header=False,
            timeout_graceful_shutdown=math.ceil(settings.drain), timeout_keep_alive=75, http=Connection, ws="none",
            proxy_headers=False,
        )  # fmt: skip
        server = _Server(config)
        self._listen_to_signals(server)
        http = asyncio.create_task(server.serve(sockets=[self._listener]))
        followed = watch.follow(self._fleet, self._policy_read, self._revoked)
        helpers = [asyncio.create_task(work) for work in (self._fleet.tend(), self._tell(), followed)]
        for helper in helpers:
            helper.add_done_callback(self._helped)
        try:
            await self._until_stopped(self._begin())
            if not self._stopping.is_set():
                _say(f"ready: http://{self._address}/v1")
                await self._stopping.wait()
        finally:
            server.should_exit = True
            await http
            for task in helpers:
                task.cancel()
            await self._fleet.close()
            for stream in [plan.stream for plan in self._plans if plan.stream is not None]:
                await asyncio.to_thread(stream.close)
        if self._failure is not None:
            raise self._failure

    def _listen_to_signals(self, server: _Server) -> None:
        """The first order to stop lets requests finish, the second does not. A terminal that is closed lets them too,
        and says so more than once."""

        def stop() -> None:
            server.force_exit = self._stopping.is_set()
            self._stopping.set()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup leaves it
            loop.add_signal_handler(signal.SIGHUP, self._stopping.set)
        loop.add_signal_handler(NEWS, self._obey)

    async def _begin(self) -> None:
        """Add all models and load those that are not to wait for their first request."""
        for plan in self._plans:
            digest = plan.found.model.digest
            existing = self._fleet.get(digest)
            if existing is not None:
                existing.names |= plan.names
                continue
            kept = self._settings.configured.get(str(digest))
            wishes = kept.wishes if kept else self._settings.wishes
            deployment = self._fleet.add(plan, wishes, kept.keeping if kept else self._settings.keeping)
            for alias in kept.aliases if kept else ():
                deployment.call_it(Reference.parse(alias))
        if self._plans:
            self._administration.save()
        for item in self._fleet.deployments:
            if item.plan.stream is not None:
                self._spawn(self._follow(item, item.plan.stream))
        eager = [item for item in self._fleet.deployments if not item.keeping.lazy]
        await asyncio.gather(*(self._get_ready(item, evict=False) for item in eager))
        self._gateway.started = True
        self._news.set()

    async def _get_ready(self, deployment: Deployment, *, evict: bool = True) -> None:
        stream = deployment.plan.stream
        try:
            await self._fleet.load(deployment, evict=evict)
        except StowageError:
            if stream is not None and stream.failure is not None:
                raise stream.failure from None  # what the engine died of
            raise
        _say(f"serving {deployment.plan.found.pinned} as {deployment.name}")

    async def _follow(self, deployment: Deployment, stream: Streaming) -> None:
        """Stop a model that turns out not to be what its manifest says, or that cannot be had to its end."""
        try:
            await asyncio.to_thread(stream.completed)
        except StowageError as error:
            if self._stopping.is_set():
                return
            note(f"error: {deployment.name}: {error}; it is stopped")
            await self._fleet.remove(deployment)
            if not self._fleet.deployments:
                self._failure = error
                self._stopping.set()

    def _policy_read(self, policy: Policy) -> None:
        self._administration.use(policy)
        self._news.set()

    async def _revoked(self, deployment: Deployment, error: StowageError) -> None:
        """Stop a model that the policy allows no longer."""
        await self._fleet.remove(deployment)
        if not self._fleet.deployments:
            self._failure = error
            self._stopping.set()

    async def _until_stopped(self, work: Coroutine[Any, Any, None]) -> None:
        """Wait for `work`, or for the order to stop, which ends it."""
        working, stopping = asyncio.create_task(work), asyncio.create_task(self._wait())
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if working.done():
            await working
        else:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    async def _wait(self) -> None:
        await self._stopping.wait()

    def _gave_up(self, deployment: Deployment) -> None:
        """End when nothing is left that may answer."""
        others = [item for item in self._fleet.deployments if item is not deployment]
        if self._gateway.started and not deployment.keeping.lazy and all(item.state is State.FAILED for item in others):
            self._failure = deployment.failure
            self._stopping.set()

    def _obey(self) -> None:
        """Stop the models somebody asked to stop, start those somebody ordered."""
        for digest in self._registration.stop_requests():
            deployment = self._fleet.get(digest)
            if deployment is not None:
                note(f"stopping {digest}")
                self._spawn(self._drop(deployment))
        for order in orders.take(self._registration.folder):
            self._spawn(self._carry_out(order))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            note(f"error: {type(error).__name__}: {error}")

    def _helped(self, task: asyncio.Task[None]) -> None:
        """End with a helper that has failed: nobody would watch over the models any more."""
        if not task.cancelled() and (error := task.exception()) and not self._stopping.is_set():
            self._failure = StowageError(f"the runner cannot go on: {type(error).__name__}: {error}")
            self._stopping.set()

    async def _drop(self, deployment: Deployment) -> None:
        try:
            await self._administration.drop(deployment)
        finally:
            if not self._fleet.deployments:
                self._stopping.set()

    async def _carry_out(self, order: Order) -> None:
        """Serve one more model, or say why not."""
        order = replace(order, sandbox=order.sandbox or self._settings.wishes.sandbox)
        try:
            plan = await asyncio.to_thread(order.plan, self._store)
            self._administration.came_under(order.policy)
            names = order.names(str(plan.found.model.digest))
            deployment = self._fleet.add(plan, order.wishes, self._settings.keeping, names)
            try:
                await self._get_ready(deployment)
            except StowageError:
                await self._fleet.remove(deployment)
                raise
            self._administration.save()
        except (StowageError, OSError) as error:
            note(f"error: {order.reference}: {error}")
            status = error.exit_code if isinstance(error, StowageError) else 1
            orders.refuse(self._registration.folder, order, str(error), status)

    async def _tell(self) -> None:
        """Write down what is served whenever that changes, beside the event loop; what cannot be is tried again."""
        keyed, drain = self._keys is not None, self._settings.drain
        told = False
        while True:
            await self._news.wait()
            self._news.clear()
            models = [item.served() for item in self._fleet.deployments]
            try:
                await asyncio.to_thread(self._registration.write, self._address, models, keyed=keyed, drain=drain)
                told = False
            except OSError as error:
                if not told:
                    note(f"error: {error}: runner ps and runner stop know what was served before, until this is mended")
                told = True
                await asyncio.sleep(_AGAIN)
                self._news.set()


def _say(line: str) -> None:
    """Print a line for whoever waits for it, if anybody reads that still."""
    with contextlib.suppress(OSError):
        print(line, flush=True)
