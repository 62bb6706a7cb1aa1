"""The gateway that Docker Compose's calls share, whatever project they come from.

It listens where ``$STOWAGE_MODEL_LISTEN`` says, and services reach it at ``$STOWAGE_MODEL_ENDPOINT``: Compose asks for
the address while the models are still being started, so it cannot depend on them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from artifact.errors import NotFound
from artifact.progress import Progress
from artifact.reference import Reference
from artifact.terminal import note
from runner.compose.gateway import ProjectGateway, Wanted
from runner.orders import Order
from runner.plan import plan
from runner.pull import absolute, fetch, find
from runner.serve import DEFAULT_LISTEN, listen_address, written
from runner.store import Store
from runner.wishes import POLICY_VARIABLE, Wishes, load_policy

LISTEN_VARIABLE, ENDPOINT_VARIABLE = "STOWAGE_MODEL_LISTEN", "STOWAGE_MODEL_ENDPOINT"
_ID = "docker-model"
_DEFAULT_TAG = "latest"


def reference_of(text: str) -> Reference:
    """A reference as Docker's users write it: without tag and digest it means the tag ``latest``."""
    reference = Reference.parse(text)
    if reference.tag is None and reference.digest is None and reference.layout is None:
        reference = reference.with_tag(_DEFAULT_TAG)
    return absolute(reference)


def listen() -> str:
    """Where the shared gateway listens. Raises `InvalidInput`."""
    return written(listen_address(os.environ.get(LISTEN_VARIABLE) or DEFAULT_LISTEN))


def endpoint_on_host() -> str:
    """The shared gateway's API as processes on this host reach it."""
    return f"http://{listen()}/engines/v1/"


def endpoint() -> str:
    """The shared gateway's API as services reach it."""
    return os.environ.get(ENDPOINT_VARIABLE) or endpoint_on_host()


class SharedGateway:
    """The models that Docker Compose asked for."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._gateway = ProjectGateway(store, _ID)

    @property
    def running(self) -> bool:
        """Whether it serves now."""
        return self._gateway.run() is not None

    def pull(self, text: str, progress: Progress) -> str:
        """Fetch a model as it is now; return its pinned reference."""
        found = find(reference_of(text), self._store, load_policy(None), local=False)
        fetch(found, self._store, progress)
        return found.pinned

    def serve(self, texts: Sequence[str], wishes: Wishes, progress: Progress, owner: str = "") -> None:
        """Serve models from now on, besides those that are served. Without `owner` for good, else until `release`."""
        policy = load_policy(None)
        planned = [plan(find(reference_of(text), self._store, policy), wishes) for text in texts]
        for item in planned:
            fetch(item.found, self._store, progress)
        stated = os.environ.get(POLICY_VARIABLE)
        with self._gateway.locked():
            wanted = {item.digest: item for item in self._wanted()}
            for item in planned:
                digest = item.found.model.digest
                before = wanted.get(str(digest))
                owners = {*before.order.owners, owner} if before else {owner}
                reference = item.found.reference.with_digest(digest)
                also = {before.order.reference, *before.order.also} - {str(reference)} if before else set()
                order = Order(
                    str(reference), tuple(sorted(also)), wishes.driver, wishes.context_size, wishes.gpus,
                    str(wishes.engine_path) if wishes.engine_path else None, tuple(wishes.flags),
                    os.path.abspath(stated) if stated else None, owners=tuple(sorted(owners)),  # noqa: PTH100
                    sandbox=wishes.sandbox,
                )  # fmt: skip
                wanted[str(digest)] = Wanted(order, item)
            self._gateway.apply(list(wanted.values()), listen(), DEFAULT_LISTEN)

    def release(self, owner: str) -> None:
        """Stop what nobody but `owner` asked for."""
        with self._gateway.locked():
            kept: dict[str, Order] = {}
            for digest, order in self._gateway.orders().items():
                if owners := tuple(name for name in order.owners if name != owner):
                    kept[digest] = replace(order, owners=owners)
            self._gateway.keep(kept, listen())

    def _wanted(self) -> list[Wanted]:
        """What was asked for before, without what is no longer in the store."""
        wanted = []
        for order in self._gateway.orders().values():
            if self._store.find(Reference.parse(order.reference)) is None:
                note(f"note: {order.reference} is no longer in the store: it is not served")
                continue
            try:
                wanted.append(Wanted(order, order.plan(self._store)))
            except NotFound as error:
                note(f"note: {order.reference} is not served: {error}")
        return wanted
