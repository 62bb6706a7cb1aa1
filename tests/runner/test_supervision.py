"""Engines that crash, idle, do not fit, and runners that start again: a real engine on small models."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import httpx
import openai
import pytest

from artifact.layout import LayoutRepository
from runner.state import registered, running
from tests.runner.commands import BIN, call, chat_request, error_line, json_of, packager, processes_in, wait_until
from tests.runner.crafted import file_layer, gguf_without_tensors_it_needs, push_model

pytestmark = pytest.mark.engine


def states(store: Path) -> dict[str, str]:
    """What each served model is doing, by name."""
    return {model["name"]: model["state"] for run in json_of(call(store, "ps", "--json")) for model in run["models"]}


@pytest.fixture
def other(tmp_path: Path, store: Path, gguf_reference: str) -> str:
    """The reference of another model."""
    checkpoint = Path(gguf_reference.removeprefix("oci:").rpartition(":")[0]).parent / "tiny"
    packager(store, "pack", str(checkpoint), f"oci:{tmp_path}/copy:F32", "--format", "gguf", "--precision", "F32")
    return f"oci:{tmp_path}/copy:F32"


def ask(url: str, model: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json=chat_request(model=model), timeout=60)


def test_a_crashed_engine_is_started_again_and_given_up_in_the_end(serve, store, gguf_reference):
    serving = serve(gguf_reference, "--max-restarts", "1").wait_ready()
    first = max(processes_in(store))
    os.kill(first, signal.SIGSEGV)
    wait_until(lambda: "restart 1 of 1 in 0.5 s" in serving.stderr())
    wait_until(lambda: states(store) == {gguf_reference: "ready"}, 60)
    assert ask(serving.url, gguf_reference).status_code == 200
    assert json_of(call(store, "ps", "--json"))[0]["models"][0]["restarts"] == 1
    os.kill(max(processes_in(store)), signal.SIGSEGV)
    assert serving.process.wait(60) == 1
    assert serving.stderr().splitlines()[-1].startswith("error: llama.cpp was killed by signal 11 while serving")


def test_a_crash_in_the_middle_of_a_stream_is_told_and_the_next_request_is_answered(serve, store, gguf_reference):
    serving = serve(gguf_reference).wait_ready()
    client = openai.OpenAI(base_url=f"{serving.url}/v1", api_key="none", timeout=120, max_retries=0)
    streams = [
        client.chat.completions.create(
            model=gguf_reference, stream=True, max_tokens=4000, extra_body={"ignore_eos": True},
            messages=[{"role": "user", "content": "hi"}],
        )
        for _ in range(2)
    ]  # fmt: skip
    for stream in streams:
        assert next(stream).choices
    os.kill(max(processes_in(store)), signal.SIGSEGV)
    for stream in streams:
        with pytest.raises(openai.APIError, match=r"llama\.cpp was killed by signal 11 while serving") as broken:
            list(stream)
        assert broken.value.code == "engine-broken"
    (model,) = json_of(call(store, "ps", "--json"))[0]["models"]
    assert "killed by signal 11" in model["failure"]
    wait_until(lambda: states(store) == {gguf_reference: "ready"}, 60)
    assert ask(serving.url, gguf_reference).status_code == 200
    log = call(store, "logs", gguf_reference, "-n", "2000").stdout
    assert log.count("$ env -i") == 2  # the first engine's, and that of the one after it


def test_what_cannot_be_loaded_is_told_to_who_asks(serve, store, tmp_path):
    layout = LayoutRepository(tmp_path / "bad")
    weights = file_layer(layout, "m.gguf", gguf_without_tensors_it_needs(tmp_path / "m.gguf"))
    push_model(tmp_path / "bad", [weights], format_="gguf", precision="float16")
    serving = serve(f"oci:{tmp_path}/bad:v1", "--lazy", "--max-restarts", "0").wait_ready()
    for _ in range(2):
        refused = ask(serving.url, f"oci:{tmp_path}/bad:v1")
        assert refused.status_code == 503
        assert "failed to load model" in refused.json()["error"]["message"]
    assert httpx.get(f"{serving.url}/healthz").status_code == 503
    assert "given up" in call(store, "ps").stdout


def test_an_idle_model_is_unloaded_and_comes_back_when_asked_for(serve, store, gguf_reference):
    serving = serve(gguf_reference, "--idle-timeout", "1s").wait_ready()
    wait_until(lambda: not processes_in(store), 60)
    wait_until(lambda: states(store) == {gguf_reference: "unloaded"})
    assert httpx.get(f"{serving.url}/healthz").status_code == 200
    assert ask(serving.url, gguf_reference).status_code == 200
    assert len(processes_in(store)) == 2


def test_the_model_used_longest_ago_makes_room_and_pinned_ones_do_not(serve, store, gguf_reference, other):
    limit = ("--memory", "150MiB", "--lazy")
    serving = serve(gguf_reference, other, *limit).wait_ready()
    assert states(store) == {gguf_reference: "unloaded", other: "unloaded"}
    assert ask(serving.url, gguf_reference).status_code == 200
    assert ask(serving.url, other).status_code == 200
    wait_until(lambda: states(store) == {gguf_reference: "unloaded", other: "ready"})
    assert "unloaded to make room" in serving.stderr()
    serving.stop()
    pinned = serve(gguf_reference, other, *limit, "--pin").wait_ready()
    assert ask(pinned.url, gguf_reference).status_code == 200
    refused = ask(pinned.url, other)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "does-not-fit")
    message = refused.json()["error"]["message"]
    assert "keys and values" in message
    assert f"loaded: {gguf_reference}" in message


def test_what_does_not_fit_is_refused_with_the_arithmetic(store, gguf_reference):
    result = call(store, "serve", gguf_reference, "--listen", "127.0.0.1:0", "--memory", "1MiB", status=1)
    line = error_line(result)
    assert "it needs 96.4 MiB (3.2 MiB weights + " in line
    assert "1.0 MiB are free of the 1.0 MiB that --memory allows" in line
    assert not processes_in(store)


@pytest.fixture
def two_gpus(tmp_path: Path) -> str:
    """A PATH with an ``nvidia-smi`` that knows two GPUs: one empty, one with 50 MiB left."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '0, 81000'\necho '1, 50'\n")
    program.chmod(0o755)
    return f"{tmp_path}/bin:{BIN}:/usr/bin:/bin"


