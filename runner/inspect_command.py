"""``runner inspect``: what a model is, and exactly how it would run."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import typer

from artifact.errors import InvalidInput, Refused, StowageError
from artifact.reference import Reference
from artifact.terminal import JsonOption, note, print_json
from runner import report
from runner.model import Model
from runner.names import served_name
from runner.options import EngineCommand, OneReference, PlainHttpOption, StoreOption, StreamOption, takes_wishes
from runner.plan import Plan, with_adapters
from runner.pull import find
from runner.records import recorded_name
from runner.sandbox.confine import foreseen
from runner.sandbox.rules import MODES, Confinement
from runner.store import Store
from runner.wishes import Wishes

inspect_app = typer.Typer()


@inspect_app.command("inspect", cls=EngineCommand, epilog="Example: runner inspect team/model:4B-Q4_K_M --command")
@takes_wishes
def inspect_command(
    ctx: typer.Context,
    ref: OneReference,
    command: Annotated[bool, typer.Option("--command", help="Print only the exact engine command line.")] = False,
    store: StoreOption = None,
    plain_http: PlainHttpOption = False,
    as_json: JsonOption = False,
    stream: StreamOption = False,
    *,
    wishes: Wishes,
) -> None:
    """Show what a model is, and exactly how it would run. Fetches no weights."""
    place, wishes = Store(store), replace(wishes, stream=stream)
    found = find(Reference.parse(ref), place, None, plain_http=plain_http)
    if command:
        planned = with_adapters(found, wishes, place, None, plain_http=plain_http)
        print_json(planned.command.to_json()) if as_json else print(planned.command)
        return
    try:
        shown = with_adapters(found, wishes, place, None, plain_http=plain_http)
    except StowageError as error:
        if _is_about(wishes, error):
            raise
        note(f"note: {error}")
        shown = None
    name = served_name(found.reference, str(found.model.digest))
    record = place.record(found.model.digest, recorded_name(found.reference))
    value = _description(found.model, name, record, shown)
    print_json(value) if as_json else _print_description(value)


def _is_about(wishes: Wishes, error: StowageError) -> bool:
    """Whether `error` is about how the user wants to run a model, and not about the model or this host."""
    if wishes.flags or wishes.driver or wishes.engine_path:
        return True
    usual = wishes.sandbox in MODES and replace(wishes, sandbox=Wishes().sandbox) == Wishes()
    return isinstance(error, (InvalidInput, Refused)) and not usual


def _description(model: Model, name: str, record: dict[str, Any], plan: Plan | None) -> dict[str, Any]:
    """All that is known about one model."""
    config = model.config
    return {
        "name": name,
        "digest": str(model.digest),
        "format": config.format,
        "precision": config.precision,
        "parameters": config.parameters,
        "architecture": config.architecture,
        "context_length": config.context_length,
        "licenses": list(config.licenses),
        "size": model.size,
        "verified": record.get("verified"),
        "files": [{"path": f.path, "digest": str(f.blob.digest), "size": f.blob.size} for f in model.files],
        "command": plan.command.to_json() if plan else None,
        "sandbox": foreseen(plan.command.rules).to_json() if plan else None,
    }


def _print_description(value: dict[str, Any]) -> None:
    """One model, for people."""
    for key in ("name", "digest", "format", "precision", "parameters", "architecture", "context_length", "size"):
        print(f"{key.replace('_', ' '):15} {value[key] if value[key] not in (None, '', 0) else '-'}")
    print(f"{'licences':15} {', '.join(value['licenses']) or '-'}")
    print(f"{'verified by':15} {report.verified_by(value)}")
    print("files")
    report.print_table(
        (), [(f"  {item['path']}", report.human_bytes(item["size"]), item["digest"]) for item in value["files"]]
    )
    if value["command"]:
        print(f"{'engine':15} {value['command']['engine']} ({value['command']['version']})")
        print(f"{'engine lock':15} {value['command']['lock'] or '-'}")
    if value["sandbox"]:
        print(f"{'sandbox':15} {Confinement(**value['sandbox'])}")
