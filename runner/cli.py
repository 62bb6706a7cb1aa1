"""The ``runner`` command."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from artifact.errors import InvalidInput, NotFound, StowageError
from artifact.reference import Reference
from artifact.terminal import VersionOption, note, print_json, progress_bars
from artifact.terminal import run as run_app
from artifact.transfer import CONCURRENCY
from runner import chat, report
from runner.completion import whole_words
from runner.compose.commands import compose_app
from runner.conversation import converse
from runner.endpoint_commands import endpoint_app
from runner.engines.commands import app as engine_app
from runner.model import model_files
from runner.options import (
    EngineCommand,
    JsonOption,
    OneReference,
    PlainHttpOption,
    PolicyOption,
    References,
    StoreOption,
    StreamOption,
    takes_wishes,
)  # fmt: skip
from runner.plan import Wishes, load_policy, parse_references, prepare, served_name, with_adapters
from runner.pull import fetch, find
from runner.state import running
from runner.store import Store
from runner.store_commands import store_app
from supplychain.policy import Policy
from supplychain.verify import verify

app = typer.Typer(
    help="Pull models by digest, verify them against a policy, and serve them.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(epilog="Example: runner serve registry.example/team/model:4B-Q4_K_M --policy policy.yaml")
def _options(version: VersionOption = False) -> None: ...


@app.command("pull", epilog="Example: runner pull registry.example/team/model:4B-Q4_K_M --policy policy.yaml")
def pull_command(
    ref: OneReference,
    policy: PolicyOption = None,
    store: StoreOption = None,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Blobs fetched at a time.")] = CONCURRENCY,
    no_delta: Annotated[
        bool, typer.Option("--no-delta", help="Fetch every byte, also what other models in the store have.")
    ] = False,
    plain_http: PlainHttpOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch a model into the store, verified; print NAME@DIGEST."""
    place = Store(store)
    found = find(Reference.parse(ref), place, load_policy(policy), plain_http=plain_http, local=False)
    with progress_bars() as progress:
        fetched = fetch(found, place, progress, concurrency=concurrency, delta=not no_delta)
    bundle = place.bundle(found.model)
    if as_json:
        value = {"reference": found.pinned, "digest": str(found.model.digest), "bundle": str(bundle)}
        moved = {"moved": fetched.moved, "size": fetched.size}
        print_json({**value, **moved, "decision": found.decision.to_json() if found.decision else None})
    else:
        print(found.pinned)


@app.command("verify", epilog="Example: runner verify registry.example/team/model:4B-Q4_K_M --policy policy.yaml")
def verify_command(
    ref: OneReference,
    policy: Annotated[Path, typer.Option(help="The policy file.", envvar="STOWAGE_POLICY")],
    store: StoreOption = None,
    plain_http: PlainHttpOption = False,
    as_json: JsonOption = False,
) -> None:
    """Decide whether a policy allows a model; exit status 3 if it does not. Fetches no weights."""
    found = find(Reference.parse(ref), Store(store), None, plain_http=plain_http, source=None)
    subject = found.origin.resolve(found.model.digest)
    decision = verify(found.origin, found.reference, subject, Policy.load(policy))
    if as_json:
        print_json(decision.to_json())
    else:
        print(f"{'allowed' if decision.allowed else 'refused'} {decision.code.value} {found.pinned}")
        for step in decision.trace:
            print(report.plain(f"  {step.kind} {step.name}: {step.code.value}: {step.detail}"))
    decision.enforce()
    model_files(found.model.manifest, decision.grant.code)


@app.command(
    "run", cls=EngineCommand, epilog='Example: runner run registry.example/team/model:4B-Q4_K_M "Why is the sky blue?"'
)
@takes_wishes
def run_command(
    ctx: typer.Context,
    ref: OneReference,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The prompt; else standard input, else a conversation.")
    ] = None,
    policy: PolicyOption = None,
    store: StoreOption = None,
    plain_http: PlainHttpOption = False,
    as_json: JsonOption = False,
    api_key: Annotated[
        str, typer.Option(envvar=chat.KEY_VARIABLE, help="Key for a runner that serves the model and asks for keys.")
    ] = "",
    *,
    wishes: Wishes,
) -> None:
    """Ask a model once, or talk to it."""
    place, rules = Store(store), load_policy(policy)
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read()
    if prompt is not None and not prompt.strip():
        raise InvalidInput("the prompt is empty")
    with progress_bars() as progress:
        planned = prepare(Reference.parse(ref), place, rules, wishes, progress, plain_http=plain_http)
    if prompt is None:
        asyncio.run(converse(planned, place, api_key))
    else:
        asyncio.run(chat.one_shot(planned, place, prompt, as_json=as_json, api_key=api_key))


@app.command("list", epilog="Example: runner list --json")
def list_command(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List the models in the store."""
    report.print_models(Store(store).models(), as_json=as_json)


@app.command("rm", epilog="Example: runner rm registry.example/team/model:4B-Q4_K_M")
def rm_command(refs: References, store: StoreOption = None) -> None:
    """Remove models from the store, with the bytes nothing else needs."""
    place = Store(store)
    for reference in parse_references(refs):
        descriptor = place.find(reference)
        if descriptor is None:
            raise NotFound(f"{reference} is not in the store (runner list shows what is)")
        if any(model.digest == str(descriptor.digest) for run in running(place.root) for model in run.models):
            raise StowageError(f"{reference} is being served: stop it first (runner stop {reference})")
        note(f"removed {reference}, {report.human_bytes(place.remove(reference))} freed")


@app.command("inspect", cls=EngineCommand, epilog="Example: runner inspect team/model:4B-Q4_K_M --command")
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
        if wishes.flags or wishes.driver or wishes.engine_path:
            raise
        note(f"note: {error}")
        shown = None
    name = served_name(found.reference, str(found.model.digest))
    value = report.description(found.model, name, place.record(found.model.digest), shown)
    print_json(value) if as_json else report.print_description(value)


app.add_typer(endpoint_app)
app.add_typer(compose_app)
app.add_typer(store_app)
app.add_typer(engine_app, name="engine")


def main() -> NoReturn:
    """Run the command line."""
    with whole_words(os.environ):
        run_app(app)