def test_gpu_memory_is_counted_on_the_gpus_that_were_chosen(serve, store, gguf_reference, two_gpus):
    layers = ("--", "--n-gpu-layers", "99")
    listen = ("--listen", "127.0.0.1:0")
    short = call(store, "serve", gguf_reference, *listen, "--gpus", "1", *layers, status=1, PATH=two_gpus)
    assert "and 50.0 MiB on GPU 1 are free" in error_line(short).replace("50.00", "50.0")
    absent = call(store, "serve", gguf_reference, *listen, "--gpus", "0,4", *layers, status=2, PATH=two_gpus)
    assert "--gpus 0,4: there is no GPU 4 here, only 0, 1" in error_line(absent)
    for gpus in ("0", "all"):
        serving = serve(gguf_reference, "--gpus", gpus, *layers, PATH=two_gpus).wait_ready()
        assert ask(serving.url, gguf_reference).status_code == 200
        serving.stop()
    one = call(
        store, "serve", gguf_reference, *listen, "--gpus", "1,0", *layers, "--split-mode", "none", status=1,
        PATH=two_gpus,
    )  # fmt: skip
    assert "on GPU 1 are free" in error_line(one)


def test_a_runner_serves_again_what_it_served(serve, store, gguf_reference):
    flags = ("--context-size", "256", "--idle-timeout", "1h", "--", "--parallel", "2")
    first = serve(gguf_reference, *flags).wait_ready()
    before = json_of(call(store, "ps", "--json"))[0]["models"][0]
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    wait_until(lambda: not processes_in(store))
    again = serve("--listen", f"127.0.0.1:{first.port}")
    again.url = first.url
    again.wait_ready()
    after = json_of(call(store, "ps", "--json"))[0]["models"][0]
    for key in ("name", "digest", "command", "idle_timeout"):
        assert after[key] == before[key]


