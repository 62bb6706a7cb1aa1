"""``runner up``, ``down`` and ``lock``: from Compose files to running models and back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from artifact.errors import InvalidInput
from artifact.progress import Progress
from runner.compose import dotenv
from runner.compose.gateway import Changes, ProjectGateway, Wanted
from runner.compose.lock import LOCK_FILE, Entry, Lock, find_stored
from runner.compose.project import ComposeModel, Project
from runner.orders import Order
from runner.plan import Plan, plan
from runner.pull import Found, fetch, find
from runner.serve import DEFAULT_LISTEN
from runner.store import Store
from runner.wishes import POLICY_VARIABLE, Wishes, load_policy
from supplychain.policy import Policy

_MADE_ENV = "made-env"
"""Says in the project's folder that there was no ``.env`` file before."""


@dataclass(frozen=True)
class Circumstances:
    """What holds for all models of a project: where they are kept, what decides on them, how they are reached."""

    store: Store
    policy_path: Path | None = None
    plain_http: bool = False
    engine_paths: tuple[tuple[str, Path], ...] = ()
    sandbox: str = "auto"

    def policy(self) -> Policy | None:
        """The policy that decides, None without one."""
        return load_policy(self.policy_path)

    def stated_policy(self) -> str | None:
        """The policy file for the background gateway, as an absolute path."""
        stated = self.policy_path or os.environ.get(POLICY_VARIABLE)
        return str(Path(stated).absolute()) if stated else None

    def wishes(self, model: ComposeModel) -> Wishes:
        """How a model shall run."""
        paths = dict(self.engine_paths)
        path = paths.get(model.driver or "", paths.get(""))
        return Wishes(
            model.driver, model.context_size, model.gpus, path.absolute() if path else None, model.flags, self.sandbox
        )


def up(
    project: Project,
    around: Circumstances,
    progress: Progress,
    *,
    lock: Lock | None,
    listen: str | None = None,
    endpoint: str | None = None,
    env_file: Path | None = None,
) -> tuple[Changes, Sequence[Wanted], dict[str, str]]:
    """Pull, verify and serve the models of a project, and write where they are into its ``.env`` file.

    Nothing is fetched before all of them have been found, allowed and planned. Raises `Locked`, `Refused` and all that
    ``serve`` raises. Returns what was done and the variables.
    """
    gateway = ProjectGateway(around.store, project.id)
    with gateway.locked():
        planned = _plan_all(project, around, lock)
        for _, item in planned:
            fetch(item.found, around.store, progress)
        wanted = _orders(planned, around)
        changes = gateway.apply(wanted, listen, DEFAULT_LISTEN)
        names = {model.key: _asked_as(model, item) for model, item in planned}
        variables = project.variables(endpoint or f"http://{changes.address}/v1", names)
        path = env_file or project.folder / ".env"
        if not path.exists():
            (gateway.folder / _MADE_ENV).touch()
        dotenv.write_block(path, variables)
    return changes, wanted, variables


def pull(project: Project, around: Circumstances, progress: Progress, lock: Lock | None) -> Sequence[Found]:
    """Bring the models of a project into the store as `up` would, with their files laid out; start nothing.

    Nothing is fetched before all of them have been found, allowed and planned. Raises what `up` does before it starts.
    """
    found = [item.found for _, item in _plan_all(project, around, lock)]
    for item in found:
        fetch(item, around.store, progress)
        around.store.bundle(item.model)
    return found


def down(project: Project, store: Store, env_file: Path | None = None) -> bool:
    """Stop a project's gateway and take its variables out of the ``.env`` file. False if it did not run."""
    gateway = ProjectGateway(store, project.id)
    with gateway.locked():
        path, ours = env_file or project.folder / ".env", (gateway.folder / _MADE_ENV).exists()
        stopped = gateway.stop()
        dotenv.write_block(path, {})
        if ours and path.exists() and not path.stat().st_size:
            path.unlink()
    return stopped


def write_lock(project: Project, around: Circumstances, path: Path | None = None) -> Lock:
    """Look every reference up anew, and write down what it is. Fetches no weights."""
    policy = around.policy()
    entries: dict[str, Entry] = {}
    for model in project.models:
        found = find(model.reference, around.store, policy, plain_http=around.plain_http, local=False)
        entries[model.key] = Entry.of(model, found, _plan(model, found, around))
    lock = Lock(path or project.folder / LOCK_FILE, entries)
    lock.save()
    return lock


def _plan_all(project: Project, around: Circumstances, lock: Lock | None) -> list[tuple[ComposeModel, Plan]]:
    policy = around.policy()
    planned = []
    for model in project.models:
        reference, local = model.reference, True
        if lock is not None:
            reference = lock.pinned(model, plain_http=around.plain_http)
            local = find_stored(reference, around.store)
        found = find(reference, around.store, policy, plain_http=around.plain_http, local=local)
        item = _plan(model, found, around)
        if lock is not None:
            lock.check_engine(model, item)
        planned.append((model, item))
    return planned


def _plan(model: ComposeModel, found: Found, around: Circumstances) -> Plan:
    try:
        return plan(found, around.wishes(model))
    except InvalidInput as error:
        model.where.fail(f"{model.key}: {error}")


def _orders(planned: Sequence[tuple[ComposeModel, Plan]], around: Circumstances) -> list[Wanted]:
    """One order for each manifest. Raises `InvalidInput` where one is wanted in two ways."""
    chosen: dict[str, tuple[ComposeModel, Wanted]] = {}
    for model, item in planned:
        digest, wishes = item.found.model.digest, around.wishes(model)
        reference = item.found.reference.with_digest(digest)
        if str(digest) in chosen:
            other, wanted = chosen[str(digest)]
            if around.wishes(other) != wishes:
                model.where.fail(f"{model.key} and {other.key} are the same model, {digest}: give them equal settings")
            also = (*wanted.order.also, str(reference))
            chosen[str(digest)] = (other, Wanted(replace(wanted.order, also=also), wanted.plan))
            continue
        order = Order(
            str(reference), driver=wishes.driver, context_size=wishes.context_size, gpus=wishes.gpus,
            engine_path=str(wishes.engine_path) if wishes.engine_path else None, flags=tuple(wishes.flags),
            policy=around.stated_policy(), plain_http=around.plain_http, sandbox=wishes.sandbox,
        )  # fmt: skip
        chosen[str(digest)] = (model, Wanted(order, item))
    return [wanted for _, wanted in chosen.values()]


def _asked_as(model: ComposeModel, item: Plan) -> str:
    """The name clients ask for: the one in the file where the gateway knows it, else the full one."""
    return model.written if model.written in item.names else item.name
