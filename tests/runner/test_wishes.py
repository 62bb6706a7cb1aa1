"""What a user states about running a model: refused where it cannot be, before anything is fetched or started."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.compose.commands import engine_paths
from runner.engines.host import gpu_numbers, has_gpu
from tests.runner.commands import BIN, call, error_line, json_of
from tests.runner.test_dispatch import fake_environment


@pytest.mark.parametrize("more", [(), ("--json",), ("--command",)])
@pytest.mark.parametrize(
    ("wish", "why"),
    [
        (("--context-size", "100000"), "--context-size 100000 is more than the 8192 tokens"),
        (("--context-size", "0"), "--context-size must be at least 1"),
        (("--sandbox", "bogus"), "--sandbox must be auto, required, off"),
        (("--gpus", "some"), "--gpus must be all, none or numbers"),
        (("--stream",), "--stream is for safetensors on vLLM"),
    ],
)
def test_inspect_refuses_what_serve_would(store, gguf_reference, wish, why, more):
    assert why in error_line(call(store, "inspect", gguf_reference, *wish, *more, status=2))


def test_a_stored_model_of_another_format_is_not_streamed_either(store, gguf_reference):
    call(store, "pull", gguf_reference)
    for command in (("inspect",), ("serve", "--listen", "127.0.0.1:0")):
        refused = call(store, *command, gguf_reference, "--stream", status=2)
        assert "--stream is for safetensors on vLLM" in error_line(refused)


def test_what_cannot_run_here_is_shown_all_the_same(store, safetensors_reference):
    """No wish is stated, so the note is about the model and this host."""
    shown = call(store, "inspect", safetensors_reference, "--json", STOWAGE_SANDBOX="required")
    assert json_of(shown)["format"] == "safetensors"


@pytest.mark.skipif(has_gpu() or bool(gpu_numbers()), reason="there is a GPU here")
def test_gpus_that_are_not_there_are_told(store, gguf_reference, tmp_path: Path):
    for stated in ("9", "all"):
        told = call(store, "inspect", gguf_reference, "--gpus", stated).stderr
        assert f"warning: --gpus {stated}: no NVIDIA GPU was found (nvidia-smi lists none, " in told
    for stated in ((), ("--gpus", "none")):
        assert "GPU" not in call(store, "inspect", gguf_reference, *stated).stderr
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 0\necho 1\n")
    program.chmod(0o755)
    path = f"{tmp_path}/bin:{BIN}:/usr/bin:/bin"
    refused = call(store, "inspect", gguf_reference, "--gpus", "1,9", status=2, PATH=path)
    assert "--gpus 1,9: there is no GPU 9 here, only 0, 1" in error_line(refused)
    assert "warning" not in call(store, "inspect", gguf_reference, "--gpus", "0,1", PATH=path).stderr


def test_the_folder_a_command_was_given_in_is_not_part_of_the_wish(store, safetensors_reference):
    """What is kept for the next start, and what a background gateway gets, is the engine meant here."""
    environment = fake_environment(store.parent / "env", vllm="0.32.0")
    stated = ("inspect", safetensors_reference, "--command", "--json", "--engine-path", "env")
    assert json_of(call(store, *stated))["argv"][0] == str(environment / "bin" / "python")


def test_the_same_for_the_engines_of_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert engine_paths(["vllm=env", "./a=b"]) == (("vllm", tmp_path / "env"), ("", tmp_path / "a=b"))
    assert engine_paths(["/x"]) == (("", Path("/x")),)
