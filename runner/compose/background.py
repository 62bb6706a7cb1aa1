"""The gateway of a Compose project as a process of its own, started by ``runner up``.

Usage: python -m runner.compose.background STORE PROJECT_FOLDER
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import typer

from artifact.errors import Malformed
from artifact.terminal import run as run_app
from runner.orders import Order
from runner.serve import listen_address, serve
from runner.store import Store

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
    serve(plans, place, address, project)


def main() -> NoReturn:
    """Run the gateway."""
    run_app(app)


if __name__ == "__main__":
    sys.exit(main())
