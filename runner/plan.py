"""From what a user asks for to exactly what will run: the model found and allowed, the engine chosen, its command."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from artifact.errors import InvalidInput
from artifact.progress import Progress
from artifact.reference import Reference
from artifact.terminal import note
from artifact.transfer import CONCURRENCY
from runner.engines.dispatch import engine_for
from runner.engines.engine import Command, Engine, Options, context_size
from runner.engines.installed import ENGINES
from runner.engines.task import task_of
from runner.pull import Found, absolute, fetch, find
from runner.sandbox.rules import MODES
from runner.store import Store
from supplychain.policy import Policy

POLICY_VARIABLE = "STOWAGE_POLICY"
"""The environment variable that names the policy file where ``--policy`` does not."""


@dataclass(frozen=True)
class Wishes:
    """What the user states about running a model, all of it optional. `flags` are the engine's own, as written;
    `sandbox` is ``auto``, ``required`` or ``off``."""

    driver: str | None = None
    context_size: int | None = None
    gpus: str | None = None
    engine_path: Path | None = None
    flags: Sequence[str] = ()
    sandbox: str = "auto"


@dataclass(frozen=True)
class Plan:
    """One model and exactly how it will run. `name` is what the engine calls it; `names` all that clients may."""

    found: Found
    engine: Engine
    command: Command
    context_size: int
    name: str
    names: frozenset[str]


def plan(found: Found, wishes: Wishes) -> Plan:
    """Decide how a found model will run. Nothing is fetched or started. Raises `InvalidInput` for a driver, flag or
    context size that does not fit, `EngineUnavailable` for an engine that is not here."""
    model = found.model
    if wishes.sandbox not in MODES:
        raise InvalidInput(f"--sandbox must be {', '.join(MODES)}, not {wishes.sandbox!r}")
    engine = engine_for(model.config.format, wishes.driver, wishes.engine_path, found.store / ENGINES, wishes.gpus)
    flags = engine.check_flags(wishes.flags)
    context = context_size(wishes.context_size, model, flags)
    name = served_name(found.reference, str(model.digest))
    task = task_of(model, lambda file: found.origin.read_blob(file.blob, file.blob.size))
    command = engine.command(model, Options(name, context, flags, wishes.gpus, task))
    command = replace(command, rules=replace(command.rules, mode=wishes.sandbox))
    return Plan(found, engine, command, context, name, served_names(found.reference, str(model.digest)))


def served_name(reference: Reference, digest: str) -> str:
    """The one name a model is listed under: its repository with the tag, or with the digest if it has no tag."""
    return f"{reference.repository}:{reference.tag}" if reference.tag else f"{reference.repository}@{digest}"


def served_names(reference: Reference, digest: str) -> frozenset[str]:
    """Every name that means this model: with and without host, tag and digest."""
    places = {reference.repository, reference.name} - {""}
    tagged = {f"{place}:{reference.tag}" for place in places if reference.tag}
    pinned = {f"{place}@{digest}" for place in (*places, *tagged)}
    return frozenset({digest, *places, *tagged, *pinned})


def prepare(
    reference: Reference, store: Store, policy: Policy | None, wishes: Wishes, progress: Progress, *, plain_http: bool
) -> Plan:
    """Find, decide, plan, and only then fetch: the way of ``serve`` and ``run``."""
    found = find(reference, store, policy, plain_http=plain_http)
    planned = plan(found, wishes)
    fetch(found, store, progress, concurrency=CONCURRENCY)
    return planned


def load_policy(path: Path | None) -> Policy | None:
    """The policy the user states, or the one ``$STOWAGE_POLICY`` names; without one, a warning and None."""
    stated = path or (Path(os.environ[POLICY_VARIABLE]) if os.environ.get(POLICY_VARIABLE) else None)
    if stated is None:
        note("warning: no policy is stated (--policy), so nothing but digests is verified: any signer or none will do")
        return None
    return Policy.load(stated)


def parse_references(texts: Sequence[str]) -> list[Reference]:
    """References as users write them, layouts made absolute. Raises `InvalidInput`."""
    return [absolute(Reference.parse(text)) for text in texts]
