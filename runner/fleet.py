"""All models a runner serves: loaded when they are asked for and fit, restarted when they crash, unloaded when idle.

Before a model is loaded, what it will need is compared with what the host has and has not promised to another. If that
is short, idle models that are not pinned are unloaded, the one that was used longest ago first.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from artifact.digest import Digest
from artifact.errors import Refused, StowageError
from artifact.terminal import note
from runner import logs
from runner.configured import Keeping
from runner.deployment import Deployment, State, pause_after
from runner.gateway.upstream import Upstream
from runner.memory import DoesNotFit, Estimate, anonymous, estimate, gib, gpus_free, ram_free
from runner.plan import Plan, bundles
from runner.store import Store
from runner.supervise import EngineFailed, EngineProcess
from runner.wishes import Wishes

MAX_RESTARTS = 5
"""How many times in a row a crashed engine is started again before the runner gives up."""

_STEADY = 300.0
"""Seconds after which an engine that was ready is no longer held to have crashed at once."""

_TICK = 1.0
_NOTICED, _GONE = 0.5, 30.0
"""Seconds in which an engine that has died is seen to listen no more, and after which it is seen to be gone."""

_POLL = 0.02


class Unavailable(StowageError):
    """The model cannot answer now. `retry_after` in seconds, None if waiting does not help."""

    code = "unavailable"

    def __init__(self, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Fleet:
    """The models. `folder` is where engines run; `memory` bounds what all of them may need, in bytes, 0 for what the
    host has; `changed` is called when there is something new to say; `gave_up` when an engine is not started again;
    `allow` before each load, in a thread: it raises `Refused` for a model that shall not run."""

    def __init__(
        self,
        store: Store,
        folder: Path,
        *,
        memory: int = 0,
        max_restarts: int = MAX_RESTARTS,
        changed: Callable[[], None] = lambda: None,
        gave_up: Callable[[Deployment], None] = lambda _: None,
        allow: Callable[[Deployment], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._folder = folder
        self._memory = memory
        self._max_restarts = max_restarts
        self._changed = changed
        self._gave_up = gave_up
        self._allow = allow
        self._deployments: dict[Digest, Deployment] = {}
        self._admission = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._started = 0
        self.evictions = 0
        self.loads = 0

    @property
    def deployments(self) -> list[Deployment]:
        """The models, in the order they were added."""
        return list(self._deployments.values())

    def add(self, plan: Plan, wishes: Wishes, keeping: Keeping, names: Iterable[str] = ()) -> Deployment:
        """Serve a model from now on; it is loaded when it is asked for. `names` are more names it answers to."""
        digest = plan.found.model.digest
        if digest in self._deployments:
            raise StowageError(f"{plan.name} is served already")
        log = self._store.root / "logs" / f"{digest.hex}.log"
        deployment = Deployment(plan, plan.names | frozenset(names), wishes, keeping, log)
        self._deployments[digest] = deployment
        self._changed()
        return deployment

    def get(self, digest: Digest | str) -> Deployment | None:
        """The model with this manifest digest, if it is served."""
        return self._deployments.get(digest if isinstance(digest, Digest) else Digest.parse(digest))

    def find(self, name: str | None) -> Deployment | None:
        """The model a client means: by any of its names if only one model has it; without a name, the only one."""
        candidates = [item for item in self._deployments.values() if name is None or name in item.names]
        exact = [item for item in candidates if item.name == name]
        return (exact or candidates)[0] if len(exact or candidates) == 1 else None

    async def remove(self, deployment: Deployment, drain: float = 0.0) -> None:
        """Serve a model no more; requests under way have `drain` seconds."""
        self._deployments.pop(deployment.digest, None)
        deployment.closed = True
        self._changed()
        await self.unload(deployment, drain)

    @asynccontextmanager
    async def using(self, deployment: Deployment) -> AsyncIterator[Upstream]:
        """The engine of a model, loaded now if it is not, and not unloaded before the block is left. Raises
        `Unavailable`, `DoesNotFit`, `EngineFailed`."""
        deployment.active += 1
        try:
            if deployment.upstream is None:
                await self.load(deployment)
            if deployment.upstream is None:
                raise Unavailable(f"{deployment.name} has just been stopped", 1)
            yield deployment.upstream
        finally:
            deployment.active -= 1
            deployment.last_used = time.monotonic()

    async def load(self, deployment: Deployment, *, evict: bool = True) -> None:
        """Return when a model is ready. Raises `Unavailable`, `DoesNotFit`, `EngineFailed`."""
        if deployment.state is State.READY:
            return
        if deployment.closed:
            raise Unavailable(f"{deployment.name} is no longer served")
        if deployment.loading is None:
            wait = deployment.seconds_to_retry()
            if wait > 0:
                after = None if math.isinf(wait) else math.ceil(wait)
                raise Unavailable(str(deployment.failure or f"{deployment.name} has failed"), after)
            deployment.loading = self.spawn(self._load(deployment, evict))
        await asyncio.shield(deployment.loading)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` on its own; what it raises is for whoever waits for it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, StowageError):
            note(f"error: {type(error).__name__}: {error}")

    async def _load(self, deployment: Deployment, evict: bool) -> None:
        try:
            async with self._admission:
                await asyncio.to_thread(self._allow, deployment)
                await self._admit(deployment, evict)
                process = await self._start(deployment)
            try:
                await self._wait_ready(deployment.plan, process)
            except BaseException as error:
                if deployment.process is not process:
                    raise Unavailable(f"{deployment.name} was stopped while it was loading", 1) from None
                await self._discard(deployment)
                if isinstance(error, EngineFailed):
                    self._failed(deployment, error)
                raise
            self._ready(deployment, process)
        except BaseException:
            if deployment.state is State.LOADING:
                deployment.state = State.UNLOADED
            raise
        finally:
            deployment.loading = None
            self._changed()

    async def _admit(self, deployment: Deployment, evict: bool) -> None:
        bundle, _ = await asyncio.to_thread(self._files, deployment.plan)
        need = await asyncio.to_thread(estimate, deployment.plan, bundle)
        deployment.estimate = None
        while need.total > (room := await asyncio.to_thread(self._room, need)):
            idle = [
                item
                for item in self.deployments
                if item.evictable and item.estimate is not None and item.estimate.shares(need)
            ]
            if not evict or not idle:
                raise self._too_large(deployment, need, room)
            oldest = min(idle, key=lambda item: item.last_used)
            note(f"{oldest.name}: unloaded to make room for {deployment.name}")
            self.evictions += 1
            await self.unload(oldest)
        deployment.estimate = need

    def _room(self, need: Estimate) -> int:
        """Bytes that no model has been promised, of the memory that `need` is about."""
        loaded = [item for item in self.deployments if item.process is not None and item.estimate]
        same = [item for item in loaded if item.estimate and item.estimate.shares(need)]
        promised = {item.digest: item.estimate.total for item in same if item.estimate}
        if need.on_gpu:
            pending = sum(promised[item.digest] for item in same if item.state is not State.READY)
            return sum(free for number, free in gpus_free().items() if number in need.gpus) - pending
        pending = sum(max(0, promised[item.digest] - anonymous(item.held)) for item in same)
        room = ram_free() - pending
        return min(room, self._memory - sum(promised.values())) if self._memory else room

    def _too_large(self, deployment: Deployment, need: Estimate, room: int) -> DoesNotFit:
        others = [item for item in self.deployments if item.process is not None]
        held = ", ".join(f"{item.name} {gib(item.estimate.total)}" for item in others if item.estimate) or "none"
        where = f"on GPU {', '.join(map(str, sorted(need.gpus)))} " if need.on_gpu else ""
        limit = f" of the {gib(self._memory)} that --memory allows" if self._memory and not need.on_gpu else ""
        return DoesNotFit(
            f"{deployment.name} does not fit: it needs {need}, and {gib(max(0, room))} {where}are free{limit} (loaded: "
            f"{held}); lower --context-size or --parallel, or stop another model"
        )

    async def _start(self, deployment: Deployment) -> EngineProcess:
        plan = deployment.plan
        note(f"{plan.name}: {plan.command.version}, context {plan.context_size} tokens: {plan.command}")
        self._started += 1  # one that is stopping may still use its folder
        folder = self._folder / "engines" / f"{deployment.digest.hex[:12]}-{self._started}"
        bundle, more = await asyncio.to_thread(self._files, plan)
        process = await asyncio.to_thread(EngineProcess, plan.command, folder, bundle, deployment.log, more)
        if deployment.closed:
            await asyncio.to_thread(process.stop)
            raise Unavailable(f"{deployment.name} is no longer served")
        deployment.process, deployment.state = process, State.LOADING
        self._changed()
        return process

    async def _wait_ready(self, plan: Plan, process: EngineProcess) -> None:
        """Return when an engine is ready. The time it may take begins again while its model still arrives."""
        while True:
            arriving = plan.stream is not None and not plan.stream.is_complete
            try:
                return await process.wait_ready(plan.engine.start_seconds)
            except EngineFailed:
                if not arriving or not process.running:
                    raise

    def _files(self, plan: Plan) -> tuple[Path, dict[str, Path]]:
        """The folder with a model's files, and what else its engine has to reach, by its place where that runs."""
        if plan.stream is None:
            return bundles(plan, self._store)
        adapters = {adapter.folder: self._store.bundle(adapter.found.model) for adapter in plan.adapters}
        bundle, more = plan.stream.place(self._folder)
        return bundle, {**adapters, **more}

    def _ready(self, deployment: Deployment, process: EngineProcess) -> None:
        if deployment.process is not process:
            raise Unavailable(f"{deployment.name} was stopped while it was loading", 1)
        self.loads += 1
        deployment.upstream = Upstream(process.address)
        deployment.state, deployment.ready_at = State.READY, time.monotonic()
        deployment.last_used = time.monotonic()
        self.spawn(self._watch(deployment, process))

    async def _watch(self, deployment: Deployment, process: EngineProcess) -> None:
        await process.wait_stopped()
        if deployment.process is not process:
            return  # as it should
        failure = process.failure("while serving")
        if time.monotonic() - deployment.ready_at > _STEADY:
            deployment.failures = 0
        deployment.failure = failure  # before the process is let go: whoever it broke off waits for that
        await self._discard(deployment)
        self._failed(deployment, failure, restart=True)

    async def cause(self, deployment: Deployment) -> EngineFailed | None:
        """Why the engine of a model, which has just broken off an answer, has stopped; None if it goes on running."""
        process = deployment.process
        if process is None:
            return deployment.failure
        began, listens = time.monotonic(), True
        while deployment.process is process:
            listens = listens and await process.listens()
            # One that listens no more is going: how long that takes is up to the kernel.
            if time.monotonic() - began > (_NOTICED if listens else _GONE):
                return None
            await asyncio.sleep(_POLL)
        return deployment.failure

    def _failed(self, deployment: Deployment, failure: EngineFailed, restart: bool = False) -> None:
        """Note a failure. An engine that had been serving is started again after a pause, up to the limit."""
        deployment.failure = failure
        deployment.failures += 1
        restart = restart or deployment.state is State.WAITING or deployment.restarts > 0
        note(f"error: {deployment.name}: {failure}")
        if deployment.failures > self._max_restarts:
            deployment.state, deployment.retry_at = State.FAILED, math.inf
            self._gave_up(deployment)
        else:
            pause = pause_after(deployment.failures)
            deployment.retry_at = time.monotonic() + pause
            deployment.state = State.WAITING if restart else State.FAILED
            if restart:
                note(f"{deployment.name}: restart {deployment.failures} of {self._max_restarts} in {pause:g} s")
                self.spawn(self._restart(deployment, pause))
        self._changed()

    async def _restart(self, deployment: Deployment, pause: float) -> None:
        """Load a model again after a pause, and again while something hinders that which is not its engine."""
        for attempt in itertools.count(1):
            await asyncio.sleep(pause)
            if deployment.state is not State.WAITING or deployment.closed:
                return
            deployment.restarts += attempt == 1
            deployment.retry_at = 0.0
            try:
                return await self.load(deployment)
            except (DoesNotFit, Refused) as error:
                note(f"error: {error}")
                deployment.state = State.UNLOADED
                return
            except (EngineFailed, Unavailable):
                return  # the next attempt is under way, or it was stopped
            except (StowageError, OSError) as error:  # a policy that cannot be read now, a disk that is full
                pause = pause_after(attempt)
                note(f"error: {deployment.name}: {error}; it is tried again in {pause:g} s")
                deployment.state, deployment.retry_at = State.WAITING, time.monotonic() + pause
                self._changed()

    async def unload(self, deployment: Deployment, drain: float = 0.0) -> None:
        """Stop the engine of a model; requests under way have `drain` seconds. It is loaded again when asked for."""
        deadline = time.monotonic() + drain
        while deployment.active and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        deployment.failures, deployment.retry_at, deployment.failure = 0, 0.0, None
        deployment.state = State.UNLOADED
        await self._discard(deployment)
        self._changed()

    async def _discard(self, deployment: Deployment) -> None:
        process, deployment.process, deployment.upstream = deployment.process, None, None
        deployment.estimate = None
        if process is not None:
            await asyncio.to_thread(process.stop)

    async def tend(self) -> None:
        """Unload what is idle, bound the logs, and say how far loading is, until cancelled."""
        while True:
            await asyncio.sleep(_TICK)
            now = time.monotonic()
            for deployment in self.deployments:
                if deployment.is_idle(now):
                    note(f"{deployment.name}: idle for {deployment.keeping.idle_timeout:g} s, unloaded")
                    await self.unload(deployment)
                await asyncio.to_thread(logs.rotate, deployment.log)
            if any(item.state in (State.LOADING, State.WAITING) for item in self.deployments):
                self._changed()

    async def close(self) -> None:
        """Stop everything."""
        for deployment in self.deployments:
            deployment.closed = True
        await asyncio.gather(*(self.unload(item) for item in self.deployments))
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
