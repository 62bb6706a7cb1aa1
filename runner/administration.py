"""What changes a running runner: models brought in, configured, renamed, dropped, as the command line would do it.

The policy the runner was started with decides on every model that is added, and nothing is added where its models came
under several. Flags pass the allow-list of the engine that is chosen. What was configured is kept for the next start.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from artifact.errors import InvalidInput, NotFound, Refused, StowageError
from artifact.progress import Progress, Quiet
from artifact.reference import Reference
from artifact.terminal import note
from runner import configured
from runner.configured import Configured, Keeping
from runner.deployment import Deployment
from runner.fleet import Fleet
from runner.plan import Plan, fetch_all, prepare, with_adapters
from runner.pull import Found, absolute, find
from runner.store import Store, StoredModel
from runner.wishes import Wishes
from supplychain.policy import Policy

DRAIN = 30.0
"""Seconds that requests under way have to finish when their model is stopped."""


class Busy(StowageError):
    """The model answers requests now, so it cannot be changed."""

    code = "busy"


class NoOnePolicy(Refused):
    """The runner's models came under different policies, so it cannot tell which one decides on another."""

    code = "no-one-policy"


class Administration:
    """The hands of one runner. `path` is where its configuration is kept, if it is; `keeping` says how models are kept
    where nothing else does, `sandbox` what the engines of models that come later are held to; `divided` says that the
    first models came under different policies."""

    def __init__(
        self, store: Store, fleet: Fleet, path: Path | None, policy: Policy | None, policy_file: str | None,
        plain_http: bool, keeping: Keeping, sandbox: str = "auto", *, divided: bool = False,
    ) -> None:  # fmt: skip
        self.store = store
        self._fleet = fleet
        self._path = path
        self._policy = policy
        self._policy_file = policy_file
        self._plain_http = plain_http
        self._keeping = keeping
        self._sandbox = sandbox
        self._divided = divided

    def use(self, policy: Policy) -> None:
        """Decide by `policy` from now on, if it is this runner's own, read anew."""
        if self._policy is not None and policy.source == self._policy.source:
            self._policy = policy

    def came_under(self, policy_file: str | None) -> None:
        """Learn which policy a model was ordered under; without one, None."""
        self._divided = self._divided or policy_file != self._policy_file

    def _check_decidable(self) -> None:
        if self._divided:
            raise NoOnePolicy(
                "the models of this runner came under different policies, and which of them would decide here cannot "
                "be told: stop it, and start all of them under one"
            )

    def save(self) -> None:
        """Keep what is configured now."""
        if self._path is None:
            return
        models = [item.configured() for item in self._fleet.deployments]
        configured.save(self._path, models, self._policy_file, self._plain_http)

    async def create(self, text: str, progress: Progress) -> Deployment:
        """Bring a model into the store and serve it when it is asked for. Raises `StowageError`."""
        self._check_decidable()
        reference, wishes = absolute(Reference.parse(text)), Wishes(sandbox=self._sandbox)
        planned = await asyncio.to_thread(
            prepare, reference, self.store, self._policy, wishes, progress, plain_http=self._plain_http
        )
        existing = self._fleet.get(planned.found.model.digest)
        if existing is not None:
            existing.call_it(planned.found.reference)
            self.save()
            return existing
        return self._add(planned, wishes, replace(self._keeping, lazy=True))

    def _add(self, planned: Plan, wishes: Wishes, keeping: Keeping) -> Deployment:
        deployment = self._fleet.add(planned, wishes, keeping)
        self.save()
        return deployment

    async def configure(self, text: str, wishes: Wishes, keeping: Keeping | None = None) -> Deployment:
        """Say how a stored model shall run from its next load on. Raises `Busy` while it answers, `StowageError`."""
        self._check_decidable()
        current = _idle(self._fleet.find(text))
        known = current.configured() if current else None

        def found() -> Found:
            if known is not None:
                return find_again(known, self.store, self._policy, self._plain_http)
            reference = absolute(Reference.parse(text))
            return find(reference, self.store, self._policy, plain_http=self._plain_http)

        model = await asyncio.to_thread(found)
        if not model.stored:
            raise NotFound(f"{text} is not in the store: pull it first (POST /models/create)")
        current = _idle(self._fleet.get(model.model.digest))  # the store may have names that are not served
        wishes = _over(current, wishes) if current else replace(wishes, sandbox=self._sandbox)

        def planned() -> Plan:
            kept = current.configured() if current else None
            named = find_again(kept, self.store, self._policy, self._plain_http) if kept else model
            made = with_adapters(named, wishes, self.store, self._policy, plain_http=self._plain_http)
            fetch_all(made, self.store, _SILENT)
            return made

        made = await asyncio.to_thread(planned)
        names: frozenset[str] = frozenset()
        aliases: tuple[str, ...] = ()
        kept = replace(self._keeping, lazy=True)
        current = _idle(self._fleet.get(made.found.model.digest))
        if current is not None:
            names, aliases, kept = current.names, current.aliases, current.keeping
            await self._fleet.remove(current)
        deployment = self._fleet.add(made, wishes, keeping or kept, names)
        deployment.aliases = aliases
        self.save()
        return deployment

    async def drop(self, deployment: Deployment) -> None:
        """Serve a model no more, now and after a restart."""
        await self._fleet.remove(deployment, DRAIN)
        self.save()

    async def delete(self, stored: StoredModel, name: str) -> int:
        """Remove a name of a model from the store, and the model with the last one; return the bytes freed. Its engine
        stops if it runs under that name. Raises `NotFound`, `Busy` for an adapter of a model that is served."""
        reference = absolute(Reference.parse(stored.name or name))
        for other in self._fleet.deployments:
            if any(adapter.found.model.digest == stored.model.digest for adapter in other.plan.adapters):
                raise Busy(f"{name} is an adapter of {other.name}, which is being served: stop that first")
        current = self._fleet.get(stored.model.digest)
        if current is not None and str(reference) in current.aliases:
            current.call_it_no_more(str(reference))
            self.save()
        elif current is not None:
            await self.drop(current)
        return await asyncio.to_thread(self.store.remove, reference)

    async def tag(self, stored: StoredModel, target: Reference) -> None:
        """Give a stored model one more name, in the store and where it is served, now and after a restart. Raises
        `InvalidInput`, `Busy` for the name of another model that is served."""
        target = absolute(target)
        if target.tag is None or target.digest is not None:
            raise InvalidInput(f"{target} is not a repository and a tag")
        for other in self._fleet.deployments:
            if other.digest != stored.model.digest and str(target) == str(other.plan.found.reference):
                raise Busy(f"{target} is served as {other.digest.short}: remove that first")

        def write() -> None:
            origin = self.store.repository(absolute(Reference.parse(stored.name or str(stored.model.digest))))
            _, raw = origin.manifest(stored.model.digest)
            self.store.repository(target).push_manifest(raw, stored.model.manifest.media_type, target.tag)

        await asyncio.to_thread(write)
        for other in self._fleet.deployments:
            if other.digest == stored.model.digest:
                other.call_it(target)
            elif str(target) in other.aliases:
                other.call_it_no_more(str(target))
        self.save()


