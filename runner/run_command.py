"""``runner run``: an answer of a model, or a conversation with it."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import typer

from artifact.errors import InvalidInput
from artifact.reference import Reference
from artifact.terminal import JsonOption, progress_bars
from runner import chat
from runner.conversation import converse
from runner.options import EngineCommand, OneReference, PlainHttpOption, PolicyOption, StoreOption, takes_wishes
from runner.plan import prepare
from runner.store import Store
from runner.wishes import Wishes, load_policy

run_app = typer.Typer()


@run_app.command(
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
