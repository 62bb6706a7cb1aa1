"""``runner serve``, ``ps``, ``stop``, ``logs`` and ``key``: endpoints, what they serve, and who may use them."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from artifact.digest import Digest
from artifact.errors import InvalidInput, NotFound
from artifact.reference import Reference
from artifact.terminal import JsonOption, note, print_json, progress_bars
from runner import configured, logs, report
from runner.administration import resumed
from runner.completion import complete_reference
from runner.compose.commands import open_project
from runner.compose.project import Project
from runner.configured import Configured, Keeping
from runner.fleet import MAX_RESTARTS
from runner.keys import INFER, KEYS_VARIABLE, KeyFile
from runner.options import (
    EngineCommand,
    FilesOption,
    PlainHttpOption,
    PolicyOption,
    StoreOption,
    StreamOption,
    takes_wishes,
)  # fmt: skip
from runner.orders import project_of
from runner.plan import POLICY_VARIABLE, Plan, Wishes, load_policy, parse_references, prepare, served_names
from runner.pull import absolute
from runner.serve import DEFAULT_LISTEN, DRAIN, INSECURE_VARIABLE, Settings, check_free, listen_address, serve
from runner.state import Run, Served, running, stop
from runner.store import Store

endpoint_app = typer.Typer()
key_app = typer.Typer(
    help="Make, list and remove API keys.", no_args_is_help=True,
    epilog="Example: runner key add laptop --keys keys.json",
)  # fmt: skip
endpoint_app.add_typer(key_app, name="key")

NamesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="NAME", help="Models; else all.", autocompletion=complete_reference)
]
KeysOption = Annotated[Path | None, typer.Option("--keys", help="The file with the API keys.", envvar=KEYS_VARIABLE)]
KeyFileOption = Annotated[Path, typer.Option("--keys", help="The file with the API keys.", envvar=KEYS_VARIABLE)]
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(s|m|h|)")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


@endpoint_app.command(
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


@endpoint_app.command("ps", epilog="Example: runner ps -f compose.yaml")
def ps_command(files: FilesOption = None, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List what is served now; with -f only for that Compose file."""
    runs, project = _runs(Store(store), files)
    if not runs:
        note(_nothing(project))
    report.print_runs(runs, as_json=as_json)


@endpoint_app.command("stop", epilog="Example: runner stop registry.example/team/model:4B-Q4_K_M")
def stop_command(names: NamesArgument = None, store: StoreOption = None) -> None:
    """Stop serving models, and their engines."""
    runs = running(Store(store).root)
    if not names:
        if not runs:
            note(_nothing())
        for run in runs:
            stop(run)
        return
    for name in names:
        hits = [(run, {model.digest for model in run.models if _is_called(model, name)}) for run in runs]
        if not any(digests for _, digests in hits):
            raise NotFound(f"{name} is not served (runner ps lists what is)")
        for run, digests in hits:
            if digests:
                stop(run, digests)


@endpoint_app.command("logs", epilog="Example: runner logs -f compose.yaml llm --follow")
def logs_command(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="A model; else all that are served.", autocompletion=complete_reference),
    ] = None,
    files: FilesOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-F", help="Go on until the model is stopped.")] = False,
    tail: Annotated[int, typer.Option("--tail", "-n", min=0, help="Lines from the end.")] = 100,
    store: StoreOption = None,
) -> None:
    """Show what engines write; with -f only those of that Compose file, where a model's key is a name too."""
    place = Store(store)
    runs, project = _runs(place, files)
    paths = _logs(name, runs, project, place)
    if not paths:
        note(_nothing(project))
    if follow and len(paths) > 1:
        raise InvalidInput(f"{len(paths)} models are served: name the one to follow")
    for digest, path in paths.items():
        if len(paths) > 1:
            print(f"==> {digest} <==", flush=True)
        _write(logs.tail(path, tail))
        if follow:
            for piece in logs.follow(path, partial(_is_served, place, digest)):
                _write(piece)


def _runs(store: Store, files: list[Path] | None) -> tuple[list[Run], Project | None]:
    """What serves, or with Compose files what serves their project."""
    runs = running(store.root)
    if not files:
        return runs, None
    project = open_project(files)
    return [run for run in runs if project_of(run.folder) == project.id], project


def _nothing(project: Project | None = None) -> str:
    return f"nothing of {project.name} is served (runner up serves it)" if project else "nothing is served"


def _logs(name: str | None, runs: Sequence[Run], project: Project | None, store: Store) -> dict[str, Path]:
    """The logs of the model that `name` means, or of all that are served, by digest. Raises `NotFound`."""
    served = [model for run in runs for model in run.models]
    if name is None:
        return {model.digest: Path(model.log) for model in served}
    keys = {model.key: str(model.reference) for model in project.models} if project else {}
    wanted = keys.get(name, name)
    if found := {model.digest: Path(model.log) for model in served if _is_called(model, wanted)}:
        return found
    digest = _stored(wanted, store)
    path = store.root / "logs" / f"{digest.hex}.log" if digest else None
    if digest is None or path is None:
        raise NotFound(f"{name} is neither served nor in the store (runner ps and runner list show what is)")
    if not path.exists():
        raise NotFound(f"nothing has been logged for {name}: no engine has run it from this store")
    return {str(digest): path}


def _stored(name: str, store: Store) -> Digest | None:
    """The digest that `name` means in the store, whether or not the model is there if it is one."""
    if name.startswith("sha256:"):
        return Digest.parse(name)
    reference = absolute(Reference.parse(name))
    found = store.find(reference) if reference.tag or reference.digest else None
    return found.digest if found else None


def _is_called(model: Served, name: str) -> bool:
    """Whether `name` means a model that is served: its reference in full or in part, its digest, or the beginning of
    that as tables show it."""
    if name.startswith("sha256:"):
        return name in (model.digest, model.digest[:19])
    reference = absolute(Reference.parse(model.name))
    return str(absolute(Reference.parse(name))) in served_names(reference, model.digest)


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.flush()


def _is_served(store: Store, digest: str) -> bool:
    return any(digest == model.digest for run in running(store.root) for model in run.models)


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
    removed = KeyFile(keys).remove(name)
    note(f"removed key {removed.name} ({removed.id})")


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