_SILENT = Quiet()


def _idle(current: Deployment | None) -> Deployment | None:
    """The same, if it answers no request. Raises `Busy`."""
    if current is not None and current.active:
        raise Busy(f"{current.name} answers {current.active} requests now: try again, or unload it first")
    return current


def _over(current: Deployment, wishes: Wishes) -> Wishes:
    """What a request cannot state, as it was: sandbox, adapters, and the engine's path unless another engine is asked
    for."""
    before = current.wishes
    wishes = replace(wishes, sandbox=before.sandbox, lora=[adapter.pinned for adapter in current.plan.adapters])
    if before.engine_path is not None and wishes.driver in (None, before.driver, current.plan.engine.name):
        wishes = replace(wishes, engine_path=before.engine_path, driver=wishes.driver or before.driver)
    return wishes


def find_again(kept: Configured, store: Store, policy: Policy | None, plain_http: bool) -> Found:
    """Find a model that was configured before: by the digest its reference meant then. The policy decides anew."""
    named, pinned = kept.names
    found = find(pinned, store, policy, plain_http=plain_http)
    return replace(found, reference=named)


def resumed(kept: Configured, store: Store, policy: Policy | None, progress: Progress, plain_http: bool) -> Plan:
    """Plan a model as it was configured, and fetch what is missing. Raises `StowageError`."""
    found = find_again(kept, store, policy, plain_http)
    made = with_adapters(found, kept.wishes, store, policy, plain_http=plain_http)
    fetch_all(made, store, progress)
    note(f"{made.name}: as it was configured, {kept.digest}")
    return made
