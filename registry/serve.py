"""Running the server: socket, processes, signals."""

from __future__ import annotations

import errno
import ipaddress
import json
import os
import signal
import socket
import sys
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any, NoReturn

import uvicorn
from starlette.applications import Starlette
from uvicorn.supervisors import Multiprocess

from artifact.errors import InvalidInput, StowageError
from artifact.reference import is_host
from registry.http.app import create_app
from registry.http.blobs import Redirects
from registry.store.open import open_store
from registry.store.probe import conditional_writes_are_atomic

DEFAULT_STORAGE = "./registry-data"
DEFAULT_LISTEN = "127.0.0.1:5000"

_DRAIN = 30  # seconds running requests have after SIGTERM
_SETTINGS = "STOWAGE_REGISTRY_SETTINGS"


@dataclass(frozen=True)
class Settings:
    """What ``registry serve`` was told."""

    storage: str = DEFAULT_STORAGE
    listen: str = DEFAULT_LISTEN
    workers: int = 1
    redirect: bool = True
    insecure_anonymous: bool = False


class PortTaken(StowageError):
    """Another program listens where the registry should."""

    code = "port-taken"


def serve(settings: Settings) -> NoReturn:
    """Serve until a signal ends it. Raises `InvalidInput`, `PortTaken`, and what opening the store raises."""
    host, port = listen_address(settings.listen)
    if not is_loopback(host) and not settings.insecure_anonymous:
        raise InvalidInput(
            f"refusing to listen on {host}: this registry has no access control, so anyone who can connect could "
            "push and delete; listen on 127.0.0.1, or state --insecure-anonymous"
        )
    store = open_store(settings.storage)
    if not conditional_writes_are_atomic(store):
        raise StowageError(
            f"storage {store.place} does not keep conditional writes apart (If-None-Match, If-Match): concurrent "
            "pushes could lose data; use a store that does"
        )
    listener = _listen(host, port)
    address, real_port = listener.getsockname()[:2]
    shown = f"[{address}]" if ":" in address else address
    print(f"registry listening on http://{shown}:{real_port} (storage: {store.place})", flush=True)
    os.environ[_SETTINGS] = json.dumps(asdict(settings))
    config = uvicorn.Config(
        "registry.serve:app_from_environment",
        factory=True,
        workers=settings.workers,
        loop="uvloop",
        http="httptools",
        lifespan="on",
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_keep_alive=75,  # longer than clients keep idle connections, so that none is reused as it closes
        timeout_graceful_shutdown=_DRAIN,
    )
    # The server gives the signal back once it has drained; that is then the end of a good run.
    signal.signal(signal.SIGTERM, _drained)
    server = uvicorn.Server(config)
    if settings.workers == 1:
        server.run(sockets=[listener])
    else:
        Multiprocess(config, sockets=[listener]).run()
    sys.exit(0 if server.started or settings.workers > 1 else 1)


def _drained(_signal: int, _frame: FrameType | None) -> Any:
    sys.exit(0)


def app_from_environment() -> Starlette:
    """The application of one server process, with the settings its parent left in the environment."""
    settings = Settings(**json.loads(os.environ[_SETTINGS]))
    return create_app(open_store(settings.storage), Redirects(enabled=settings.redirect))


def listen_address(text: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``. Raises `InvalidInput`."""
    host, colon, port = text.rpartition(":")
    valid = colon and port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) < 65536
    if not valid or not is_host(host):
        raise InvalidInput(f"not an address to listen on: {text[:80]!r} (want HOST:PORT, for example 127.0.0.1:5000)")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
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
