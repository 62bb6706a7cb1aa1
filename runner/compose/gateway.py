"""The background gateway of one project: found, started, changed by what differs, stopped.

A project has a folder in the store, ``compose/<id>/``, with what it wants, the gateway's output, a lock that keeps two
commands from changing it at the same time, and a lock that the gateway holds as long as it lives.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO

import httpx

from artifact.errors import StowageError
from artifact.layout.files import write_atomically
from artifact.terminal import note
from runner import orders
from runner.compose.background import WANTED
from runner.orders import Order
from runner.plan import Plan
from runner.serve import check_free, listen_address, written
from runner.state import Run, is_held, running, stop
from runner.store import Store, remove_tree

_OUTPUT, _ALIVE = "gateway.log", "alive"
_MAX_OUTPUT = 64 * 1024
_POLL = 0.1
_ATTENTION = 0.5


class GatewayFailed(StowageError):
    """The background gateway did not come up, or did not take a model. It keeps the reason's exit status."""

    code = "gateway-failed"

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.exit_code = status


@dataclass(frozen=True)
class Wanted:
    """One model as the project wants it: the order, and the plan it leads to."""

    order: Order
    plan: Plan

    @property
    def digest(self) -> str:
        """The digest of the model's manifest."""
        return str(self.plan.found.model.digest)


@dataclass(frozen=True)
class Changes:
    """What has been done, by digest."""

    address: str
    started: frozenset[str] = frozenset()
    stopped: frozenset[str] = frozenset()
    unchanged: frozenset[str] = frozenset()


