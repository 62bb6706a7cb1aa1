"""Running the server: socket, processes, signals."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import uvicorn
from starlette.applications import Starlette
from uvicorn.supervisors import Multiprocess

from artifact.errors import StowageError
from artifact.terminal import note
from registry.config.files import check_files
from registry.config.sections import Config
from registry.gc.background import BackgroundCollector
from registry.http.app import Registry, create_app
from registry.http.connection import Connection
from registry.http.operation import Operation, Shared
from registry.http.tls import context
from registry.listen import listen_address
from registry.log.key import LogKey
from registry.log.sequencer import Sequencer
from registry.log.start import ready
from registry.reload import Reloading, accepted, read_again, refused
from registry.serverfolder import server_folder
from registry.settings import Settings, effective
from registry.store.open import open_store
from registry.store.probe import conditional_writes_are_atomic

_DRAIN = 30  # seconds running requests have after SIGTERM
_SETTINGS = "STOWAGE_REGISTRY_SETTINGS"
_M_MMAP_THRESHOLD = -3  # malloc.h
_SHARED = "STOWAGE_REGISTRY_SHARED"  # the folder of what server processes have in common
_ALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}  # seconds, seconds, questions
_UNANSWERED = 60  # seconds a server process may say nothing before it is killed: a loaded machine is not a dead process


class PortTaken(StowageError):
    """Another program listens where the registry should."""

    code = "port-taken"


def serve(settings: Settings) -> NoReturn:
    """Serve until a signal ends it. Raises `InvalidInput`, `PortTaken`, and what opening the store raises."""
    config, notes = effective(settings)
    for sentence in notes:
        note(f"note: {sentence}")
    check_files(config)
    store = open_store(config.server.storage)
    if not conditional_writes_are_atomic(store):
        raise StowageError(
            f"storage {store.place} does not keep conditional writes apart (If-None-Match, If-Match): concurrent "
            "pushes could lose data; use a store that does"
        )
    if config.transparency is not None:
        ready(Sequencer(store, LogKey.load(config.transparency.key, config.transparency.origin)))
    listener = _listen(*listen_address(config.server.listen))
    address, real_port = listener.getsockname()[:2]
    shown = f"[{address}]" if ":" in address else address
    scheme = "http" if config.server.tls is None else "https"
    print(f"registry listening on {scheme}://{shown}:{real_port} (storage: {store.place})", flush=True)
    os.environ[_SETTINGS] = settings.to_text()
    server = uvicorn.Server(_uvicorn(config))
    # The server gives the signal back once it has drained; that is then the end of a good run.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _drained)
    if config.server.workers == 1:
        server.run(sockets=[listener])
    else:
        with server_folder() as folder:
            Shared.create(folder)
            os.environ[_SHARED] = str(folder)
            Workers(server.config, listener, settings, config).run()
    sys.exit(0 if server.started or config.server.workers > 1 else 1)


class Workers(Multiprocess):
    """Server processes that share a socket. On SIGHUP they read the configuration again, if it can be used."""

    def __init__(self, config: uvicorn.Config, listener: socket.socket, settings: Settings, running: Config) -> None:
        super().__init__(config, [listener])
        self._settings = settings
        self._running = running

    def handle_hup(self) -> None:
        if self._settings.config is None:
            self.should_exit.set()
            return
        try:
            config = read_again(self._settings, self._running)
        except StowageError as error:
            refused(self._settings, error)
            return
        self._running = config
        for process in self.processes:
            if process.pid is not None and process.process.is_alive():
                os.kill(process.pid, signal.SIGHUP)
        accepted(self._settings, config)


def _uvicorn(config: Config) -> uvicorn.Config:
    tls = config.server.tls
    return uvicorn.Config(
        "registry.serve:app_from_environment",
        factory=True,
        workers=config.server.workers,
        loop="uvloop",
        http=Connection,
        ws="none",
        lifespan="on",
        access_log=False,
        proxy_headers=False,  # which proxies are believed says the configuration
        log_level="warning",
        server_header=False,
        timeout_keep_alive=75,  # longer than clients keep idle connections, so that none is reused as it closes
        timeout_graceful_shutdown=_DRAIN,
        timeout_worker_healthcheck=_UNANSWERED,
        ssl_context_factory=None if tls is None else context,
        ssl_certfile=None if tls is None else str(tls.certificate),
        ssl_keyfile=None if tls is None else str(tls.key),
        ssl_ca_certs=None if tls is None or tls.client_ca is None else str(tls.client_ca),
        # Who shows a certificate has to show a good one; who shows none may still log in another way.
        ssl_cert_reqs=ssl.CERT_NONE if tls is None or tls.client_ca is None else ssl.CERT_OPTIONAL,
    )


def _drained(_signal: int, _frame: FrameType | None) -> Any:
    sys.exit(0)


def app_from_environment() -> Starlette:
    """The application of one server process, with the settings its parent left in the environment."""
    settings = Settings.from_text(os.environ[_SETTINGS])
    config, _ = effective(settings)
    store = open_store(config.server.storage)
    _give_memory_back()
    folder = os.environ.get(_SHARED)
    operation = Operation(store, Shared.of(Path(folder)) if folder else None)
    app = create_app(store, config, operation)
    collector = BackgroundCollector(store, config.gc.interval, grace=config.gc.grace, observe=operation.collected)
    _while_serving(app, collector, settings, alone=not folder)
    return app


def _while_serving(app: Registry, collector: BackgroundCollector, settings: Settings, alone: bool) -> None:
    """Run with the application what runs beside it."""
    serving = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(running: Starlette) -> AsyncIterator[object]:
        async with AsyncExitStack() as stack:
            state = await stack.enter_async_context(serving(running))
            if settings.config is not None:
                await stack.enter_async_context(Reloading(app, collector, settings, alone).listening())
            collector.start()
            stack.callback(collector.stop)
            yield state

    app.router.lifespan_context = lifespan  # type: ignore[assignment]


def _give_memory_back() -> None:
    """Have glibc return large buffers to the system as soon as they are freed, instead of learning to keep them."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1024 * 1024)


def _keep_alive(listener: socket.socket) -> None:
    """Have the system ask silent clients whether they are there: connections get this from their listener. One that
    vanished without a word would hold its connection for ever."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _ALIVE.items():
        if hasattr(socket, name):
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    _keep_alive(listener)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortTaken(
                f"{host}:{port} is in use by another program: stop it, or choose another port with --listen"
            ) from None
        raise StowageError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    listener.set_inheritable(True)
    return listener
