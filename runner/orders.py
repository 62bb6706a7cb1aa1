"""Orders to a runner that serves already: start one more model, exactly as stated.

An order is a file in the folder of the runner's registration; a signal tells the runner to look. It answers by serving
the model, or with a file that says why it does not. Only the store's owner can write there.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from artifact.errors import Malformed
from artifact.layout.files import write_atomically
from artifact.progress import Quiet
from artifact.reference import Reference
from runner.names import served_names
from runner.plan import Plan, prepare
from runner.state import Run
from runner.store import Store
from runner.wishes import Wishes
from supplychain.policy import Policy

_ORDERS, _REFUSALS, _PROJECT = "orders", "refusals", "project"


@dataclass(frozen=True)
class Order:
    """One model to serve: its reference with its digest, the other references it shall answer to, and how to run it.
    `policy` is the path of the policy file that decides once more before an engine sees it; `owners` are those who
    asked for the model, where it is stopped when the last of them is gone. Without `sandbox` the runner's own holds."""

    reference: str
    also: Sequence[str] = ()
    driver: str | None = None
    context_size: int | None = None
    gpus: str | None = None
    engine_path: str | None = None
    flags: Sequence[str] = ()
    policy: str | None = None
    plain_http: bool = False
    owners: Sequence[str] = ()
    sandbox: str | None = None
    lora: Sequence[str] = ()
    id: str = field(default_factory=lambda: secrets.token_hex(8))

    def to_json(self) -> dict[str, Any]:
        """The order as it is written down."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Order:
        """Read an order. Raises `Malformed`."""
        try:
            lists = {key: tuple(value.get(key, ())) for key in ("also", "flags", "owners", "lora")}
            return cls(**{**value, **lists})
        except (TypeError, KeyError, AttributeError) as error:
            raise Malformed(f"this order cannot be read: {error}") from None

    @property
    def wishes(self) -> Wishes:
        """How the model shall run."""
        path = Path(self.engine_path) if self.engine_path else None
        sandbox = self.sandbox or Wishes().sandbox
        return Wishes(self.driver, self.context_size, self.gpus, path, tuple(self.flags), sandbox, tuple(self.lora))

    def plan(self, store: Store) -> Plan:
        """Decide by the policy and plan, and fetch what is missing."""
        policy = Policy.load(self.policy) if self.policy else None
        reference = Reference.parse(self.reference)
        return prepare(reference, store, policy, self.wishes, Quiet(), plain_http=self.plain_http)

    def names(self, digest: str) -> frozenset[str]:
        """The names the model answers to because of `also`."""
        return frozenset[str]().union(*(served_names(Reference.parse(text), digest) for text in self.also))


def name_project(folder: Path, project: str) -> None:
    """Say in a registration's folder which project this runner serves."""
    write_atomically(folder / _PROJECT, project.encode(), 0o600)


def project_of(folder: Path) -> str:
    """The project a registered runner serves, empty if it serves none."""
    with suppress(OSError, UnicodeDecodeError):
        return (folder / _PROJECT).read_text()
    return ""


def give(run: Run, order: Order) -> None:
    """Order a registered runner to serve one more model."""
    orders = run.folder / _ORDERS
    orders.mkdir(mode=0o700, exist_ok=True)
    write_atomically(orders / f"{order.id}.json", json.dumps(order.to_json()).encode(), 0o600)
    run.notify()


def take(folder: Path) -> list[Order]:
    """The orders given to this runner since it last looked."""
    taken: list[Order] = []
    with suppress(FileNotFoundError):
        for path in sorted((folder / _ORDERS).glob("*.json")):
            with suppress(ValueError, Malformed):
                taken.append(Order.from_json(json.loads(path.read_bytes())))
            path.unlink(missing_ok=True)
    return taken


def refuse(folder: Path, order: Order, reason: str, status: int) -> None:
    """Say why an order was not carried out; `status` is the exit status the reason has."""
    refusals = folder / _REFUSALS
    refusals.mkdir(mode=0o700, exist_ok=True)
    write_atomically(refusals / order.id, json.dumps([reason, status]).encode(), 0o600)


def refusal(folder: Path, order: Order) -> tuple[str, int] | None:
    """Why an order was not carried out, with the exit status, or None."""
    with suppress(OSError, ValueError):
        reason, status = json.loads((folder / _REFUSALS / order.id).read_bytes())
        return str(reason), int(status)
    return None
