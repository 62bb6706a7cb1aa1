"""The gateway of a Compose project as a process of its own, started by ``runner up``.

Usage: python -m runner.compose.background STORE PROJECT_FOLDER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import typer

from artifact.errors import Malformed
from artifact.terminal import run as run_app
from runner.orders import Order
from runner.serve import Settings, listen_address, serve
from runner.store import Store
from runner.wishes import Wishes
from supplychain.policy import Policy

WANTED = "wanted.json"
"""What the gateway shall serve, in the project's folder in the store."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def serve_project(store: Path, folder: Path) -> None:
    """Serve what the project wants until told to stop."""
    place = Store(store)
    try:
        wanted = json.loads((folder / WANTED).read_bytes())
        orders = [Order.from_json(item) for item in wanted["orders"]]
        address, project = listen_address(wanted["listen"]), str(wanted["project"])
    except (ValueError, KeyError, TypeError) as error:
        raise Malformed(f"{folder / WANTED} cannot be read: {error}") from None
    plans = []
    for order in orders:
        plan = order.plan(place)
        plans.append(replace(plan, names=plan.names | order.names(str(plan.found.model.digest))))
    serve(plans, place, address, settings_for(orders), project)


def settings_for(orders: Sequence[Order]) -> Settings:
    """How a gateway with these orders serves what comes to it by other ways: no less strictly than what was ordered.
    Raises `InvalidInput` for a policy that cannot be read."""
    policies = {order.policy for order in orders}
    file = policies.pop() if len(policies) == 1 else None
    sandboxes = {order.wishes.sandbox for order in orders}
    sandbox = sandboxes.pop() if len(sandboxes) == 1 else "required" if "required" in sandboxes else "auto"
    return replace(
        Settings.of_environment(),
        policy=Policy.load(file) if file else None,
        policy_file=Path(file) if file else None,
        divided=bool(policies),
        plain_http=bool(orders) and all(order.plain_http for order in orders),
        wishes=Wishes(sandbox=sandbox),
    )


def main() -> NoReturn:
    """Run the gateway."""
    run_app(app)


if __name__ == "__main__":
    sys.exit(main())
