"""One engine process: started from nothing but its command, watched, asked whether it is ready, stopped.

It gets a cleared environment, no descriptor but its log, a process group of its own, and a folder to run in that holds
its socket and a link to the model's files. A guard beside it takes it down when the runner is gone.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from artifact.errors import StowageError
from runner.engines.engine import BUNDLE, SOCKET, Command

GRACE = 5.0
"""Seconds an engine has to stop by itself before it is killed."""

_GUARD = Path(__file__).with_name("guard.py")
_LAST_LINES = 8
_TAIL_BYTES = 16 * 1024
_POLL = 0.05


class EngineFailed(StowageError):
    """The engine did not become ready, or stopped. The message ends with the last lines it wrote."""

    code = "engine-failed"


class EngineProcess:
    """A running engine. `folder` is made, and is where it runs; `bundle` holds the model's files; `log` gets what the
    engine writes, after what was there."""

    def __init__(self, command: Command, folder: Path, bundle: Path, log: Path) -> None:
        self.command = command
        self.log = log
        folder.mkdir(mode=0o700, parents=True)
        (folder / BUNDLE).symlink_to(bundle)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stream:
            self._log_start = stream.tell()
            stream.write(f"$ {command}\n".encode())
            stream.flush()
            self._log_start = stream.tell()
            # A descriptor of the folder: its path may be longer than a socket address can be.
            self._folder = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_GUARD), str(GRACE), *command.argv],
                cwd=folder,
                env=dict(command.env),
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
                close_fds=True,
            )

    @property
    def running(self) -> bool:
        """Whether the engine runs."""
        return self._process.poll() is None

    def client(self, timeout: httpx.Timeout | None = None) -> httpx.AsyncClient:
        """A client whose every request goes to this engine's socket."""
        # No connection is used twice: llama-server closes idle ones whenever it likes, and a request that is sent on
        # one at that moment is lost. On a unix socket a new one costs next to nothing.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        transport = httpx.AsyncHTTPTransport(uds=f"/proc/self/fd/{self._folder}/{SOCKET}", limits=limits)
        return httpx.AsyncClient(transport=transport, base_url="http://engine", timeout=timeout, trust_env=False)

    async def wait_ready(self, seconds: float) -> None:
        """Return when the engine says it is healthy. Raises `EngineFailed` if it stops first or takes longer than
        `seconds`."""
        deadline = time.monotonic() + seconds
        async with self.client(httpx.Timeout(5)) as client:
            while self.running:
                try:
                    if (await client.get("/health")).status_code == 200:
                        return
                except httpx.HTTPError:
                    pass  # not listening yet
                if time.monotonic() > deadline:
                    raise EngineFailed(self._story(f"was not ready after {seconds:.0f} seconds"))
                await asyncio.sleep(_POLL)
        raise self.failure("while loading the model")

    async def wait_stopped(self) -> None:
        """Return when the engine has stopped, for whatever reason."""
        while self.running:
            await asyncio.sleep(0.2)

    def failure(self, when: str) -> EngineFailed:
        """The error that tells how the engine stopped."""
        code = self._process.returncode
        how = f"was killed by signal {256 - code}" if code is not None and code > 128 + 64 else f"stopped with {code}"
        return EngineFailed(self._story(f"{how} {when}"))

    def _story(self, what: str) -> str:
        lines = self.last_lines()
        told = f"; its last lines: {' | '.join(lines)}" if lines else ", and wrote nothing"
        return f"{self.command.engine} {what}{told} (all of it: {self.log})"

    def last_lines(self, count: int = _LAST_LINES) -> list[str]:
        """The last lines this engine wrote."""
        with self.log.open("rb") as stream:
            end = stream.seek(0, os.SEEK_END)
            stream.seek(max(self._log_start, end - _TAIL_BYTES))
            text = stream.read(_TAIL_BYTES).decode("utf-8", "replace")
        return [line.strip() for line in text.splitlines() if line.strip()][-count:]

    def close_lifeline(self) -> None:
        """Ask the engine to stop; it is killed if it has not after `GRACE` seconds. Returns at once."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()

    def wait(self) -> None:
        """Wait until a stopping engine is gone."""
        try:
            self._process.wait(GRACE + 5)
        except subprocess.TimeoutExpired:
            self._process.kill()  # the kernel then kills the engine
            self._process.wait()
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1

    def stop(self) -> None:
        """Stop the engine and wait until it is gone."""
        self.close_lifeline()
        self.wait()


@contextmanager
def engine_process(command: Command, folder: Path, bundle: Path, log: Path) -> Iterator[EngineProcess]:
    """An engine that is stopped when the block is left."""
    process = EngineProcess(command, folder, bundle, log)
    try:
        yield process
    finally:
        process.stop()
