"""What every command says about itself: an example, and its version."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from artifact.version import __version__


def commands(name: str) -> Iterator[tuple[str, Any]]:
    """A program and all its commands, groups of commands too, with the words that call them."""
    modules = {"packager": "packager.cli", "registry": "registry.cli", "runner": "runner.cli"}
    app = __import__(modules[name], fromlist=["app"]).app
    pending = [(name, typer.main.get_command(app))]
    while pending:
        words, command = pending.pop()
        if not getattr(command, "hidden", False):
            yield words, command
            pending += [(f"{words} {key}", item) for key, item in getattr(command, "commands", {}).items()]


@pytest.mark.parametrize("program", ["packager", "registry", "runner"])
def test_every_command_has_help_with_an_example(program: str) -> None:
    without = {
        words
        for words, command in commands(program)
        if not command.help or f"Example: {words}" not in f"{command.help} {command.epilog}"
    }
    assert without == set()


@pytest.mark.parametrize("program", ["packager", "registry", "runner"])
def test_every_program_tells_its_version(program: str, run: Any) -> None:
    assert run(program, "--version").stdout == f"{program} {__version__}\n"


@pytest.mark.parametrize(
    ("words", "status", "needed", "others"),
    [
        (["runner", "list", "--json"], 0, "runner.store", {"httpx", "starlette", "uvicorn", "runner.serve"}),
        (["runner", "ps"], 0, "runner.state", {"httpx", "starlette", "yaml", "runner.engines.dispatch"}),
        (["registry", "--version"], 0, "registry.cli", {"starlette", "uvicorn", "boto3", "registry.store"}),
        (["packager", "push", "oci:nowhere:1", "localhost:1/x"], 1, "packager.packed", {"yaml", "packager.pack"}),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_a_command_loads_what_it_needs_itself(
    words: list[str], status: int, needed: str, others: set[str], tmp_path: Path
) -> None:
    """Not the gateway, the policies and the progress bars for a list of models; nor who signs for a push."""
    program = f"import sys, {words[0]}.cli; sys.argv = {words}; {words[0]}.cli.main()"
    environment = {**os.environ, "STOWAGE_STORE": str(tmp_path / "store")}
    command = [sys.executable, "-X", "importtime", "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr[-2000:]
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert needed in loaded
    assert loaded & {"cryptography", "rich.console", *others} == set()
