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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import httpx

from artifact.errors import StowageError
from artifact.terminal import note
from runner.diagnosis import diagnosis
from runner.engines.engine import BUNDLE, SOCKET, Command
from runner.sandbox.rules import Confinement

GRACE = 5.0
"""Seconds an engine has to stop by itself before it is killed."""

_GUARD = Path(__file__).with_name("guard.py")
_NOTED = "# sandbox: "
_LAST_LINES = 8
_MANY_LINES = 2000
_TAIL_BYTES = 256 * 1024
_POLL = 0.05


class EngineFailed(StowageError):
    """The engine did not become ready, or stopped. The message ends with the last lines it wrote; `summary` is without
    them."""

    code = "engine-failed"

    def __init__(self, summary: str, last_lines: str = "") -> None:
        super().__init__(summary + last_lines)
        self.summary = summary


class EngineProcess:
    """A running engine. `folder` is made, and is where it runs; `bundle` holds the model's files; `log` gets what the
    engine writes, after what was there. `more` are other folders it reads, by their places in `folder`."""

    def __init__(
        self, command: Command, folder: Path, bundle: Path, log: Path, more: Mapping[str, Path] | None = None
    ) -> None:
        self.command = command
        self.log = log
        folder.mkdir(mode=0o700, parents=True)
        given = {BUNDLE: bundle, **(more or {})}
        for name, path in given.items():
            (folder / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            (folder / name).symlink_to(path)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stream:
            self._log_start = stream.tell()
            stream.write(f"$ {command}\n".encode())
            stream.flush()
            self._log_start = stream.tell()
            # A descriptor of the folder: its path may be longer than a socket address can be.
            self._folder = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            self._report, report = os.pipe()
            rules = replace(
                command.rules,
                reads=(*command.rules.reads, *map(str, given.values())),
                writes=(*command.rules.writes, str(folder)),
            )
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(_GUARD), str(GRACE), rules.to_json(), str(report), *command.argv],
                    cwd=folder,
                    env=dict(command.env),
                    stdin=subprocess.PIPE,
                    stdout=stream,
                    stderr=stream,
                    start_new_session=True,
                    close_fds=True,
                    pass_fds=(report,),
                )
            finally:
                os.close(report)

    @cached_property
    def confinement(self) -> Confinement:
        """What the kernel holds the engine to. Waits until its guard has said so, which takes milliseconds."""
        with os.fdopen(self._report, "rb") as stream:
            text = stream.read(64 * 1024).decode()  # ends when the engine is started, or was not
        return Confinement.parse(text) if text else Confinement(missing=("the sandbox: it could not be set up",))

    @property
    def pid(self) -> int:
        """The process id of its guard, which is the engine's parent."""
        return self._process.pid

    @property
    def address(self) -> str:
        """The path of its socket, short enough for a socket address, while it runs."""
        return f"/proc/self/fd/{self._folder}/{SOCKET}"

    @property
    def sandbox(self) -> str:
        """What the kernel holds the engine to, in words; empty before that is known."""
        return str(self.confinement) if "confinement" in vars(self) else ""

    @property
    def running(self) -> bool:
        """Whether the engine runs."""
        return self._process.poll() is None

    def client(self, timeout: httpx.Timeout | None = None) -> httpx.AsyncClient:
        """A client whose every request goes to this engine's socket."""
        # No connection is used twice: llama-server closes idle ones whenever it likes, and a request that is sent on
        # one at that moment is lost. On a unix socket a new one costs next to nothing.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        transport = httpx.AsyncHTTPTransport(uds=self.address, limits=limits)
        return httpx.AsyncClient(transport=transport, base_url="http://engine", timeout=timeout, trust_env=False)

    async def listens(self) -> bool:
        """Whether somebody listens on its socket."""
        try:
            _, writer = await asyncio.open_unix_connection(self.address)
        except OSError:
            return False
        writer.close()
        return True

    async def wait_ready(self, seconds: float) -> None:
        """Return when the engine says it is healthy. Raises `EngineFailed` if it stops first or takes longer than
        `seconds`."""
        deadline = time.monotonic() + seconds
        held = await asyncio.to_thread(lambda: self.confinement)
        if not held.is_complete:
            note(f"warning: {self.command.engine}: not in force: {', '.join(held.missing)}")
        with self.log.open("ab") as stream:
            stream.write(f"{_NOTED}{held}\n".encode())
        async with self.client(httpx.Timeout(5)) as client:
            while self.running:
                try:
                    if (await client.get("/health")).status_code == 200:
                        return
                except httpx.HTTPError:
                    pass  # not listening yet
                if time.monotonic() > deadline:
                    raise self._failed(f"was not ready after {seconds:.0f} seconds")
                await asyncio.sleep(_POLL)
        raise self.failure("while loading the model")

    async def wait_stopped(self) -> None:
        """Return when the engine has stopped, for whatever reason."""
        while self.running:
            await asyncio.sleep(0.2)

    def failure(self, when: str) -> EngineFailed:
        """The error that tells how the engine stopped, and why as far as its words say."""
        code = self._process.returncode
        killed_by = 256 - code if code is not None and code > 128 + 64 else None
        how = f"was killed by signal {killed_by}" if killed_by else f"stopped with {code}"
        return self._failed(f"{how} {when}", killed_by)

    def _failed(self, what: str, killed_by: int | None = None) -> EngineFailed:
        why = diagnosis(self.last_lines(_MANY_LINES), killed_by)
        lines = self.last_lines()
        told = f"; its last lines: {' | '.join(lines)}" if lines else ", and wrote nothing"
        return EngineFailed(f"{self.command.engine} {what}{why}", f"{told} (all of it: {self.log})")

    def last_lines(self, count: int = _LAST_LINES) -> list[str]:
        """The last lines this engine wrote; none if its log cannot be read."""
        try:
            with self.log.open("rb") as stream:
                end = stream.seek(0, os.SEEK_END)
                begin = self._log_start if self._log_start <= end else 0  # it has been put aside since
                stream.seek(max(begin, end - _TAIL_BYTES))
                text = stream.read(_TAIL_BYTES).decode("utf-8", "replace")
        except OSError:
            return []
        return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(_NOTED)][-count:]

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
            _ = self.confinement  # closes what it is read from

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
