"""The distribution: built, installed where nothing of ours was, and used from there."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from artifact.version import __version__

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("artifact", "supplychain", "packager", "registry", "runner")
PROGRAMS = ("packager", "registry", "runner", "docker-model")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that is made from it and from nothing else."""
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", folder, ROOT], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a user who has said ``pipx install`` and nothing else."""
    home = tmp_path_factory.mktemp("home")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("STOWAGE", "PYTHON", "VIRTUAL"))}
    environment = kept | {
        "HOME": str(home),
        "PIPX_HOME": str(home / "pipx"),
        "PIPX_BIN_DIR": str(home / "bin"),
        "PIPX_DEFAULT_BACKEND": "pip",
        "PATH": f"{home / 'bin'}:/usr/local/bin:/usr/bin:/bin",
        "COSIGN_PASSWORD": "",
    }
    command = [sys.executable, "-m", "pipx", "install", "--python", sys.executable, str(built[1])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=290)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return environment


def run(environment: dict[str, str], *command: str) -> str:
    done = subprocess.run(command, env=environment, cwd=environment["HOME"], capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def test_the_wheel_holds_the_packages_and_nothing_else(built: tuple[Path, Path]) -> None:
    """Every file of ours that is no bytecode, lock files too; no test, and no file of the machine it was built on."""
    names = set(zipfile.ZipFile(built[1]).namelist())
    roots = {name.split("/")[0] for name in names}
    assert roots == {*PACKAGES, f"stowage-{__version__}.dist-info"}
    tracked = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES],
        capture_output=True, text=True,
    )  # fmt: skip
    if tracked.returncode != 0:
        pytest.skip("this is no checkout: WHAT THE WHEEL LACKS WAS NOT TESTED")
    assert {name for name in names if name.split("/")[0] in PACKAGES} == set(tracked.stdout.split())
    assert any(name.endswith(".lock") or "/locks/" in name for name in names)


def test_the_source_distribution_has_what_a_reader_needs(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml", "docs/architecture.md"} <= names
    inside = {*PACKAGES, "docs", "README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml", "PKG-INFO", ".gitignore", ""}
    assert {name.split("/")[0] for name in names} <= inside


def test_pipx_installs_every_program(installed: dict[str, str]) -> None:
    for program in ("packager", "registry", "runner"):
        assert run(installed, program, "--version") == f"{program} {__version__}\n"
    assert '"SchemaVersion"' in run(installed, "docker-model", "docker-cli-plugin-metadata")


def test_every_module_needs_only_what_is_declared(installed: dict[str, str]) -> None:
    """Modules import what ``dependencies`` in pyproject.toml installs, not what a developer happens to have.

    The launchers are programs for an engine's own environment, and run nowhere else.
    """
    python = next((Path(installed["PIPX_HOME"]) / "venvs").glob("*/bin/python"))
    code = (
        "import importlib, pkgutil\n"
        f"for root in {PACKAGES!r}:\n"
        "    package = importlib.import_module(root)\n"
        "    for found in pkgutil.walk_packages(package.__path__, root + '.'):\n"
        "        if not found.name.endswith('_launcher'):\n"
        "            importlib.import_module(found.name); print(found.name)\n"
    )
    names = run(installed, str(python), "-c", code).split()
    assert {"registry.store.s3", "runner.gateway.metrics", "packager.hub"} <= set(names)


def test_completion_is_offered(installed: dict[str, str]) -> None:
    for program in ("packager", "registry", "runner"):
        assert f"_{program.upper()}_COMPLETE" in run(installed, program, "--show-completion", "bash")


def test_an_installed_packager_and_runner_work(installed: dict[str, str], tmp_path: Path) -> None:
    """From a checkpoint to files that an engine may see, with nothing but the installed programs."""
    from tests.checkpoints.tiny import write_tiny_llama

    source, layout = write_tiny_llama(tmp_path / "tiny"), f"oci:{tmp_path}/layout"
    run(installed, "packager", "keygen", str(tmp_path / "release"))
    packed = run(
        installed, "packager", "pack", str(source), f"{layout}:F16", "--format", "gguf", "--precision", "F16",
        "--sign", str(tmp_path / "release.key"),
    ).strip()  # fmt: skip
    policy = (ROOT / "docs" / "examples" / "policy-key.yaml").read_text()
    (tmp_path / "policy.yaml").write_text(policy.replace("PUBLIC_KEY", str(tmp_path / "release.pub")))
    assert packed.partition("@")[2] in run(
        installed, "runner", "pull", f"{layout}:F16", "--policy", str(tmp_path / "policy.yaml")
    )
