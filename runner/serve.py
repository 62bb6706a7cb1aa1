"""``runner serve``: several models behind one endpoint, in the foreground, until told to stop or nothing is left."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import uvloop

from artifact.errors import InvalidInput, StowageError
from artifact.terminal import note
from runner import orders
from runner.configured import Configured, Keeping
from runner.fleet import MAX_RESTARTS
from runner.keys import KEYS_VARIABLE, KeyFile
from runner.plan import Plan
from runner.serving import Serving
from runner.state import Served, registered
from runner.store import Store
from runner.wishes import Wishes
from supplychain.policy import Policy

DEFAULT_LISTEN = "127.0.0.1:12434"
"""Where the endpoint listens unless ``--listen`` says otherwise: loopback, the port Docker Model Runner uses."""

DRAIN = 20.0
"""Seconds that requests under way have to finish when the endpoint stops."""

INSECURE_VARIABLE = "STOWAGE_INSECURE"
"""Set to 1, the environment variable says what ``--insecure`` says."""


class PortTaken(StowageError):
    """Something else listens where the endpoint should."""

    code = "port-taken"


@dataclass(frozen=True)
class Settings:
    """How an endpoint serves. `keys` is the key file; `insecure` lets everybody who reaches the port use models;
    `memory` bounds what all models may need, in bytes, 0 for what the host has; `drain` in seconds; `policy` decides
    on models that are added later, or nobody can say which does because models came under several (`divided`).
    `wishes` and `keeping` hold where `configured`, by digest, says nothing else."""

    keys: Path | None = None
    insecure: bool = False
    memory: int = 0
    max_restarts: int = MAX_RESTARTS
    drain: float = DRAIN
    policy: Policy | None = None
    policy_file: Path | None = None
    divided: bool = False
    plain_http: bool = False
    wishes: Wishes = field(default_factory=Wishes)
    keeping: Keeping = field(default_factory=Keeping)
    configured: Mapping[str, Configured] = field(default_factory=dict)

    @classmethod
    def of_environment(cls) -> Settings:
        """What the environment says, for an endpoint that no command line describes."""
        keys = os.environ.get(KEYS_VARIABLE)
        return cls(keys=Path(keys) if keys else None, insecure=os.environ.get(INSECURE_VARIABLE) == "1")

    def with_policy(self, policy: Policy | None) -> Settings:
        """The same under `policy`."""
        return replace(self, policy=policy)

    def without(self, digests: Collection[str]) -> Settings:
        """The same, with nothing said about the models with these `digests` but what holds for all."""
        return replace(self, configured={key: item for key, item in self.configured.items() if key not in digests})

    def key_file(self, address: tuple[str, int]) -> KeyFile | None:
        """The keys that count at `address`. Raises `InvalidInput` where everybody could come in and nobody said so."""
        loopback = ipaddress.ip_address(address[0]).is_loopback
        if self.keys is not None:
            file = KeyFile(self.keys)
            if not self.keys.exists() or not file.keys():
                raise InvalidInput(f"there are no keys in {self.keys}: make one with runner key add NAME --keys FILE")
            return file
        if not loopback and not self.insecure:
            raise InvalidInput(
                f"{address[0]} can be reached from other machines: state a key file (--keys FILE, runner key add makes "
                "one), or --insecure to let everybody use the models"
            )
        if not loopback:
            note("warning: everybody who reaches this port may use the models (--insecure)")
        return None


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
    return str(ipaddress.ip_address(host)), int(port)


def written(address: tuple[str, int]) -> str:
    """An address as ``HOST:PORT``, in the one way that `listen_address` reads back as the same."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


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
        where = written(address)
        if error.errno == 98:
            message = f"port taken: something already listens on {where}, stop it or choose another with --listen"
            raise PortTaken(message) from None
        raise InvalidInput(f"cannot listen on {where}: {error.strerror}") from None
    return listener


def check_free(address: tuple[str, int]) -> None:
    """Find out that a port is taken before anything is pulled or loaded. Raises `PortTaken`, `InvalidInput`."""
    if address[1]:
        bind(address).close()


def serve(
    plans: Sequence[Plan],
    store: Store,
    address: tuple[str, int],
    settings: Settings,
    project: str = "",
) -> None:
    """Serve until stopped. With `project` more models may be ordered while it serves, and what is configured is the
    project's to keep. Raises `EngineFailed` if an engine dies at its start, or the last one is given up later,
    `DoesNotFit`, `InvalidInput`."""
    keys = settings.key_file(address)
    with registered(store.root) as registration, bind(address) as listener:
        if project:
            orders.name_project(registration.folder, project)
        place = written(listener.getsockname()[:2])
        serving = Serving(plans, store, registration, listener, place, settings, keys, keep=not project)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serving.run())


def served(plan: Plan, store: Store) -> Served:
    """What ``runner ps`` shall say about a model that runs as planned, for itself."""
    digest, command = str(plan.found.model.digest), plan.command
    return Served(plan.name, digest, command.engine, command.version, str(command), str(log_path(store, plan)))


def log_path(store: Store, plan: Plan) -> Path:
    """Where the engine of a model writes."""
    return store.root / "logs" / f"{plan.found.model.digest.hex}.log"
