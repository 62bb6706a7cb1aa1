"""Another program is run apart: with an empty environment, within a scratch folder, and never longer than this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from artifact.errors import InvalidInput
from packager.quantize import interpreter as interpreter_module
from packager.quantize.interpreter import VARIABLE, QuantizerMissing, find_interpreter
from packager.quantize.process import WorkerFailed, run_worker
from packager.quantize.quantize import WORKER
from tests.checkpoints.tiny import write_tiny_llama


def worker(tmp_path: Path, program: str) -> Path:
    path = tmp_path / "worker.py"
    path.write_text(f"import json, os, sys\nrequest = json.load(sys.stdin)\n{program}\n")
    return path


def run(tmp_path: Path, program: str, heard: list | None = None):
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    listen = [].append if heard is None else heard.append
    return run_worker(Path(sys.executable), worker(tmp_path, program), {"do": "it"}, scratch, listen)


def test_question_progress_answer(tmp_path):
    heard: list = []
    program = "print(json.dumps({'at': 1}))\nprint('noise')\nprint(json.dumps({'done': request}))"
    assert run(tmp_path, program, heard) == {"do": "it"}
    assert heard == [{"at": 1}]


def test_nothing_of_the_users_environment_reaches_it(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    seen = run(tmp_path, "print(json.dumps({'done': [dict(os.environ), os.getcwd(), sys.flags.isolated]}))")
    scratch = str(tmp_path / "scratch")
    assert seen[0]["HOME"] == seen[0]["TMPDIR"] == seen[1] == scratch
    assert seen[0].keys() - {"LC_CTYPE"} == {
        "PATH", "LANG", "HOME", "TMPDIR", "PYTHONDONTWRITEBYTECODE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE",
    }  # fmt: skip
    assert seen[2] == 1


def test_its_own_reason_is_told(tmp_path):
    with pytest.raises(WorkerFailed, match="no such thing"):
        run(tmp_path, "print(json.dumps({'failed': 'no such thing'}))")


def test_a_death_without_an_answer_is_told_with_its_last_words(tmp_path):
    with pytest.raises(WorkerFailed, match=r"status -6: .*last words"):
        run(tmp_path, "print('last words', file=sys.stderr, flush=True)\nos.abort()")


def test_an_interpreter_without_it_says_so(tmp_path):
    with pytest.raises(WorkerFailed, match="it has no llama-cpp-python"):
        run_worker(Path(sys.executable), WORKER, {"do": "about"}, tmp_path, lambda _: None)


def test_no_quantiser_names_both_ways(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(interpreter_module, "find_spec", lambda name: None)
    with pytest.raises(QuantizerMissing, match=rf"pip install .*llama-cpp-python.*--quantizer or {VARIABLE}"):
        find_interpreter()


def test_this_interpreter_if_it_has_it(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(interpreter_module, "find_spec", lambda name: object())
    assert find_interpreter() == Path(sys.executable)


def test_a_stated_one_goes_first(monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nothing"))
    assert find_interpreter(sys.executable) == Path(sys.executable)
    assert find_interpreter(sys.prefix) == Path(sys.prefix) / "bin" / "python"
    with pytest.raises(InvalidInput, match=VARIABLE):
        find_interpreter()
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="--quantizer"):
        find_interpreter(str(tmp_path / "file"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_it_and_leaves_nothing(tmp_path, number):
    """A quantiser that never ends, in place of the real one; it says who it is."""
    folder = write_tiny_llama(tmp_path / "model", hidden=256)
    (tmp_path / "tmp").mkdir()
    slow = tmp_path / "python"
    slow.write_text(
        f"#!/bin/sh\necho $$ > {tmp_path}/pid.part\nmv {tmp_path}/pid.part {tmp_path}/pid\nexec sleep 600\n"
    )
    slow.chmod(0o755)
    command = [
        sys.executable, "-c", "from packager.cli import main; main()", "pack", str(folder), f"oci:{tmp_path}/out",
        "--format", "gguf", "--precision", "Q4_K_M", "--quantizer", str(slow),
    ]  # fmt: skip
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp"), "STOWAGE_STORE": str(tmp_path / "store")}
    process = subprocess.Popen(command, env=environment)
    try:
        until(lambda: (tmp_path / "pid").exists() or process.poll() is not None)
        child = int((tmp_path / "pid").read_text())
        process.send_signal(number)
        assert process.wait(60) == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    finally:
        process.kill()
        process.wait()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_the_worker_dies_with_its_parent(quantizer):
    """Killed outright, a packager cannot end the worker: the kernel does. Its standard input stays open here."""
    reading, writing = os.pipe()
    parent = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([{str(quantizer)!r}, '-I', {str(WORKER)!r}], stdin={reading})\n"
        "print(child.pid, flush=True)\nsys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[reading]
    )
    try:
        assert process.stdout
        child = int(process.stdout.readline())
        until(lambda: "pipe" in Path(f"/proc/{child}/wchan").read_text())  # it waits for its request
        process.kill()
        process.wait()
        until(lambda: not Path(f"/proc/{child}").exists() or state(child) == "Z")
    finally:
        os.close(reading)
        os.close(writing)


def state(process: int) -> str:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
