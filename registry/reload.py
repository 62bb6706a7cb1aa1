"""A configuration that is read again while the registry serves, on SIGHUP: as a whole, or not at all."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from artifact.errors import InvalidInput, StowageError
from artifact.terminal import note
from registry.config.files import check_files
from registry.config.sections import Config
from registry.gc.background import BackgroundCollector
from registry.http import tls
from registry.http.app import Registry
from registry.settings import Settings, effective


def read_again(settings: Settings, running: Config) -> Config:
    """The configuration as it is in the file now. Raises `InvalidInput` if it cannot be used, or not without a
    restart."""
    config, _ = effective(settings)
    check_files(config)
    then, now = _fixed(running), _fixed(config)
    changed = [name for name in then if then[name] != now[name]]
    if changed:
        raise InvalidInput(f"{settings.config}: {' and '.join(changed)} cannot change while the registry runs")
    return config


def _fixed(config: Config) -> dict[str, object]:
    """The settings that hold as long as the processes do."""
    server, log = config.server, config.transparency
    return {
        "server.storage": server.storage,
        "server.listen": server.listen,
        "server.workers": server.workers,
        "server.tls": server.tls is not None,
        "server.tls.client-ca": server.tls.client_ca if server.tls is not None else None,
        "transparency": (log.key, log.origin, log.principals) if log is not None else None,
    }


def refused(settings: Settings, error: StowageError) -> None:
    """Say that a configuration was not taken."""
    line = "".join(char if char.isprintable() else " " for char in str(error))
    note(f"error: {settings.config} is not taken, what was configured before still holds: {line}")


def accepted(settings: Settings, config: Config) -> None:
    """Say that a configuration was taken."""
    note(f"{settings.config} has been read again: {len(config.access)} access rules")


class Reloading:
    """Reads the configuration of one server process again; `alone` if no parent says what came of it."""

    def __init__(self, app: Registry, collector: BackgroundCollector, settings: Settings, alone: bool) -> None:
        self._app = app
        self._collector = collector
        self._settings = settings
        self._alone = alone
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def reload(self) -> None:
        """Serve by the file as it is now; if that cannot be used, say so and go on as before."""
        async with self._turn:
            try:
                config = await asyncio.to_thread(read_again, self._settings, self._app.config)
                serving = await asyncio.to_thread(self._app.prepare, config)
                tls.renew(config.server.tls)
                self._app.take_up(serving)
            except StowageError as error:
                refused(self._settings, error)
                return
            self._collector.configure(config.gc.interval, config.gc.grace)
            if self._alone:
                accepted(self._settings, config)

    def _hung_up(self) -> None:
        task = asyncio.get_running_loop().create_task(self.reload())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """While the signal is listened to."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._hung_up)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGHUP)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what comes while the last requests end is for nobody
