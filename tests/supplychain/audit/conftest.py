"""Registries with something of everything in them, and the command that audits them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from artifact.errors import StowageError
from registry.cli import app
from supplychain.keys import PrivateKey
from tests.artifact.conftest import serve  # noqa: F401
from tests.peers.conftest import docker_registry  # noqa: F401
from tests.registry.servers import ROOT, RunningRegistry, StartRegistry
from tests.supplychain.audit.zoo import Zoo, fill

POLICY = """
version: 1
authorities:
  release: {key: release.pub}
  security: {key: security.pub}
rules:
  - name: everything
    match: ["**"]
    require: {any-of: [release, security]}
revoked:
  keys: [{key: lost.pub, reason: stolen}]
"""


@dataclass
class Ran:
    """A command that has ended."""

    status: int
    out: str
    err: str
    records: list[dict[str, Any]] = field(default_factory=list)

    def by_tag(self, repository: str) -> dict[str | None, dict[str, Any]]:
        return {record["tag"]: record for record in self.records if record["repository"] == repository}


Audit = Callable[..., Ran]


@pytest.fixture(scope="session")
def keys() -> dict[str, PrivateKey]:
    return {name: PrivateKey.new() for name in ("release", "security", "lost", "stranger")}


@pytest.fixture(scope="session")
def policy(keys: dict[str, PrivateKey], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    for name, key in keys.items():
        (folder / f"{name}.pub").write_bytes(key.public.pem)
    (folder / "policy.yaml").write_text(POLICY)
    return folder / "policy.yaml"


@pytest.fixture
def audit(policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Audit:
    """Run ``registry audit``. JSON Lines unless another output is asked for."""
    for name in [name for name in os.environ if name.startswith(("DOCKER_", "XDG_", "COSIGN_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))

    def run(*arguments: str | Path, output: str = "jsonl", status: int = 0, env: dict[str, str] | None = None) -> Ran:
        chosen = [] if "--policy" in arguments else ["--policy", str(policy)]
        command = ["audit", "--output", output, *chosen, *map(str, arguments)]
        done = CliRunner().invoke(app, command, env=env, catch_exceptions=True)
        error, said, status_ = done.exception, done.stderr, done.exit_code
        if isinstance(error, StowageError):  # as artifact.terminal.run has it
            said, status_ = f"{said}error: {error}", error.exit_code
        elif error is not None and not isinstance(error, SystemExit):
            raise error
        assert status_ == status, f"exit {status_}\n{done.stdout[-3000:]}\n{said}"
        whole = output == "jsonl" and status != 2
        return Ran(status, done.stdout, said, [json.loads(line) for line in done.stdout.splitlines() if whole])

    return run


@pytest.fixture
def command(policy: Path, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start ``registry audit`` as a process of its own."""

    def start(*arguments: str | Path) -> subprocess.Popen[str]:
        line = [sys.executable, "-c", "from registry.cli import main; main()", "audit", "--policy", str(policy)]
        return subprocess.Popen(
            [*line, *map(str, arguments)], cwd=ROOT, env={**os.environ, "HOME": str(tmp_path)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    return start


@pytest.fixture(scope="session")
def kept(session_registries: StartRegistry, tmp_path_factory: pytest.TempPathFactory) -> RunningRegistry:
    """One registry for all who have repositories of their own in it."""
    return session_registries(tmp_path_factory.mktemp("storage"))


@pytest.fixture(scope="session")
def zoo(
    session_registries: StartRegistry, keys: dict[str, PrivateKey], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Zoo]:
    """Our registry with something of everything; not to be changed."""
    yield fill(session_registries(tmp_path_factory.mktemp("zoo")).host, keys)