def test_logs_are_shown_by_name_and_followed(serve, store, gguf_reference):
    serve(gguf_reference).wait_ready()
    shown = call(store, "logs", gguf_reference, "-n", "500").stdout
    assert shown.splitlines()[0].startswith("$ env -i")
    assert call(store, "logs", "-n", "3").stdout.count("\n") == 3
    assert "neither served nor" in error_line(call(store, "logs", "other/model:v1", status=1))


def test_requests_under_way_are_finished_before_the_runner_stops(serve, store, gguf_reference):
    serving = serve(gguf_reference).wait_ready()
    request = chat_request(stream=True, max_tokens=400, ignore_eos=True)
    with (
        httpx.Client(timeout=60) as client,
        client.stream("POST", f"{serving.url}/v1/chat/completions", json=request) as answer,
    ):
        lines = answer.iter_lines()
        assert next(lines).startswith("data:")
        serving.process.terminate()
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert serving.process.wait(20) == 0


def test_a_closed_terminal_stops_the_runner_as_an_order_does(serve, store, gguf_reference, echo_engine):
    """With the time that requests may take, which ``runner stop`` knows."""
    serving = serve(gguf_reference, "--drain", "75", *echo_engine).wait_ready()
    assert [run.drain for run in running(store)] == [75]
    serving.process.send_signal(signal.SIGHUP)
    assert serving.process.wait(20) == 0
    assert not processes_in(store)


def test_a_runner_of_before_gets_the_signal_it_knows(store):
    with registered(store) as registration:
        registration.write("127.0.0.1:1", [])
        assert [run.news for run in running(store)] == [signal.SIGUSR1]
        path = registration.folder / "state.json"
        state = json.loads(path.read_bytes())
        path.write_text(json.dumps({key: value for key, value in state.items() if key not in ("news", "drain")}))
        assert [run.news for run in running(store)] == [signal.SIGHUP]


def kill_engine(store: Path) -> None:
    os.kill(max(processes_in(store)), signal.SIGKILL)


def test_a_crash_is_seen_although_the_log_is_gone(serve, store, gguf_reference, echo_engine):
    serving = serve(gguf_reference, *echo_engine).wait_ready()
    for log in (store / "logs").iterdir():
        log.unlink()
    kill_engine(store)
    wait_until(lambda: "killed by signal 9 while serving" in serving.stderr())
    assert "and wrote nothing" in serving.stderr()
    serving.wait_ready()
    assert ask(serving.url, gguf_reference).status_code == 200


def test_a_restart_waits_for_a_policy_that_cannot_be_read(serve, store, gguf_reference, echo_engine, tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text("version: 1\nrules: [{name: all, match: ['**'], require: nothing}]\n")
    serving = serve(gguf_reference, "--policy", str(policy), "--max-restarts", "1", *echo_engine).wait_ready()
    policy.rename(tmp_path / "away")
    kill_engine(store)
    wait_until(lambda: f"cannot read policy {policy}" in serving.stderr() and "tried again in 1 s" in serving.stderr())
    assert states(store) == {gguf_reference: "waiting"}
    (tmp_path / "away").rename(policy)
    serving.wait_ready()
    assert ask(serving.url, gguf_reference).status_code == 200


def test_what_is_served_is_written_down_as_soon_as_it_can_be(serve, store, gguf_reference, echo_engine):
    serving = serve(gguf_reference, *echo_engine).wait_ready()
    (state,) = (store / "run").glob("*/state.json")
    state.unlink()
    state.mkdir()  # as little to be written as on a full disk
    httpx.post(f"{serving.url}/engines/unload", json={"all": True}, timeout=30).raise_for_status()
    wait_until(lambda: "until this is mended" in serving.stderr())
    state.rmdir()
    wait_until(lambda: states(store) == {gguf_reference: "unloaded"})


@pytest.mark.parametrize(("option", "value"), [("--idle-timeout", "soon"), ("--memory", "much"), ("--memory", "-1GiB")])
def test_options_that_are_none(store, gguf_reference, option, value):
    assert option in error_line(call(store, "serve", gguf_reference, option, value, status=2))


def test_pinned_and_idle_contradict(store, gguf_reference):
    result = call(store, "serve", gguf_reference, "--pin", "--idle-timeout", "1m", status=2)
    assert "--pin" in error_line(result)
