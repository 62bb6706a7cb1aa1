"""`make demo` is a promise to newcomers: it runs here as it runs there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runner.engines import CACHE, installed_engines

ROOT = Path(__file__).parents[2]
DEMO = [sys.executable, str(ROOT / "docs" / "examples" / "demo.py")]


def processes_of(folder: Path) -> list[str]:
    """Command lines of running processes that name `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            except OSError:
                continue
            if str(folder) in command:
                found.append(command)
    return found


@pytest.mark.engine
def test_the_demo_answers_and_cleans_up(smollm2: Path, tmp_path: Path) -> None:
    env = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(DEMO, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "Paris" in done.stdout
    assert done.stdout.count("refused with exit status 3, as it must be") == 2
    for command in ("registry serve", "packager keygen", "packager pack", "runner pull", "runner serve"):
        assert f"$ COSIGN_PASSWORD= {command}" in done.stdout or f"$ {command}" in done.stdout
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []


@pytest.mark.engine
@pytest.mark.timeout(3600)
def test_the_demo_on_vllm(smollm2: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    engines = installed_engines("vllm", "cpu", tmp_path_factory.mktemp("install"))
    before = {path.name for path in CACHE.iterdir()}
    env = os.environ | {"TMPDIR": str(tmp_path)}
    command = [*DEMO, "--engine", "vllm-cpu"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    for command_line in (
        f"$ runner engine install vllm --variant cpu --store {CACHE}\n",
        "--context-size 1024 -- --enforce-eager --kv-cache-memory-bytes 268435456\n",
        "-m vllm.entrypoints.openai.api_server --model bundle ",
    ):
        assert command_line in done.stdout
    assert "Paris" in done.stdout.partition("$ curl -N")[2].partition("\n")[2]
    assert done.stdout.count("refused with exit status 3, as it must be") == 2
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []
    assert engines.is_dir()
    assert {path.name for path in CACHE.iterdir()} == before


def test_an_engine_the_demo_does_not_know_is_an_error(tmp_path: Path) -> None:
    done = subprocess.run([*DEMO, "--engine", "vllm"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "invalid choice: 'vllm' (choose from 'llama.cpp', 'vllm-cpu')" in done.stderr


@pytest.mark.engine
@pytest.mark.parametrize("wait_for", ["registry serve", "runner serve"])
def test_interrupting_the_demo_leaves_nothing(smollm2: Path, tmp_path: Path, wait_for: str) -> None:
    env = os.environ | {"TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        DEMO, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("$") and wait_for in line:
            break
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 130, rest
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []
