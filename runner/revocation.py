"""What the policy says now: asked each time a model is loaded, and of all that run whenever its file changes.

A model was allowed by some policy when it was planned. That file may say something else by the time the model's engine
starts again, or while it runs: a digest, a key or an identity was revoked, or a signature has grown too old. What is in
the store is judged with the signatures in the store, so that nothing here needs a network.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from artifact.errors import StowageError
from artifact.terminal import note
from runner.deployment import Deployment
from runner.fleet import Fleet
from runner.pull import Found
from runner.store import Store
from supplychain.policy import Policy, WhenRunning
from supplychain.refusal import PolicyRefused, Reason
from supplychain.verify import verify

_TICK = 1.0
"""Seconds between two looks at the policy files."""


@dataclass
class _File:
    """A policy file as it was last read: what it was then, and what was in it or why that is nothing."""

    state: tuple[int, int, int] | None
    policy: Policy | None
    error: StowageError | None = None


class Watch:
    """The policies that models were allowed by, as their files say now."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._files: dict[str, _File] = {}
        self._lock = threading.Lock()

    def check(self, deployment: Deployment) -> None:
        """Let the policy decide anew on a model and its adapters; one that none had to allow passes.

        Raises `PolicyRefused`, and `InvalidInput` if the policy cannot be read any more.
        """
        for found in _parts(deployment):
            if found.decision is not None:
                _decide_again(found, self._store, self._current(found.decision.policy))

    async def follow(
        self,
        fleet: Fleet,
        changed: Callable[[Policy], None],
        stop: Callable[[Deployment, StowageError], Awaitable[None]],
    ) -> None:
        """Look at the files until cancelled. `changed` is told of every policy that was read anew, once its
        models were asked about; `stop` is asked to stop what the policy allows no longer, where it says so."""
        seen: dict[str, tuple[int, int, int] | None] = {}
        while True:
            await asyncio.sleep(_TICK)
            used = {
                item: {found.decision.policy for found in _parts(item) if found.decision} for item in fleet.deployments
            }
            for source in sorted(set().union(*used.values())):
                state = await asyncio.to_thread(_state, source)
                if source in seen and seen[source] == state:
                    continue
                seen[source] = state
                under = [item for item, sources in used.items() if source in sources]
                await self._reconsider(source, under, changed, stop)

    async def _reconsider(
        self,
        source: str,
        under: list[Deployment],
        changed: Callable[[Policy], None],
        stop: Callable[[Deployment, StowageError], Awaitable[None]],
    ) -> None:
        try:
            policy = await asyncio.to_thread(self._current, source)
        except StowageError as error:
            note(f"error: {error}; what runs runs on, and nothing is loaded until the policy can be read")
            return
        stops: list[tuple[Deployment, StowageError]] = []
        for deployment in under:
            deployment.refused = ""
            try:
                await asyncio.to_thread(self.check, deployment)
            except StowageError as error:
                deployment.refused = error.code
                stopping = policy.when_running is WhenRunning.STOP and isinstance(error, PolicyRefused)
                note(f"error: {deployment.name}: {error}; it {'is stopped' if stopping else 'runs on'}")
                stops += [(deployment, error)] if stopping else []
        changed(policy)
        for deployment, why in stops:
            await stop(deployment, why)

    def _current(self, source: str) -> Policy:
        """The policy in a file, read anew if the file has changed. Raises `InvalidInput`."""
        with self._lock:
            state = _state(source)
            file = self._files.get(source)
            if file is None or file.state != state:
                try:
                    file = _File(state, Policy.load(source))
                except StowageError as error:
                    file = _File(state, None, error)
                self._files[source] = file
            if file.policy is None:
                assert file.error is not None
                raise file.error
            return file.policy


def _parts(deployment: Deployment) -> list[Found]:
    return [deployment.plan.found, *(adapter.found for adapter in deployment.plan.adapters)]


def _sources(deployment: Deployment) -> set[str]:
    return {found.decision.policy for found in _parts(deployment) if found.decision is not None}


def _state(source: str) -> tuple[int, int, int] | None:
    try:
        found = Path(source).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _decide_again(found: Found, store: Store, policy: Policy) -> None:
    pinned = replace(found.reference, tag=None, digest=found.model.digest)
    home = store.home(pinned)
    origin, descriptor = home if home is not None else (found.origin, found.origin.resolve(found.model.digest))
    decision = verify(origin, found.reference, descriptor, policy).enforce()
    if found.grant | decision.grant != decision.grant:
        raise PolicyRefused(f"{found.reference}: {policy.source} grants its code no longer", Reason.NOT_GRANTED)
