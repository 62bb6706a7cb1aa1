"""What ``registry serve`` was told: a file, and on the command line what is to be otherwise."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

from artifact.errors import InvalidInput
from registry.config.read import load
from registry.config.sections import Config, Gc, Server
from registry.listen import is_loopback, listen_address

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """The command line; None stands for what was not said there. `config` is the path of the file."""

    config: str | None = None
    storage: str | None = None
    listen: str | None = None
    workers: int | None = None
    redirect: bool | None = None
    insecure_anonymous: bool = False
    gc_interval: float | None = None
    gc_grace: float | None = None

    def to_text(self) -> str:
        """The settings as one line, for the environment of server processes."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Settings:
        """Read what `to_text` wrote."""
        return cls(**json.loads(text))


def effective(settings: Settings) -> tuple[Config, list[str]]:
    """The configuration that is to be used, and a sentence for each setting of the file that the command line
    overrides. Raises `InvalidInput`."""
    config = load(settings.config) if settings.config is not None else Config()
    server, gc = config.server, config.gc
    stated = {
        "storage": (settings.storage, server.storage, Server.storage),
        "listen": (settings.listen, server.listen, Server.listen),
        "workers": (settings.workers, server.workers, Server.workers),
        "redirect": (settings.redirect, server.redirect, Server.redirect),
        "gc-interval": (settings.gc_interval, gc.interval, Gc.interval),
        "gc-grace": (settings.gc_grace, gc.grace, Gc.grace),
    }
    notes = [
        f"--{name} on the command line ({said}) wins over {settings.config} ({written})"
        for name, (said, written, default) in stated.items()
        if said is not None and said != written and written != default
    ]
    config = replace(
        config,
        server=replace(
            server,
            storage=_first(settings.storage, server.storage),
            listen=_first(settings.listen, server.listen),
            workers=_first(settings.workers, server.workers),
            redirect=_first(settings.redirect, server.redirect),
        ),
        gc=replace(gc, interval=_first(settings.gc_interval, gc.interval), grace=_first(settings.gc_grace, gc.grace)),
    )
    _check_reach(config, settings.insecure_anonymous)
    return config, notes


def _check_reach(config: Config, insecure_anonymous: bool) -> None:
    """That a registry without access control is reached from this machine only. Raises `InvalidInput`."""
    if insecure_anonymous and config.restricted:
        raise InvalidInput("--insecure-anonymous contradicts the [[access]] rules of the configuration: leave one out")
    host, _ = listen_address(config.server.listen)
    if is_loopback(host) or config.restricted or insecure_anonymous:
        return
    raise InvalidInput(
        f"refusing to listen on {host}: this registry has no access control, so anyone who can connect could "
        "push and delete; write [[access]] rules and name the file with --config, listen on 127.0.0.1, or state "
        "--insecure-anonymous"
    )


def _first(said: T | None, written: T) -> T:
    return written if said is None else said
