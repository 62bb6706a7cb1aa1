"""``runner serve``, ``logs`` and ``key``: the endpoint, what its engines write, and who may use it."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from artifact.errors import InvalidInput, NotFound
from artifact.reference import Reference
from artifact.terminal import note, print_json, progress_bars
from runner import configured, logs, report
from runner.administration import resumed
from runner.configured import Configured, Keeping
from runner.fleet import MAX_RESTARTS
from runner.keys import INFER, KEYS_VARIABLE, KeyFile
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
from runner.plan import Plan, Wishes, load_policy, parse_references, prepare
from runner.pull import absolute
from runner.serve import DEFAULT_LISTEN, DRAIN, INSECURE_VARIABLE, Settings, check_free, listen_address, serve
from runner.state import running
from runner.store import Store

endpoint_app = typer.Typer()
key_app = typer.Typer(help="Make, list and remove API keys.", no_args_is_help=True)
endpoint_app.add_typer(key_app, name="key")

KeysOption = Annotated[Path | None, typer.Option("--keys", help="The file with the API keys.", envvar=KEYS_VARIABLE)]
KeyFileOption = Annotated[Path, typer.Option("--keys", help="The file with the API keys.", envvar=KEYS_VARIABLE)]
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(s|m|h|)")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


@endpoint_app.command(
    "serve",
    cls=EngineCommand,
    epilog="Example: runner serve registry.example/team/model:4B-Q4_K_M --policy policy.yaml -- --parallel 8",
)
def serve_command(
    ctx: typer.Context,
    refs: Annotated[
        list[str] | None, typer.Argument(metavar="[REF]...", help="Models; else those served last.")
    ] = None,
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where the endpoint listens.")] = DEFAULT_LISTEN,
    driver: DriverOption = None,
    policy: PolicyOption = None,
    context_size: ContextOption = None,
    gpus: GpusOption = None,
    engine_path: EnginePathOption = None,
    sandbox: SandboxOption = "auto",
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
) -> None:
    """Serve models over the OpenAI API, in the foreground."""
    address = listen_address(listen)
    wishes = Wishes(driver, context_size, gpus, engine_path, engine_flags(ctx), sandbox)
    keeping = Keeping(seconds(idle_timeout), pin, lazy)
    if pin and keeping.idle_timeout:
        raise InvalidInput("--pin keeps a model for ever, --idle-timeout does not: state one of them")
    place = Store(store)
    last = configured.Configuration()
    if resume or not refs:
        last = configured.load(configured.configuration_path(place.root, address))
    policy = policy or (Path(last.policy) if last.policy else None)
    settings = Settings(
        keys, insecure, size(memory), max_restarts, drain, None, policy, plain_http or last.plain_http, wishes, keeping,
        {item.digest: item for item in last.models},
    )  # fmt: skip
    settings.key_file(address)
    check_free(address)
    plans, settings = _plans(refs or [], last.models, place, settings)
    serve(plans, place, address, settings=settings)


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


@endpoint_app.command("logs", epilog="Example: runner logs team/model:4B-Q4_K_M -f")
def logs_command(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A model; else all that are served.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the model is stopped.")] = False,
    tail: Annotated[int, typer.Option("--tail", "-n", min=0, help="Lines from the end.")] = 100,
    store: StoreOption = None,
) -> None:
    """Show what the engines write."""
    place = Store(store)
    served = {model.digest: Path(model.log) for run in running(place.root) for model in run.models}
    paths = (
        served
        if name is None
        else {digest: place.root / "logs" / f"{digest[7:]}.log" for digest in _named(name, place)}
    )
    if follow and len(paths) > 1:
        raise InvalidInput(f"{len(paths)} models are served: name the one to follow")
    for digest, path in paths.items():
        if len(paths) > 1:
            print(f"==> {digest} <==", flush=True)
        _write(logs.tail(path, tail))
        if follow:
            for piece in logs.follow(path, partial(_is_served, place, digest)):
                _write(piece)


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.flush()


def _is_served(store: Store, digest: str) -> bool:
    return any(digest == model.digest for run in running(store.root) for model in run.models)


def _named(name: str, store: Store) -> list[str]:
    """Digests of the model that `name` means: one that is served, else one in the store. Raises `NotFound`."""
    served = [model for run in running(store.root) for model in run.models]
    found = {model.digest for model in served if name in (model.name, model.digest, model.digest[:19])}
    if not found:
        descriptor = None if name.startswith("sha256:") else store.find(absolute(Reference.parse(name)))
        found = {str(descriptor.digest)} if descriptor else set()
        if name.startswith("sha256:") and (store.root / "logs" / f"{name[7:]}.log").exists() and name[7:].isalnum():
            found = {name}
    if not found:
        raise NotFound(f"{name} is neither served nor in the store (runner ps and runner list show what is)")
    return sorted(found)


@key_app.command("add", epilog="Example: runner key add laptop --scope infer --rate 60 --keys keys.json")
def key_add_command(
    name: Annotated[str, typer.Argument(help="What the key is called, in lists and metrics.")],
    keys: KeyFileOption,
    scope: Annotated[list[str] | None, typer.Option(help="infer (the default) or admin; give both for both.")] = None,
    rate: Annotated[int, typer.Option(min=0, help="Requests a minute; 0 for no limit.")] = 0,
) -> None:
    """Make a key and print it. It is not shown again: the file holds only its hash."""
    print(KeyFile(keys).add(name, scope or [INFER], rate))


@key_app.command("list", epilog="Example: runner key list --keys keys.json")
def key_list_command(keys: KeyFileOption, as_json: JsonOption = False) -> None:
    """List the keys in a file."""
    found = KeyFile(keys).keys()
    if as_json:
        print_json(
            [
                {"name": k.name, "id": k.id, "scopes": list(k.scopes), "rate": k.rate, "created": k.created}
                for k in found
            ]
        )
        return
    rows = [
        (
            key.name,
            key.id,
            ",".join(key.scopes),
            str(key.rate or "-"),
            time.strftime("%Y-%m-%d", time.gmtime(key.created)),
        )
        for key in found
    ]
    report.print_table(("NAME", "ID", "SCOPES", "RATE", "CREATED"), rows)


@key_app.command("remove", epilog="Example: runner key remove laptop --keys keys.json")
def key_remove_command(name: str, keys: KeyFileOption) -> None:
    """Remove a key; it counts no more from the next request on."""
    KeyFile(keys).remove(name)


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
