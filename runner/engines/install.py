"""Installing an engine: a virtual environment from a lock file, built aside and renamed, so complete or absent."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from artifact.errors import NotFound
from artifact.layout.files import write_atomically
from runner.engines.host import compiler_version, python_for, this_host
from runner.engines.installed import RECORD, Installed, choose, folder_name, installed
from runner.engines.lock import Lock, find_locks
from runner.engines.packages import InstallFailed, Tell, fill, run

_BUILDING, _REMOVING = ".building-", ".removing-"
_LIST = "import importlib.metadata as m; print(*(f'{d.name}=={d.version}' for d in m.distributions()), sep='\\n')"


def install(wanted: str, variant: str | None, engines: Path, tell: Tell, *, anyway: bool = False) -> Installed:
    """Install the engine ``NAME[==VERSION]`` into the folder `engines`; one that is there is left as it is.

    Raises `NotFound` if no lock file fits, `InstallFailed` if this host cannot run it (unless `anyway`) or a package
    cannot be had.
    """
    fitting = [(lock, python) for lock in find_locks(wanted, variant) if (python := python_for(lock.fields["python"]))]
    if not fitting:
        pythons = ", ".join(lock.fields["python"] for lock in find_locks(wanted, variant))
        raise InstallFailed(f"{wanted} is locked for Python {pythons}, which is not on PATH (with its venv module)")
    lock, python = fitting[0]
    obstacles = [*lock.obstacles(this_host()), *lock.build_obstacles(this_host())]
    if obstacles and not anyway:
        raise InstallFailed(f"{lock.name} ({lock.variant}) cannot run here: {'; '.join(obstacles)} (--anyway installs)")
    name = folder_name(lock.name, lock.version, lock.variant)
    there = choose(engines, lock.name, lock.version, [lock.variant])
    if there is not None:  # complete, so there is no need to wait for another engine's installation
        return there
    with _locked(engines):
        _clear(engines)
        there = choose(engines, lock.name, lock.version, [lock.variant])
        if there is not None:
            return there
        building, final = engines / f"{_BUILDING}{name}", engines / name
        try:
            compiler = _build(lock, python, building, final, tell)
            packages = _check(lock, building)
            item = Installed(lock.name, lock.version, lock.variant, final, lock.identity, packages, compiler)
            write_atomically(building / RECORD, json.dumps(item.to_json(), indent=1).encode())
            os.sync()  # tens of thousands of files: one call costs less than each by itself
            _remove(engines, final)  # a folder of that name without a record
            building.rename(final)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
    return item


def remove(wanted: str, variant: str | None, engines: Path) -> list[Installed]:
    """Remove an installed engine, all versions and variants that ``NAME[==VERSION]`` and `variant` leave open. Returns
    them. Raises `NotFound`."""
    with _locked(engines):
        _clear(engines)
        doomed = matching(wanted, variant, engines)
        for item in doomed:
            _remove(engines, item.folder)
    return doomed


def matching(wanted: str, variant: str | None, engines: Path) -> list[Installed]:
    """The installed engines that are meant. Raises `NotFound`."""
    name, stated, version = wanted.partition("==")
    found = [
        item
        for item in installed(engines)
        if item.name == name and (not stated or item.version == version) and variant in (None, item.variant)
    ]
    if not found:
        raise NotFound(f"{wanted}{f' ({variant})' if variant else ''} is not installed (runner engine list)")
    return found


def _build(lock: Lock, python: Path, building: Path, final: Path, tell: Tell) -> str:
    """Make the environment; return what compiled what is compiled in it. Raises `InstallFailed`."""
    tell(f"installing {lock.name} {lock.version} ({lock.variant}): {len(lock.packages)} packages from {lock.path.name}")
    program = this_host().compilers.get("C++", "") if lock.cmake else ""
    compiler = compiler_version(program) if program else ""
    if lock.cmake:
        tell(f"{lock.fields['build']}: {compiler}, {lock.cmake}")
    run([str(python), "-I", "-m", "venv", str(building)], lock, dict(os.environ), lambda _: None)
    fill(lock, building, tell)
    _rename_inside(building, final)
    return compiler


def _rename_inside(building: Path, final: Path) -> None:
    """The scripts of a virtual environment name its folder: make them name the one it will have."""
    for script in (building / "bin").iterdir():
        if script.is_symlink() or not script.is_file():
            continue
        data = script.read_bytes()
        if data.startswith(b"#!"):
            script.write_bytes(data.replace(str(building).encode(), str(final).encode()))
    config = building / "pyvenv.cfg"
    config.write_text(config.read_text().replace(str(building), str(final)))


def _check(lock: Lock, building: Path) -> list[str]:
    """What the environment holds. Raises `InstallFailed` if that is not all the lock file says."""
    listed = subprocess.run(
        [str(building / "bin" / "python"), "-I", "-c", _LIST], capture_output=True, text=True, timeout=60, check=True
    ).stdout.split()
    there = {_plain(item) for item in listed}
    missing = [item for item in lock.packages if _plain(item) not in there]
    if missing:
        raise InstallFailed(f"{lock.name}: these did not get installed: {', '.join(missing)}")
    return sorted(listed, key=str.lower)


def _plain(package: str) -> str:
    name, _, version = package.partition("==")
    return f"{name.lower().replace('_', '-').replace('.', '-')}=={version}"


@contextmanager
def _locked(engines: Path) -> Iterator[None]:
    engines.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(engines / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _clear(engines: Path) -> None:
    """Remove what an installation or a removal that was killed left behind: the lock is ours."""
    for prefix in (_BUILDING, _REMOVING):
        for leftover in engines.glob(f"{prefix}*"):
            shutil.rmtree(leftover)


def _remove(engines: Path, folder: Path) -> None:
    if folder.exists():
        aside = engines / f"{_REMOVING}{folder.name}"
        folder.rename(aside)
        shutil.rmtree(aside)