class ProjectGateway:
    """The gateway of the project `id` over `store`."""

    def __init__(self, store: Store, id: str) -> None:
        self._store = store
        self._id = id
        self.folder = store.root / "compose" / id

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other commands from changing this project meanwhile."""
        while (lock := self._lock()) is None:
            pass
        try:
            yield
        finally:
            os.close(lock)  # gone with this process, however it ends

    def _lock(self) -> int | None:
        """The project's lock, None if the project was removed while somebody else had it."""
        path = self.folder / "lock"
        with suppress(FileNotFoundError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), path.stat()):
                    return lock
            os.close(lock)
        return None

    def run(self) -> Run | None:
        """The gateway, if it runs."""
        return next((run for run in running(self._store.root) if orders.project_of(run.folder) == self._id), None)

    def _settled(self) -> Run | None:
        """The gateway, if it runs; one that a command started and did not live to see is waited for."""
        told = False
        while (run := self.run()) is None and self._is_alive():
            if not told:
                note("the gateway is being started already: waiting for it")
            told = True
            time.sleep(_POLL)
        return run

    def _is_alive(self) -> bool:
        with suppress(FileNotFoundError):
            lock = os.open(self.folder / _ALIVE, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            finally:
                os.close(lock)
        return False

    def orders(self) -> dict[str, Order]:
        """What was wanted last, by the digest in each reference."""
        with suppress(OSError, ValueError, KeyError, TypeError, StowageError):
            stated = json.loads((self.folder / WANTED).read_bytes())["orders"]
            return {order.reference.rpartition("@")[2]: order for order in map(Order.from_json, stated)}
        return {}

    def apply(self, wanted: Sequence[Wanted], listen: str | None, default_listen: str) -> Changes:
        """Make the gateway serve exactly `wanted`. What runs already as wanted is not touched. Raises `PortTaken`,
        `GatewayFailed`."""
        run, before = self._settled(), self.orders()
        served = {model.digest: model for model in run.models} if run else {}
        same = {
            item.digest
            for item in wanted
            if item.digest in served
            and served[item.digest].state != "failed"
            and served[item.digest].command == str(item.plan.command)
            and (item.digest not in before or _alike(before[item.digest], item.order))
        }
        address = written(listen_address(listen)) if listen else (run.address if run else default_listen)
        if run and (not same or address != run.address):
            stop(run)
            run, same = None, set()
        for item in wanted:
            if item.digest not in same:
                note(f"{item.plan.name}: loading")
        gone = set(served) - same
        if run is None:
            self._start(wanted, address)
        else:
            if gone:
                stop(run, gone)
            self._write([item.order for item in wanted], run.address)
            self._add(run, [item for item in wanted if item.digest not in same])
        now = self.run()
        if now is None:
            raise GatewayFailed(f"the gateway has just stopped: {self._why()}")
        every = {item.digest for item in wanted}
        return Changes(now.address, frozenset(every - same), frozenset(gone - every), frozenset(same))

    def keep(self, kept: Mapping[str, Order], listen: str) -> None:
        """Want no more than `kept`, by digest, of what was wanted, and stop the rest. What is kept is not decided on
        again: one model that may run no longer must not hold up that others are stopped."""
        if not kept:
            self.stop()
            return
        run, gone = self._settled(), self.orders().keys() - kept.keys()
        self._write(kept.values(), run.address if run else listen)
        if run and (served := gone & {model.digest for model in run.models}):
            stop(run, served)

    def stop(self) -> bool:
        """Stop the gateway with everything it serves, and forget the project. False if it does not run. Raises
        `StowageError` if it takes too long."""
        run = self._settled()
        if run is not None:
            (self.folder / WANTED).unlink(missing_ok=True)  # who attends it learns that it did not end by itself
            stop(run)
        remove_tree(self.folder)
        return run is not None

    def attend(self, output: BinaryIO) -> None:
        """Pass on to `output` what the gateway says, until it ends. Raises `GatewayFailed` unless it was stopped."""
        with suppress(FileNotFoundError), (self.folder / _OUTPUT).open("rb") as stream:
            while (run := self.run()) is not None or self._is_alive():
                shutil.copyfileobj(stream, output)
                output.flush()
                time.sleep(_POLL if run is None else _ATTENTION)
            shutil.copyfileobj(stream, output)
            output.flush()
        if (self.folder / WANTED).exists():  # `stop` takes it away
            raise GatewayFailed(f"the gateway has stopped: {self._why()}")

    def _write(self, wanted: Iterable[Order], listen: str) -> None:
        value = {"project": self._id, "listen": listen, "orders": [order.to_json() for order in wanted]}
        write_atomically(self.folder / WANTED, json.dumps(value, indent=2).encode(), 0o600)

    def _start(self, wanted: Sequence[Wanted], listen: str) -> None:
        check_free(listen_address(listen))
        self._write([item.order for item in wanted], listen)
        with (self.folder / _OUTPUT).open("wb") as output, (self.folder / _ALIVE).open("wb") as alive:
            fcntl.flock(alive, fcntl.LOCK_EX)  # of the open file, which the gateway inherits
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "runner.compose.background", str(self._store.root), str(self.folder)],
                cwd="/", stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                pass_fds=[alive.fileno()],
            )  # fmt: skip
        try:
            while (run := self.run()) is None or not self._is_ready(run, {item.digest for item in wanted}):
                if process.poll() is not None:
                    raise GatewayFailed(self._why(), max(1, process.returncode))
                time.sleep(_POLL)
        except BaseException:
            if process.poll() is None:
                process.terminate()
                process.wait()
            raise

    def _add(self, run: Run, new: Sequence[Wanted]) -> None:
        for item in new:
            orders.give(run, item.order)
        digests = {item.digest for item in new}
        while (now := self.run()) is None or not self._is_ready(now, digests):
            for item in new:
                if refused := orders.refusal(run.folder, item.order):
                    raise GatewayFailed(f"{item.plan.name}: {refused[0]}", refused[1])
            if not is_held(run.folder):
                raise GatewayFailed(f"the gateway has stopped: {self._why()}")
            time.sleep(_POLL)

    @staticmethod
    def _is_ready(run: Run, digests: set[str]) -> bool:
        if not digests <= {model.digest for model in run.models if model.state == "ready"}:
            return False
        try:
            return httpx.get(f"http://{run.address}/healthz", timeout=5, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def _why(self) -> str:
        """The error the gateway ended with, as it wrote it."""
        with suppress(OSError), (self.folder / _OUTPUT).open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - _MAX_OUTPUT))
            lines = stream.read(_MAX_OUTPUT).decode("utf-8", "replace").splitlines()
            for line in reversed(lines):
                if line.startswith("error: "):
                    return line.removeprefix("error: ")
        return f"it says why in {self.folder / _OUTPUT}"


def tell(changes: Changes, wanted: Sequence[Wanted]) -> None:
    """Say what was done, one line a model."""
    for item in wanted:
        note(f"{item.plan.name}: {'unchanged' if item.digest in changes.unchanged else 'started'}")
    for digest in sorted(changes.stopped):
        note(f"{digest}: stopped")


def _alike(before: Order, now: Order) -> bool:
    """Whether two orders for one command agree in what its line does not show."""
    return (set(before.also), before.sandbox, before.policy) == (set(now.also), now.sandbox, now.policy)
