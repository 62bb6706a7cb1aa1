"""The ``runner`` command."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from artifact.errors import InvalidInput, NotFound, StowageError
from artifact.reference import Reference
from artifact.terminal import note, print_json, progress_bars
from artifact.terminal import run as run_app
from artifact.transfer import CONCURRENCY
from artifact.version import __version__
from runner import chat, report
from runner.completion import complete_reference
from runner.compose.commands import FilesOption, compose_app, open_project
from runner.conversation import converse
from runner.endpoint_commands import endpoint_app
from runner.engines.commands import app as engine_app
from runner.options import (
    ContextOption,
    DriverOption,
    EngineCommand,
    EnginePathOption,
    GpusOption,
    JsonOption,
    PlainHttpOption,
    PolicyOption,
    SandboxOption,
    StoreOption,
    engine_flags,
)  # fmt: skip
from runner.orders import project_of
from runner.plan import Wishes, load_policy, parse_references, plan, prepare, served_name, served_names
from runner.pull import absolute, fetch, find
from runner.state import Served, running, stop
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
_REFERENCE_HELP = "[HOST/]NAME[:TAG][@DIGEST] or oci:PATH:TAG"
References = Annotated[
    list[str], typer.Argument(metavar="REF...", help=_REFERENCE_HELP, autocompletion=complete_reference)
]
OneReference = Annotated[str, typer.Argument(metavar="REF", help=_REFERENCE_HELP, autocompletion=complete_reference)]


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"runner {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


@app.command("pull", epilog="Example: runner pull registry.example/team/model:4B-Q4_K_M --policy policy.yaml")
def pull_command(
    ref: OneReference,
    policy: PolicyOption = None,
    store: StoreOption = None,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Blobs fetched at a time.")] = CONCURRENCY,
    plain_http: PlainHttpOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch a model into the store, verified; print NAME@DIGEST."""
    place = Store(store)
    found = find(Reference.parse(ref), place, load_policy(policy), plain_http=plain_http, local=False)
    with progress_bars() as progress:
        fetch(found, place, progress, concurrency=concurrency)
    bundle = place.bundle(found.model)
    if as_json:
        value = {"reference": found.pinned, "digest": str(found.model.digest), "bundle": str(bundle)}
        print_json({**value, "decision": found.decision.to_json() if found.decision else None})
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
    found = find(Reference.parse(ref), Store(store), None, plain_http=plain_http)
    subject = found.origin.resolve(found.model.digest)
    decision = verify(found.origin, found.reference, subject, Policy.load(policy))
    if as_json:
        print_json(decision.to_json())
    else:
        print(f"{'allowed' if decision.allowed else 'refused'} {decision.code.value} {found.pinned}")
        for step in decision.trace:
            print(report.plain(f"  {step.kind} {step.name}: {step.code.value}: {step.detail}"))
    decision.enforce()


@app.command(
    "run", cls=EngineCommand, epilog='Example: runner run registry.example/team/model:4B-Q4_K_M "Why is the sky blue?"'
)
def run_command(
    ctx: typer.Context,
    ref: OneReference,
    prompt: Annotated[str | None, typer.Argument(help="The prompt; else standard input, else a conversation.")] = None,
    driver: DriverOption = None,
    policy: PolicyOption = None,
    context_size: ContextOption = None,
    gpus: GpusOption = None,
    engine_path: EnginePathOption = None,
    sandbox: SandboxOption = "auto",
    store: StoreOption = None,
    plain_http: PlainHttpOption = False,
    as_json: JsonOption = False,
) -> None:
    """Ask a model once, or talk to it."""
    place, rules = Store(store), load_policy(policy)
    wishes = Wishes(driver, context_size, gpus, engine_path, engine_flags(ctx), sandbox)
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read()
    if prompt is not None and not prompt.strip():
        raise InvalidInput("the prompt is empty")
    with progress_bars() as progress:
        planned = prepare(Reference.parse(ref), place, rules, wishes, progress, plain_http=plain_http)
    if prompt is None:
        asyncio.run(converse(planned, place))
    else:
        asyncio.run(chat.one_shot(planned, place, prompt, as_json=as_json))


@app.command("list", epilog="Example: runner list --json")
def list_command(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List the models in the store."""
    report.print_models(Store(store).models(), as_json=as_json)


@app.command("ps", epilog="Example: runner ps -f compose.yaml")
def ps_command(files: FilesOption = None, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List what is served now; with -f only by the gateway of that Compose file."""
    runs = running(Store(store).root)
    if files:
        project = open_project(files).id
        runs = [run for run in runs if project_of(run.folder) == project]
    report.print_runs(runs, as_json=as_json)


@app.command("stop", epilog="Example: runner stop registry.example/team/model:4B-Q4_K_M")
def stop_command(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Models; else all.")] = None,
    store: StoreOption = None,
) -> None:
    """Stop serving models, and their engines."""
    runs = running(Store(store).root)
    if not names:
        for run in runs:
            stop(run)
        return
    for name in names:
        hits = [(run, _digests_named(name, run.models)) for run in runs]
        if not any(digests for _, digests in hits):
            raise NotFound(f"{name} is not served (runner ps lists what is)")
        for run, digests in hits:
            if digests:
                stop(run, digests)


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
def inspect_command(
    ctx: typer.Context,
    ref: OneReference,
    command: Annotated[bool, typer.Option("--command", help="Print only the exact engine command line.")] = False,
    driver: DriverOption = None,
    context_size: ContextOption = None,
    gpus: GpusOption = None,
    engine_path: EnginePathOption = None,
    sandbox: SandboxOption = "auto",
    store: StoreOption = None,
    plain_http: PlainHttpOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show what a model is, and exactly how it would run. Fetches no weights."""
    place = Store(store)
    found = find(Reference.parse(ref), place, None, plain_http=plain_http)
    wishes = Wishes(driver, context_size, gpus, engine_path, engine_flags(ctx), sandbox)
    if command:
        planned = plan(found, wishes)
        print_json(planned.command.to_json()) if as_json else print(planned.command)
        return
    try:
        shown = plan(found, wishes)
    except StowageError as error:
        if engine_flags(ctx) or driver or engine_path:
            raise
        note(f"note: {error}")
        shown = None
    name = served_name(found.reference, str(found.model.digest))
    value = report.description(found.model, name, place.record(found.model.digest), shown)
    print_json(value) if as_json else report.print_description(value)


app.add_typer(compose_app)
app.add_typer(engine_app, name="engine")
app.add_typer(store_app)
app.add_typer(endpoint_app)


def _digests_named(name: str, models: Sequence[Served]) -> set[str]:
    """Digests of the served models that `name` means."""
    wanted = name if name.startswith("sha256:") else str(absolute(Reference.parse(name)))
    return {
        model.digest for model in models if wanted in served_names(absolute(Reference.parse(model.name)), model.digest)
    }


def main() -> NoReturn:
    """Run the command line."""
    run_app(app)
