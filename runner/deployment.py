"""One model that a runner serves: how it shall run, whether it runs now, and what has become of it."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from artifact.digest import Digest
from artifact.reference import Reference
from runner.configured import Configured, Keeping
from runner.gateway.upstream import Upstream
from runner.memory import Estimate, family, resident
from runner.names import served_names
from runner.plan import Plan
from runner.state import Served
from runner.supervise import EngineFailed, EngineProcess
from runner.wishes import Wishes

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0
_PERCENT = re.compile(r"\b(\d{1,3})%")


class State(StrEnum):
    """What a model is doing."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    READY = "ready"
    WAITING = "waiting"
    FAILED = "failed"


def pause_after(failures: int) -> float:
    """Seconds until an engine that has failed so many times in a row is started again."""
    return min(_FIRST_PAUSE * 2.0 ** min(failures - 1, 30), _LONGEST_PAUSE)


@dataclass(eq=False)
class Deployment:
    """A model and its engine. `names` are all that clients may call it, those of its `aliases` among them: references
    it was given besides its own; `active` counts its requests under way; `retry_at` is the time before which it is not
    started again, in seconds of the monotonic clock; `refused` is why the policy allows it no longer."""

    plan: Plan
    names: frozenset[str]
    wishes: Wishes
    keeping: Keeping
    log: Path
    aliases: tuple[str, ...] = ()
    state: State = State.UNLOADED
    process: EngineProcess | None = None
    upstream: Upstream | None = None
    estimate: Estimate | None = None
    failure: EngineFailed | None = None
    failures: int = 0
    restarts: int = 0
    active: int = 0
    retry_at: float = 0.0
    ready_at: float = 0.0
    last_used: float = field(default_factory=time.monotonic)
    created: int = field(default_factory=lambda: int(time.time()))
    loading: asyncio.Task[None] | None = None
    closed: bool = False
    refused: str = ""

    @property
    def digest(self) -> Digest:
        """The digest of the model's manifest."""
        return self.plan.found.model.digest

    @property
    def name(self) -> str:
        """What the engine calls the model."""
        return self.plan.name

    def call_it(self, reference: Reference) -> None:
        """Answer to the names of one more reference."""
        if str(reference) not in (*self.aliases, str(self.plan.found.reference)):
            self.aliases = (*self.aliases, str(reference))
        self.names |= served_names(reference, str(self.digest))

    def call_it_no_more(self, alias: str) -> None:
        """Answer to an alias's names no more, but for those that it shares with others."""
        self.aliases = tuple(other for other in self.aliases if other != alias)
        kept = self.plan.names.union(*(self._names_of(other) for other in self.aliases))
        self.names = (self.names - self._names_of(alias)) | kept

    def _names_of(self, alias: str) -> frozenset[str]:
        return served_names(Reference.parse(alias), str(self.digest))

    @property
    def chosen(self) -> Mapping[str, Digest]:
        """The adapters a client chooses by name, with the digests of their manifests."""
        if not self.plan.engine.adapters_apart:
            return {}
        return {adapter.name: adapter.found.model.digest for adapter in self.plan.adapters}

    def asked_as(self, name: str | None) -> str:
        """What the engine calls what a client calls `name`: an adapter, else the model."""
        return name if name is not None and name in self.chosen else self.name

    @property
    def evictable(self) -> bool:
        """Whether it may be unloaded now to make room for another."""
        return self.state is State.READY and not self.keeping.pinned and self.active == 0

    @property
    def held(self) -> list[int]:
        """The processes of its engine."""
        return family(self.process.pid) if self.process is not None else []

    def is_idle(self, now: float) -> bool:
        """Whether it has been idle for longer than it is kept."""
        timeout = self.keeping.idle_timeout
        return self.evictable and timeout > 0 and now - self.last_used >= timeout

    def seconds_to_retry(self) -> float:
        """How long until it may be started again; infinite once given up."""
        return max(0.0, self.retry_at - time.monotonic())

    def loaded_percent(self) -> int:
        """How far loading is: what the engine says, else the share of the weights that is in its memory."""
        if self.process is None:
            return 0
        for line in reversed(self.process.last_lines()):
            if found := _PERCENT.findall(line):
                return min(99, int(found[-1]))
        weights = self.estimate.weights if self.estimate else 0
        return min(99, 100 * resident(self.held) // weights) if weights else 0

    def detail(self) -> str:
        """Its state in words."""
        return f"{self._state()}, refused by the policy: {self.refused}" if self.refused else self._state()

    def _state(self) -> str:
        if self.state is State.LOADING:
            return f"loading {self.loaded_percent()} %"
        if self.state is State.WAITING:
            return f"restart {self.failures} in {math.ceil(self.seconds_to_retry())} s"
        if self.state is State.FAILED and math.isinf(self.retry_at):
            return f"given up after {self.failures} failures"
        return self.state.value

    def served(self) -> Served:
        """What ``runner ps`` shows of it."""
        command = self.plan.command
        return Served(
            self.name, str(self.digest), command.engine, command.version, str(command), str(self.log),
            state=self.state.value, detail=self.detail(), restarts=self.restarts, pinned=self.keeping.pinned,
            idle_timeout=self.keeping.idle_timeout, memory=self.estimate.total if self.estimate else 0,
            failure=str(self.failure or ""), sandbox=self.process.sandbox if self.process else "",
            adapters=self.plan.adapter_digests,
        )  # fmt: skip

    def configured(self) -> Configured:
        """What is kept of it over a restart."""
        reference = self.plan.found.reference
        wishes = replace(self.wishes, lora=tuple(adapter.pinned for adapter in self.plan.adapters))
        return Configured(str(reference), str(self.digest), wishes, self.keeping, self.aliases)
