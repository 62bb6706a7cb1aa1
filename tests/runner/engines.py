"""Engines for tests, installed as a user installs them, once, into a cache beside the repository."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from runner.engines.installed import choose
from tests.runner.commands import BIN, environment

CACHE = Path(__file__).parents[2] / ".cache"


def installed_engines(name: str, variant: str, tmp: Path) -> Path:
    """The folder of installed engines, with this one in it. Skips the test, saying why, where it cannot be had."""
    pip = {key: value for key, value in os.environ.items() if key.startswith(("PIP_", "HTTP", "http", "SSL_"))}
    command = [str(BIN / "runner"), "engine", "install", name, "--variant", variant, "--store", str(CACHE)]
    done = subprocess.run(
        command, env=environment(tmp / "store", **pip) | {"HOME": str(Path.home()), "PATH": os.environ["PATH"]},
        capture_output=True, text=True, timeout=3000, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"no {name} ({variant}) here: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    return CACHE / "engines"


@pytest.fixture(scope="session")
def llama_cpp_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has llama-cpp-python with its server. The first time it is compiled, which
    takes minutes; tests that ask for it need the mark ``timeout(3600)``."""
    engines = installed_engines("llama-cpp-python", "cpu", tmp_path_factory.mktemp("install"))
    item = choose(engines, "llama-cpp-python", None, ["cpu"])
    assert item is not None
    return item.interpreter
