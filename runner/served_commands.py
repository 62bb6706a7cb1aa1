"""``runner ps``, ``stop`` and ``logs``: what is served."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from artifact.digest import Digest
from artifact.errors import InvalidInput, NotFound
from artifact.reference import Reference
from artifact.terminal import JsonOption, note
from runner import logs, report
from runner.completion import complete_reference
from runner.names import served_names
from runner.options import FilesOption, StoreOption
from runner.pull import absolute
from runner.state import Run, Served, running, stop
from runner.store import Store

if TYPE_CHECKING:
    from runner.compose.project import Project

served_app = typer.Typer()

NamesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="NAME", help="Models; else all.", autocompletion=complete_reference)
]


@served_app.command("ps", epilog="Example: runner ps -f compose.yaml")
def ps_command(files: FilesOption = None, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List what is served now; with -f only for that Compose file."""
    runs, project = _runs(Store(store), files)
    if not runs:
        note(_nothing(project))
    report.print_runs(runs, as_json=as_json)


@served_app.command("stop", epilog="Example: runner stop registry.example/team/model:4B-Q4_K_M")
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


@served_app.command("logs", epilog="Example: runner logs -f compose.yaml llm --follow")
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
    from runner.compose.commands import open_project  # here, like everything that only projects need
    from runner.orders import project_of

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
