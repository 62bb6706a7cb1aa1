"""``runner pull``, ``verify``, ``list`` and ``rm``: models, and the store they are in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from artifact.errors import NotFound, StowageError
from artifact.reference import Reference
from artifact.terminal import JsonOption, note, print_json, progress_bars
from artifact.transfer import CONCURRENCY
from runner import report
from runner.model import CodeRefused, model_files
from runner.options import OneReference, PlainHttpOption, PolicyOption, References, StoreOption
from runner.pull import Found, fetch, find
from runner.state import running
from runner.store import Store
from runner.wishes import load_policy, parse_references
from supplychain.refusal import Reason
from supplychain.trace import Step

if TYPE_CHECKING:
    from supplychain.decision import Decision

model_app = typer.Typer()


@model_app.command("pull", epilog="Example: runner pull registry.example/team/model:4B-Q4_K_M --policy policy.yaml")
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


@model_app.command("verify", epilog="Example: runner verify registry.example/team/model:4B-Q4_K_M --policy policy.yaml")
def verify_command(
    ref: OneReference,
    policy: Annotated[Path, typer.Option(help="The policy file.", envvar="STOWAGE_POLICY")],
    store: StoreOption = None,
    plain_http: PlainHttpOption = False,
    as_json: JsonOption = False,
) -> None:
    """Decide whether a policy allows a model; exit status 3 if it does not. Fetches no weights."""
    from supplychain.policy import Policy  # here, like everything that only a policy needs: it takes a while to load
    from supplychain.verify import verify

    found = find(Reference.parse(ref), Store(store), None, plain_http=plain_http, source=None)
    subject = found.origin.resolve(found.model.digest)
    decision = _unless_code(found, verify(found.origin, found.reference, subject, Policy.load(policy)))
    if as_json:
        print_json(decision.to_json())
    else:
        report.print_decision(decision, found.pinned)
    decision.enforce()


def _unless_code(found: Found, decision: Decision) -> Decision:
    """The decision, refused if the model carries code that it does not let run."""
    try:
        model_files(found.model.manifest, decision.grant.code)
    except CodeRefused as error:
        if decision.allowed:
            step = Step("grant", "code", Reason.NOT_GRANTED, str(error))
            told = f"{decision.reference}@{decision.subject.short} refused by {decision.policy}: {step.code}: {error}"
            return replace(decision, allowed=False, code=step.code, reason=told, trace=(*decision.trace, step))
    return decision


@model_app.command("list", epilog="Example: runner list --json")
def list_command(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List the models in the store."""
    report.print_models(Store(store).models(), as_json=as_json)


@model_app.command("rm", epilog="Example: runner rm registry.example/team/model:4B-Q4_K_M")
def rm_command(refs: References, store: StoreOption = None) -> None:
    """Remove models from the store, with the bytes nothing else needs."""
    place = Store(store)
    for reference in parse_references(refs):
        descriptor = place.find(reference)
        if descriptor is None:
            raise NotFound(f"{reference} is not in the store (runner list shows what is)")
        for model in (model for run in running(place.root) for model in run.models):
            if str(descriptor.digest) == model.digest:
                raise StowageError(f"{reference} is being served: stop it first (runner stop {reference})")
            if str(descriptor.digest) in model.digests:
                raise StowageError(
                    f"{reference} is an adapter of {model.name}, which is being served: stop that first "
                    f"(runner stop {model.name})"
                )
        note(f"removed {reference}, {report.human_bytes(place.remove(reference))} freed")
