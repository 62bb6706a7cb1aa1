"""``runner serve``: models behind an endpoint."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from artifact.errors import InvalidInput
from artifact.terminal import note, progress_bars
from runner import configured
from runner.administration import resumed
from runner.completion import complete_reference
from runner.configured import Configured, Keeping
from runner.fleet import MAX_RESTARTS
from runner.keys import KEYS_VARIABLE
from runner.options import EngineCommand, PlainHttpOption, PolicyOption, StoreOption, StreamOption, takes_wishes
from runner.plan import Plan, prepare
from runner.serve import DEFAULT_LISTEN, DRAIN, INSECURE_VARIABLE, Settings, check_free, listen_address, serve
from runner.store import Store
from runner.wishes import POLICY_VARIABLE, Wishes, load_policy, parse_references

serve_app = typer.Typer()

KeysOption = Annotated[Path | None, typer.Option("--keys", help="The file with the API keys.", envvar=KEYS_VARIABLE)]
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(s|m|h|)")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


@serve_app.command(
    "serve",
    cls=EngineCommand,
    epilog="Example: runner serve registry.example/team/model:4B-Q4_K_M --policy policy.yaml -- --parallel 8",
)
@takes_wishes
def serve_command(
    ctx: typer.Context,
    refs: Annotated[
        list[str] | None,
        typer.Argument(metavar="REF", help="Models; else those served last.", autocompletion=complete_reference),
    ] = None,
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where the endpoint listens.")] = DEFAULT_LISTEN,
    policy: PolicyOption = None,
    store: StoreOption = None,
    plain_http: PlainHttpOption = False,
    keys: KeysOption = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Let everybody who reaches the port use the models.", envvar=INSECURE_VARIABLE),
    ] = False,
    idle_timeout: Annotated[str, typer.Option(metavar="TIME", help="Unload a model idle so long: 90s, 10m, 1h.")] = "0",
    pin: Annotated[bool, typer.Option("--pin", help="Never unload these models, not even to make room.")] = False,
    lazy: Annotated[bool, typer.Option("--lazy", help="Load a model when it is first asked for.")] = False,
    memory: Annotated[str, typer.Option(metavar="SIZE", help="What all models may need, e.g. 12GiB.")] = "0",
    max_restarts: Annotated[int, typer.Option(min=0, help="Restarts in a row of a crashed engine.")] = MAX_RESTARTS,
    drain: Annotated[float, typer.Option(min=0, help="Seconds requests have to finish when it stops.")] = DRAIN,
    resume: Annotated[bool, typer.Option("--resume", help="Serve what was served last, besides REF.")] = False,
    stream: StreamOption = False,
    *,
    wishes: Wishes,
) -> None:
    """Serve models over the OpenAI API, in the foreground."""
    address = listen_address(listen)
    keeping = Keeping(seconds(idle_timeout), pin, lazy)
    if pin and keeping.idle_timeout:
        raise InvalidInput("--pin keeps a model for ever, --idle-timeout does not: state one of them")
    place = Store(store)
    last = configured.Configuration()
    if resume or not refs:
        last = configured.load(configured.configuration_path(place.root, address))
    settings = Settings(
        keys, insecure, size(memory), max_restarts, drain, policy_file=_policy_file(policy, last.policy),
        plain_http=plain_http or last.plain_http, wishes=replace(wishes, stream=stream), keeping=keeping,
        configured={item.digest: item for item in last.models},
    )  # fmt: skip
    settings.key_file(address)
    check_free(address)
    plans, settings = _plans(refs or [], last.models, place, settings)
    serve(plans, place, address, settings=settings)


def _policy_file(stated: Path | None, remembered: str | None) -> Path | None:
    """The policy file that decides: the one that is stated, here or in the environment, else the one of last time."""
    text = str(stated or os.environ.get(POLICY_VARIABLE) or remembered or "")
    if not text:
        return None
    path = Path(text).absolute()
    if remembered and str(path) != remembered:
        note(f"note: {path} decides from now on, no longer {remembered}, which did when this was served last")
    return path


def _plans(
    refs: Sequence[str], last: Sequence[Configured], store: Store, settings: Settings
) -> tuple[list[Plan], Settings]:
    rules = load_policy(settings.policy_file)
    settings = settings.with_policy(rules)
    if not refs and not last:
        note("note: nothing was served here before: models come by POST /models/create")
    with progress_bars() as progress:
        plans = [
            prepare(reference, store, rules, settings.wishes, progress, plain_http=settings.plain_http)
            for reference in parse_references(refs)
        ]
        stated = {str(plan.found.model.digest) for plan in plans}
        settings = settings.without(stated)
        kept = [item for item in last if item.digest not in stated]
        return [*plans, *(resumed(item, store, rules, progress, settings.plain_http) for item in kept)], settings


def seconds(text: str) -> float:
    """A duration such as ``90s``, ``10m``, ``1h``, ``30``, in seconds. Raises `InvalidInput`."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise InvalidInput(f"--idle-timeout must be a time such as 90s, 10m or 1h, not {text[:40]!r}")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def size(text: str) -> int:
    """A size such as ``12GiB`` or ``800M``, in bytes (units are powers of 1024). Raises `InvalidInput`."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidInput(f"--memory must be a size such as 12GiB, not {text[:40]!r}")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))
