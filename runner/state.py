"""What serves now: one folder per running runner, believed only while that runner holds its lock.

The kernel lets go of the lock when the runner ends, however it ends, so a folder whose lock is free is a leftover and
is removed by whoever finds it.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from artifact.errors import StowageError
from artifact.layout.files import write_atomically

_LOCK, _STATE, _STOP = "lock", "state.json", "stop"
NEWS = signal.SIGUSR1
"""Tells a runner that something was written into its folder."""

_STOPPED = 60.0  # seconds in which a runner stops, at least: its requests, and then its engines


@dataclass(frozen=True)
class Served:
    """One model that is served: its name and digest, the engine with its version, and the exact command. `state` is
    what it is doing, `detail` says more; `memory` is what it is held to need, in bytes; `idle_timeout` in seconds;
    `sandbox` is what the kernel holds the engine to; `adapters` are the digests of those that are applied."""

    name: str
    digest: str
    engine: str
    version: str
    command: str
    log: str
    state: str = "ready"
    detail: str = "ready"
    restarts: int = 0
    pinned: bool = False
    idle_timeout: float = 0.0
    memory: int = 0
    failure: str = ""
    sandbox: str = ""
    adapters: Sequence[str] = ()

    @property
    def digests(self) -> frozenset[str]:
        """The digests of all that it needs in the store: the model, and its adapters."""
        return frozenset((self.digest, *self.adapters))


@dataclass(frozen=True)
class Run:
    """A runner that serves. `address` is HOST:PORT, empty for one that serves only itself; `started` in seconds since
    the epoch; `keyed` says that it asks for an API key; `drain` are the seconds that its requests have to finish when
    it stops; `news` is the signal it takes for `NEWS`."""

    folder: Path
    pid: int
    born: int
    address: str
    started: float
    models: Sequence[Served]
    keyed: bool = False
    drain: float = 0.0
    news: int = NEWS

    def notify(self) -> None:
        """Tell the runner to look at what was written into its folder, unless it has ended."""
        self.signal(self.news)

    def signal(self, number: int) -> None:
        """Send the runner a signal, unless it has ended."""
        if _born(self.pid) == self.born:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def to_json(self) -> dict[str, Any]:
        """The run as ``runner ps --json`` shows it."""
        return {
            "pid": self.pid,
            "endpoint": f"http://{self.address}/v1" if self.address else "",
            "started": int(self.started),
            "models": [asdict(model) for model in self.models],
        }


class Registration:
    """This process's own place among the runs. `folder` is its to use until it is left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started = time.time()

    def write(self, address: str, models: Sequence[Served], *, keyed: bool = False, drain: float = 0.0) -> None:
        """Say what is served now, and where; from then on `NEWS` has to be listened to."""
        state = {
            "pid": os.getpid(),
            "born": _born(os.getpid()),
            "address": address,
            "started": self._started,
            "keyed": keyed,
            "drain": drain,
            "news": int(NEWS),
            "models": [asdict(model) for model in models],
        }
        write_atomically(self.folder / _STATE, json.dumps(state).encode(), 0o600)

    def stop_requests(self) -> set[str]:
        """Digests of the models somebody wants stopped; asked for once each."""
        wanted: set[str] = set()
        with suppress(FileNotFoundError):
            for path in (self.folder / _STOP).iterdir():
                wanted.add(path.name.replace("-", ":", 1))
                path.unlink(missing_ok=True)
        return wanted


@contextmanager
def registered(root: Path) -> Iterator[Registration]:
    """A place among the runs of the store at `root`, given up when the block is left."""
    runs = root / "run"
    runs.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = f"{os.getpid()}-{secrets.token_hex(4)}"
    hidden, folder = runs / f".{name}", runs / name
    hidden.mkdir(mode=0o700)
    lock = os.open(hidden / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        hidden.rename(folder)  # seen by others only with its lock held
        yield Registration(folder)
    finally:
        for leftover in (hidden, folder):
            shutil.rmtree(leftover, ignore_errors=True)
        os.close(lock)


def running(root: Path) -> list[Run]:
    """Every runner that serves from the store at `root` now. Leftovers of those that died are removed."""
    runs: list[Run] = []
    with suppress(FileNotFoundError):
        for folder in sorted((root / "run").iterdir()):
            if folder.name.startswith("."):
                continue
            if not is_held(folder):
                shutil.rmtree(folder, ignore_errors=True)
            elif run := _read(folder):
                runs.append(run)
    return runs


def is_held(folder: Path) -> bool:
    """Whether the runner that this folder belongs to is alive."""
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def stop(run: Run, digests: set[str] | None = None) -> None:
    """Stop a runner, or with `digests` only those of its models, and wait until that is done: a runner is stopped when
    its process has ended. Raises `StowageError` if it takes half a minute longer than its requests may."""
    everything = digests is None or digests >= {model.digest for model in run.models}
    if not everything:
        folder = run.folder / _STOP
        folder.mkdir(mode=0o700, exist_ok=True)
        for digest in digests or ():
            (folder / digest.replace(":", "-", 1)).touch()
    if everything:
        run.signal(signal.SIGTERM)
    else:
        run.notify()
    seconds = max(_STOPPED, run.drain + _STOPPED / 2)
    deadline = time.monotonic() + seconds
    while is_held(run.folder) or (everything and _born(run.pid) == run.born):
        now = _read(run.folder)
        if not everything and now and not {model.digest for model in now.models} & (digests or set()):
            return
        if time.monotonic() > deadline:
            raise StowageError(f"the runner with process id {run.pid} has not stopped after {seconds:.0f} seconds")
        time.sleep(0.05)


def _read(folder: Path) -> Run | None:
    try:
        state = json.loads((folder / _STATE).read_bytes())
        models = tuple(Served(**{**model, "adapters": tuple(model.get("adapters", ()))}) for model in state["models"])
        pid, born, address, started = (state[key] for key in ("pid", "born", "address", "started"))
        # One that began before these were written down takes SIGHUP, and would be killed by another signal.
        drain, news = state.get("drain", 0.0), state.get("news", int(signal.SIGHUP))
        return Run(folder, pid, born, address, started, models, state["keyed"], drain, news)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # has its lock, but has not said anything yet


def _born(pid: int) -> int:
    """When a process started, in clock ticks since boot: with the id, it names a process for good; 0 if it has ended,
    whether or not its parent has heard of that."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    fields = text.rpartition(")")[2].split()
    return 0 if fields[0] in "ZX" else int(fields[19])
