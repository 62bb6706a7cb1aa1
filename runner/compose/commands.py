"""``runner up``, ``down`` and ``lock``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from artifact.errors import InvalidInput
from artifact.terminal import JsonOption, note, print_json, progress_bars
from runner.compose.gateway import ProjectGateway, tell
from runner.compose.lock import LOCK_FILE, Lock
from runner.compose.project import Project, find_files, load_project
from runner.compose.up import Circumstances, down, pull, up, write_lock
from runner.engines.dispatch import DRIVERS
from runner.options import FilesOption, PlainHttpOption, PolicyOption, SandboxOption, StoreOption
from runner.store import Store

compose_app = typer.Typer()

EnvFileOption = Annotated[Path | None, typer.Option(help="The .env file. Default: beside the first Compose file.")]
EnginePathsOption = Annotated[
    list[str] | None, typer.Option("--engine-path", metavar="[DRIVER=]PATH", help="Engines that are there.")
]
LockFileOption = Annotated[
    Path | None, typer.Option("--lock-file", help=f"The lock file. Default: {LOCK_FILE} beside the first Compose file.")
]


@compose_app.command("up", epilog="Example: runner up -f compose.yaml --policy policy.yaml")
def up_command(
    files: FilesOption = None,
    policy: PolicyOption = None,
    listen: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Where the endpoint listens.")] = None,
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="The endpoint's URL as the services reach it.")
    ] = None,
    env_file: EnvFileOption = None,
    lock_file: LockFileOption = None,
    no_lock: Annotated[bool, typer.Option("--no-lock", help="Start what is not locked, or locked otherwise.")] = False,
    engine_path: EnginePathsOption = None,
    sandbox: SandboxOption = "auto",
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay until the models are stopped; stop them when told to end.")
    ] = False,
    pull_only: Annotated[
        bool, typer.Option("--pull-only", help="Fetch and verify the models, start nothing, and print what they are.")
    ] = False,
    store: StoreOption = None,
    plain_http: PlainHttpOption = False,
    as_json: JsonOption = False,
) -> None:
    """Serve the models of a Compose file in the background; write where they are into .env."""
    if pull_only and foreground:
        raise InvalidInput("--pull-only starts nothing that could stay in the foreground: give one of the two")
    project = open_project(files, env_file)
    lock = None
    if not no_lock:
        lock = Lock.load(lock_file or project.folder / LOCK_FILE)
        if lock is None:
            note(f"note: there is no {LOCK_FILE}: tags are looked up as they are now (runner lock writes one)")
    around = Circumstances(Store(store), policy, plain_http, engine_paths(engine_path), sandbox)
    if pull_only:
        _pull(project, around, lock, as_json)
        return
    with progress_bars() as progress:
        changes, wanted, variables = up(
            project, around, progress, lock=lock, listen=listen, endpoint=endpoint, env_file=env_file
        )
    tell(changes, wanted)
    if as_json:
        value = {key: sorted(getattr(changes, key)) for key in ("started", "stopped", "unchanged")}
        print_json({"endpoint": f"http://{changes.address}/v1", **value, "variables": variables})
    else:
        for name, text in sorted(variables.items()):
            print(f"{name}={text}")
    if foreground:
        sys.stdout.flush()
        try:
            ProjectGateway(around.store, project.id).attend(sys.stderr.buffer)
        finally:
            down(project, around.store, env_file)


def _pull(project: Project, around: Circumstances, lock: Lock | None, as_json: bool) -> None:
    with progress_bars() as progress:
        found = pull(project, around, progress, lock)
    pinned = sorted({item.pinned for item in found})
    if as_json:
        print_json({"pulled": pinned})
    else:
        print("\n".join(pinned))


@compose_app.command("down", epilog="Example: runner down -f compose.yaml")
def down_command(files: FilesOption = None, env_file: EnvFileOption = None, store: StoreOption = None) -> None:
    """Stop the models of a Compose file."""
    project = open_project(files, env_file)
    note(f"{project.name}: {'stopped' if down(project, Store(store), env_file) else 'nothing runs'}")


@compose_app.command("lock", epilog="Example: runner lock -f compose.yaml --policy policy.yaml")
def lock_command(
    files: FilesOption = None,
    policy: PolicyOption = None,
    env_file: EnvFileOption = None,
    lock_file: LockFileOption = None,
    engine_path: EnginePathsOption = None,
    store: StoreOption = None,
    plain_http: PlainHttpOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write models.lock: every reference with its digest, signers and engine version as they are now."""
    project = open_project(files, env_file)
    around = Circumstances(Store(store), policy, plain_http, engine_paths(engine_path))
    lock = write_lock(project, around, lock_file)
    if as_json:
        models = {key: {**vars(entry), "digest": str(entry.digest)} for key, entry in sorted(lock.entries.items())}
        print_json({"file": str(lock.path), "models": models})
        return
    for key, entry in sorted(lock.entries.items()):
        print(f"{key}: {entry.reference}@{entry.digest}")


def open_project(files: list[Path] | None, env_file: Path | None = None) -> Project:
    """The project of the files named, or of those in this folder."""
    return load_project(find_files(files or (), Path.cwd()), os.environ, env_file)


def engine_paths(stated: list[str] | None) -> tuple[tuple[str, Path], ...]:
    """``[DRIVER=]PATH`` as pairs; the driver is empty where none is named. Raises `InvalidInput`."""
    pairs: list[tuple[str, Path]] = []
    for text in stated or ():
        driver, equals, path = text.partition("=")
        driver, path = (driver, path) if equals and driver in DRIVERS else ("", text)
        pairs.append((driver, Path(path).absolute()))
    if len({driver for driver, _ in pairs}) != len(pairs):
        raise InvalidInput("--engine-path is given twice for one driver")
    return tuple(pairs)
