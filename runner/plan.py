"""From what a user asks for to exactly what will run: the model found and allowed, the engine chosen, its command."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from artifact.errors import InvalidInput
from artifact.progress import Progress
from artifact.reference import Reference
from artifact.repository import Repository
from artifact.terminal import note
from artifact.transfer import CONCURRENCY
from runner.adapters import Adapter, check_is_no_adapter, find_adapters
from runner.check import Contradiction
from runner.engines.dispatch import engine_for
from runner.engines.engine import Command, Engine, Options, context_size
from runner.engines.host import gpu_numbers, has_gpu
from runner.engines.installed import ENGINES
from runner.engines.interpreter import gpu_environment
from runner.engines.task import task_of
from runner.model import ModelFile
from runner.names import served_name, served_names
from runner.pull import Found, fetch, find
from runner.sandbox.rules import MODES
from runner.store import Store
from runner.stream.streaming import Streaming, check_streamable
from runner.wishes import Wishes
from supplychain.usage import Use

if TYPE_CHECKING:
    from supplychain.policy import Policy

_NUMBER = re.compile(r"-[0-9.].*")


@dataclass(frozen=True)
class Plan:
    """One model and exactly how it will run. `name` is what the engine calls it; `names` all that clients may.
    `task` is ``generate``, ``embed`` or ``rerank``. A model that is served while it arrives has a `stream`."""

    found: Found
    engine: Engine
    command: Command
    context_size: int
    name: str
    names: frozenset[str]
    task: str
    adapters: Sequence[Adapter] = ()
    stream: Streaming | None = None

    @property
    def adapter_digests(self) -> tuple[str, ...]:
        """The digests of its adapters' manifests."""
        return tuple(str(item.found.model.digest) for item in self.adapters)

    @property
    def talks_as(self) -> str:
        """The name to ask for in a conversation: the model's, or that of its one adapter where the engine keeps the
        two apart."""
        apart = self.engine.adapters_apart and len(self.adapters) == 1
        return self.adapters[0].name if apart else self.name


def plan(found: Found, wishes: Wishes, adapters: Sequence[Adapter] = ()) -> Plan:
    """Decide how a found model will run, with the `adapters` that `wishes` name. Nothing is fetched or started. Raises
    `InvalidInput` for a driver, flag or context size that does not fit, `EngineUnavailable` for an engine that is not
    here, and `Refused` for what the policy does not let be used."""
    assert len(adapters) == len(wishes.lora)
    model = found.model
    check_is_no_adapter(found)
    if wishes.sandbox not in MODES:
        raise InvalidInput(f"--sandbox must be {', '.join(MODES)}, not {wishes.sandbox!r}")
    gpu_environment(wishes.gpus)  # refuses what is none before anything is looked for
    engine = engine_for(model.config.format, wishes.driver, wishes.engine_path, found.store / ENGINES, wishes.gpus)
    flags = engine.check_flags(wishes.flags, code=bool(found.grant))
    context = context_size(wishes.context_size, model, flags)
    name = served_name(found.reference, str(model.digest))
    task = _task(found, found.origin)
    stream = wishes.stream and not found.stored
    if wishes.stream:
        check_streamable(found, engine.name)
    files = [item.files for item in adapters]
    command = engine.command(model, Options(name, context, flags, wishes.gpus, task, files, stream))
    command = replace(command, rules=replace(command.rules, mode=wishes.sandbox))
    _check_gpus(wishes.gpus, command)
    for used in (found, *(item.found for item in adapters)):
        _check_use(used, command, flags)
    names = served_names(found.reference, str(model.digest)) | {item.name for item in adapters}
    return Plan(found, engine, command, context, name, names, task, tuple(adapters))


def _task(found: Found, origin: Repository) -> str:
    def read(file: ModelFile) -> bytes:
        return origin.read_blob(file.blob, file.blob.size)

    return task_of(found.model, read, lambda file: origin.blob_source(file.blob))


def _check_gpus(stated: str | None, command: Command) -> None:
    """Warn where the engine would compute on the CPU although GPUs are stated. Raises `InvalidInput` for one that is
    not there."""
    if stated in (None, "none"):
        return
    if not command.rules.devices:
        note(f"warning: --gpus {stated}: {command.version} uses no GPU")
        return
    there = gpu_numbers()
    wanted = set() if stated == "all" else set(map(int, str(stated).split(",")))
    if there and wanted - there:
        absent, shown = (", ".join(map(str, sorted(numbers))) for numbers in (wanted - there, there))
        raise InvalidInput(f"--gpus {stated}: there is no GPU {absent} here, only {shown} (nvidia-smi)")
    if not there and not has_gpu():
        note(
            f"warning: --gpus {stated}: no NVIDIA GPU was found (nvidia-smi lists none, there is no /dev/nvidiactl and "
            "no /proc/driver/nvidia/version): without one the engine computes on the CPU"
        )
    elif not there and wanted:
        note(f"warning: --gpus {stated}: nvidia-smi lists no GPUs, so nobody knows whether there are these")


def _check_use(found: Found, command: Command, flags: Sequence[str]) -> None:
    """Let the policy decide on the engine and the flags that a model or an adapter is used with. Raises
    `PolicyRefused`."""
    if found.decision is None:
        return
    names = tuple(flag for flag in flags if flag.startswith("-") and not _NUMBER.fullmatch(flag))
    decision = found.decision.to_use(Use(command.engine, command.version.partition(" ")[2], names)).enforce()
    if decision.warned and not found.decision.warned:
        note(f"warning: {decision.reason}")


def prepare(
    reference: Reference, store: Store, policy: Policy | None, wishes: Wishes, progress: Progress, *, plain_http: bool
) -> Plan:
    """Find, decide, plan, and only then fetch: the way of ``serve`` and ``run``."""
    found = find(reference, store, policy, plain_http=plain_http)
    planned = with_adapters(found, wishes, store, policy, plain_http=plain_http)
    if wishes.stream and not found.stored:
        for adapter in planned.adapters:
            fetch(adapter.found, store, progress, concurrency=CONCURRENCY)
        return replace(planned, stream=Streaming.begin(found, store, progress))
    if wishes.stream:
        note(f"note: {reference} is in the store: there is nothing to stream")
    fetch_all(planned, store, progress)
    return planned


def with_adapters(found: Found, wishes: Wishes, store: Store, policy: Policy | None, *, plain_http: bool) -> Plan:
    """Find the adapters that `wishes` name, and plan. Raises as `plan` and `find_adapters` do."""
    return plan(found, wishes, find_adapters(wishes.lora, found, store, policy, plain_http=plain_http))


def fetch_all(planned: Plan, store: Store, progress: Progress) -> None:
    """Bring a planned model and its adapters into the store. Raises what `fetch` does."""
    for found in (planned.found, *(adapter.found for adapter in planned.adapters)):
        fetch(found, store, progress, concurrency=CONCURRENCY)
    if not planned.found.stored and _task(planned.found, store.repository(planned.found.reference)) != planned.task:
        raise Contradiction(
            f"{planned.found.reference}: the registry showed another beginning of the weights than it sent"
        )


def bundles(planned: Plan, store: Store) -> tuple[Path, dict[str, Path]]:
    """The folder with the model's files, and those of its adapters by their places in the folder an engine runs in."""
    adapters = {adapter.folder: store.bundle(adapter.found.model) for adapter in planned.adapters}
    return store.bundle(planned.found.model), adapters
