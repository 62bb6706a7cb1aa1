"""``runner serve``: several models behind one endpoint, in the foreground, until told to stop or nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import uvicorn

from artifact.digest import Digest
from artifact.errors import InvalidInput, StowageError
from artifact.terminal import note
from runner.gateway import Endpoint, Gateway
from runner.plan import Plan
from runner.state import Registration, Served, registered
from runner.store import Store
from runner.supervise import EngineProcess

DEFAULT_LISTEN = "127.0.0.1:12434"
"""Where the endpoint listens unless ``--listen`` says otherwise: loopback, the port Docker Model Runner uses."""

_DRAIN = 5
"""Seconds that requests under way have to finish when the endpoint stops."""


class PortTaken(StowageError):
    """Something else listens where the endpoint should."""

    code = "port-taken"


def listen_address(text: str) -> tuple[str, int]:
    """Read ``HOST:PORT`` (``[::1]:PORT`` for IPv6). Raises `InvalidInput`."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise InvalidInput(f"--listen must be HOST:PORT, not {text!r}")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if host != "localhost":
            raise InvalidInput(f"--listen takes an IP address or localhost, not {host!r}") from None
        host = "127.0.0.1"
    return host, int(port)


def bind(address: tuple[str, int]) -> socket.socket:
    """A listening socket. Raises `PortTaken`, and `InvalidInput` for an address that is not this machine's."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        where = f"{address[0]}:{address[1]}"
        if error.errno == 98:
            message = f"port taken: something already listens on {where}, stop it or choose another with --listen"
            raise PortTaken(message) from None
        raise InvalidInput(f"cannot listen on {where}: {error.strerror}") from None
    return listener


def check_free(address: tuple[str, int]) -> None:
    """Find out that a port is taken before anything is pulled or loaded. Raises `PortTaken`, `InvalidInput`."""
    if address[1]:
        bind(address).close()


def serve(plans: Sequence[Plan], store: Store, address: tuple[str, int]) -> None:
    """Serve until stopped. Raises `EngineFailed` if an engine dies at its start, or the last one dies later."""
    unique = {plan.found.model.digest: plan for plan in plans}
    names = {digest: frozenset[str]() for digest in unique}
    for plan in plans:
        names[plan.found.model.digest] |= plan.names
    with registered(store.root) as registration, bind(address) as listener:
        serving = _Serving(list(unique.values()), names, store, registration, listener)
        asyncio.run(serving.run())


class _Server(uvicorn.Server):
    """Leaves signals to the one who runs it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Serving:
    def __init__(
        self,
        plans: list[Plan],
        names: dict[Digest, frozenset[str]],
        store: Store,
        registration: Registration,
        listener: socket.socket,
    ) -> None:
        self._plans = plans
        self._names = names
        self._store = store
        self._registration = registration
        self._listener = listener
        host, port = listener.getsockname()[:2]
        self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._gateway = Gateway(len(plans), loopback=ipaddress.ip_address(host).is_loopback)
        self._processes: dict[str, EngineProcess] = {}
        self._watchers: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._failure: StowageError | None = None

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._obey)
        config = uvicorn.Config(
            self._gateway.app, lifespan="off", access_log=False, log_level="error", server_header=False,
            timeout_graceful_shutdown=_DRAIN, timeout_keep_alive=75, http="httptools", ws="none",
        )  # fmt: skip
        server = _Server(config)
        http = asyncio.create_task(server.serve(sockets=[self._listener]))
        try:
            for plan in self._plans:
                self._start(plan)
            self._write_state()
            await self._until_stopped(asyncio.gather(*(self._get_ready(plan) for plan in self._plans)))
            if not self._stopping.is_set():
                print(f"ready: http://{self._address}/v1", flush=True)
                await self._stopping.wait()
        finally:
            server.should_exit = True
            await http
            self._stop_engines()
        if self._failure is not None:
            raise self._failure

    def _start(self, plan: Plan) -> None:
        model = plan.found.model
        note(f"{plan.name}: {plan.command.version}, context {plan.context_size} tokens: {plan.command}")
        folder = self._registration.folder / "engines" / model.digest.hex[:12]
        log = log_path(self._store, plan)
        self._processes[str(model.digest)] = EngineProcess(plan.command, folder, self._store.bundle(model), log)

    async def _get_ready(self, plan: Plan) -> None:
        digest = plan.found.model.digest
        process = self._processes[str(digest)]
        await process.wait_ready(plan.engine.start_seconds)
        client = process.client()
        self._gateway.add(Endpoint(plan.name, self._names[digest], digest, process, client, int(time.time())))
        self._write_state()
        watcher = asyncio.create_task(self._watch(plan, process))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)
        print(f"serving {plan.found.pinned} as {plan.name}", flush=True)

    async def _until_stopped(self, work: asyncio.Future[list[None]]) -> None:
        """Wait for `work`, or for the order to stop, which ends it."""
        stopping = asyncio.ensure_future(self._stopping.wait())
        either: set[asyncio.Future[Any]] = {work, stopping}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if work.done():
            await work
        else:
            work.cancel()

    async def _watch(self, plan: Plan, process: EngineProcess) -> None:
        await process.wait_stopped()
        digest = plan.found.model.digest
        if str(digest) not in self._processes or self._stopping.is_set():
            return  # as it should
        failure = process.failure("while serving")
        self._drop(str(digest))
        if self._gateway.endpoints:
            note(f"error: {plan.name}: {failure}")
        else:
            self._failure = failure
            self._stopping.set()

    def _obey(self) -> None:
        """Stop the models somebody asked to stop."""
        for digest in self._registration.stop_requests() & set(self._processes):
            note(f"stopping {digest}")
            self._drop(digest)
        if not self._processes:
            self._stopping.set()

    def _drop(self, digest: str) -> None:
        process = self._processes.pop(digest)
        for endpoint in self._gateway.endpoints:
            if str(endpoint.digest) == digest:
                self._gateway.remove(endpoint.digest)
        process.close_lifeline()
        self._write_state()

    def _write_state(self) -> None:
        current = [served(plan, self._store) for plan in self._plans if str(plan.found.model.digest) in self._processes]
        self._registration.write(self._address, current)

    def _stop_engines(self) -> None:
        for process in self._processes.values():
            process.close_lifeline()
        for process in self._processes.values():
            process.wait()


def served(plan: Plan, store: Store) -> Served:
    """What ``runner ps`` shall say about a model that runs as planned."""
    digest, command = str(plan.found.model.digest), plan.command
    return Served(plan.name, digest, command.engine, command.version, str(command), str(log_path(store, plan)))


def log_path(store: Store, plan: Plan) -> Path:
    """Where the engine of a model writes."""
    return store.root / "logs" / f"{plan.found.model.digest.hex}.log"
