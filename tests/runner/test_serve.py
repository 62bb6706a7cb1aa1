"""``runner serve`` and what clients see of it: a real engine on a small model."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import httpx
import openai
import pytest

from artifact.layout import LayoutRepository
from runner.gateway import DIGEST_HEADER
from tests.runner.commands import call, chat_request, error_line, json_of, processes_in, wait_until
from tests.runner.crafted import file_layer, gguf_without_tensors_it_needs, push_model

pytestmark = pytest.mark.engine


def digest_of(reference: str) -> str:
    path, _, tag = reference.removeprefix("oci:").rpartition(":")
    return str(LayoutRepository(Path(path)).resolve(tag).digest)


def test_openai_client_streams_from_the_model_it_names(serve, gguf_reference):
    serving = serve(gguf_reference).wait_ready()
    client = openai.OpenAI(base_url=f"{serving.url}/v1", api_key="none")
    assert [model.id for model in client.models.list()] == [gguf_reference]
    stream = client.chat.completions.create(
        model=gguf_reference, stream=True, max_tokens=16, messages=[{"role": "user", "content": "hi"}],
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert len(chunks) > 4
    completion = client.completions.with_raw_response.create(model=gguf_reference, prompt="hi", max_tokens=2)
    assert completion.headers[DIGEST_HEADER] == digest_of(gguf_reference)
    assert completion.parse().choices[0].finish_reason in ("length", "stop")


def test_routes_names_and_errors(serve, gguf_reference, safetensors_reference):
    serving = serve(gguf_reference, "--", "--embeddings", "--pooling", "mean").wait_ready()
    digest = digest_of(gguf_reference)
    place = gguf_reference.rpartition(":")[0]
    with httpx.Client(base_url=serving.url, timeout=30) as client:
        for name in (gguf_reference, place, digest, f"{place}@{digest}", f"{gguf_reference}@{digest}"):
            answer = client.post("/v1/embeddings", json={"model": name, "input": "hi"})
            assert answer.status_code == 200, answer.text
            assert answer.headers[DIGEST_HEADER] == digest
        assert client.post("/engines/v1/embeddings", json={"input": "hi"}).status_code == 200
        assert client.post("/engines/llama.cpp/v1/embeddings", json={"input": "hi"}).status_code == 200
        assert client.get(f"/v1/models/{gguf_reference}").json()["digest"] == digest
        unknown = client.post("/v1/chat/completions", json=chat_request(model="gpt-9"))
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
        assert client.post("/v1/chat/completions", content=b"{").status_code == 400
        assert client.post("/v1/chat/completions", json=[1]).status_code == 400
        assert client.post("/v1/chat/completions", json={"model": 7}).json()["error"]["param"] == "model"
        assert client.get("/v1/chat/completions").json()["error"]["type"] == "invalid_request_error"
        assert client.get("/nowhere").status_code == 404


def test_streaming_is_not_buffered_and_cancelling_frees_the_engine(serve, gguf_reference):
    serving = serve(gguf_reference, "--", "--parallel", "1").wait_ready()
    request = chat_request(stream=True, max_tokens=1500, ignore_eos=True)
    began = time.monotonic()
    with httpx.Client(timeout=60) as client:
        with client.stream("POST", f"{serving.url}/v1/chat/completions", json=request) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            events = answer.iter_lines()
            arrived: list[float] = []
            for line in events:
                if line.startswith("data:"):
                    arrived.append(time.monotonic() - began)
                if len(arrived) == 20:
                    break
            assert serving.engine_metric("llamacpp:requests_processing") == 1
        wait_until(lambda: serving.engine_metric("llamacpp:requests_processing") == 0, 30)
        assert serving.engine_metric("llamacpp:tokens_predicted_total") < 1500  # it did not come to its end
    assert len(set(arrived)) > 5


def test_only_this_machine_may_ask(serve, gguf_reference):
    serving = serve(gguf_reference).wait_ready()
    with httpx.Client(base_url=serving.url) as client:
        assert client.get("/v1/models", headers={"Host": "rebound.example"}).status_code == 403
        assert client.get("/v1/models", headers={"Origin": "https://evil.example"}).status_code == 403
        assert client.get("/v1/models", headers={"Origin": "http://localhost:3000"}).status_code == 200


def test_engine_gets_a_clean_process(serve, store, gguf_reference):
    serve(gguf_reference, HF_TOKEN="secret").wait_ready()
    (sock,) = (store / "run").glob("*/engines/*/engine.sock")
    engines = [pid for pid in processes_in(store) if b"llamacpp_launcher" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    engine = max(engines)  # the guard, which names the launcher too, is its parent
    assert set(Path(f"/proc/{engine}/environ").read_bytes().rstrip(b"\0").split(b"\0")) == {
        b"LANG=C.UTF-8",
        b"PATH=/usr/local/bin:/usr/bin:/bin",
    }
    status = Path(f"/proc/{engine}/stat").read_text().rpartition(")")[2].split()
    assert int(status[2]) == engine  # a process group of its own
    open_files = {os.readlink(path) for path in Path(f"/proc/{engine}/fd").iterdir()}  # noqa: PTH115
    assert not any(name.endswith((".err", "lock")) for name in open_files)
    assert oct(sock.parent.stat().st_mode)[-3:] == "700"


def test_ps_list_stop(serve, store, gguf_reference):
    serving = serve(gguf_reference).wait_ready()
    (run,) = json_of(call(store, "ps", "--json"))
    assert run["endpoint"] == f"{serving.url}/v1"
    assert run["pid"] == serving.process.pid
    (model,) = run["models"]
    assert (model["name"], model["digest"]) == (gguf_reference, digest_of(gguf_reference))
    shown = call(store, "inspect", gguf_reference, "--command").stdout.strip()
    assert model["command"] == shown
    assert shown in serving.stderr()
    assert "being served" in error_line(call(store, "rm", gguf_reference, status=1))
    assert "is not served" in error_line(call(store, "stop", "other/model:v1", status=1))
    call(store, "stop", gguf_reference)
    assert serving.process.poll() == 0  # it has ended when the command returns
    assert json_of(call(store, "ps", "--json")) == []
    assert call(store, "list").stdout.splitlines()[1].split()[0] == gguf_reference


def test_one_of_two_models_can_be_stopped(serve, store, gguf_reference, tmp_path):
    copy = f"oci:{tmp_path}/copy"
    from tests.runner.commands import packager

    checkpoint = Path(gguf_reference.removeprefix("oci:").rpartition(":")[0]).parent / "tiny"
    packager(store, "pack", str(checkpoint), f"{copy}:F32", "--format", "gguf", "--precision", "F32")
    serving = serve(gguf_reference, f"{copy}:F32").wait_ready()
    with httpx.Client(base_url=serving.url) as client:
        assert len(client.get("/v1/models").json()["data"]) == 2
        nameless = client.post("/v1/chat/completions", json=chat_request())
        assert (nameless.status_code, nameless.json()["error"]["param"]) == (400, "model")
        call(store, "stop", f"{copy}:F32")
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == [gguf_reference]
        assert client.get("/healthz").status_code == 200
        assert client.post("/v1/chat/completions", json=chat_request()).status_code == 200


def test_killing_the_runner_leaves_no_engine(serve, store, gguf_reference):
    serving = serve(gguf_reference).wait_ready()
    assert len(processes_in(store)) == 2
    serving.process.send_signal(signal.SIGKILL)
    wait_until(lambda: not processes_in(store), 10)
    assert json_of(call(store, "ps", "--json")) == []
    assert list((store / "run").iterdir()) == []


def test_killing_the_guard_leaves_no_engine(serve, store, gguf_reference):
    serving = serve(gguf_reference, "--max-restarts", "0").wait_ready()
    guard = min(processes_in(store))
    os.kill(guard, signal.SIGKILL)
    wait_until(lambda: not processes_in(store), 10)
    assert serving.process.wait(10) == 1
    assert "while serving" in serving.stderr()


def test_an_engine_that_dies_later_is_told_with_its_last_lines(serve, store, gguf_reference):
    serving = serve(gguf_reference, "--max-restarts", "0").wait_ready()
    os.kill(max(processes_in(store)), signal.SIGSEGV)
    assert serving.process.wait(20) == 1
    last = serving.stderr().splitlines()[-1]
    assert last.startswith("error: llama.cpp was killed by signal 11 while serving")
    assert "listening on" in last


def test_an_engine_that_dies_at_its_start_shows_its_last_lines(serve, store, tmp_path):
    layout = LayoutRepository(tmp_path / "bad")
    weights = file_layer(layout, "m.gguf", gguf_without_tensors_it_needs(tmp_path / "m.gguf"))
    push_model(tmp_path / "bad", [weights], format_="gguf", precision="float16")
    serving = serve(f"oci:{tmp_path}/bad:v1")
    assert serving.process.wait(60) == 1
    last = serving.stderr().splitlines()[-1]
    assert last.startswith("error: llama.cpp stopped with 1 while loading the model: ")
    assert "failed to load model" in last
    assert "Traceback" not in serving.stderr()
    (log,) = (store / "logs").iterdir()
    assert "failed to load model" in log.read_text()


def test_a_taken_port_is_told_before_anything_is_pulled(store, gguf_reference):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = call(store, "serve", gguf_reference, "--listen", address, status=1)
    assert error_line(result).startswith(f"error: port taken: something already listens on {address}")
    assert not store.exists()


@pytest.mark.parametrize("listen", ["12434", "host.example:80", "127.0.0.1:99999", "127.0.0.1:x"])
def test_listen_addresses_that_are_none(store, listen):
    assert "--listen" in error_line(call(store, "serve", "a/b:v1", "--listen", listen, status=2))


def test_what_cannot_run_is_an_error_before_anything_is_pulled(store, gguf_reference, safetensors_reference):
    for arguments, status in (
        ((gguf_reference, "--driver", "vllm"), 2),
        ((safetensors_reference, "--driver", "llama.cpp"), 2),
        ((gguf_reference, "--", "--log-file", "x"), 2),
        ((gguf_reference, "--context-size", "999999"), 2),
        ((gguf_reference, "--gpus", "every"), 2),
        ((safetensors_reference,), 1),
    ):
        error_line(call(store, "serve", *arguments, status=status))
    assert json_of(call(store, "list", "--json")) == []
    assert not list(store.glob("blobs/*/*"))


def test_run_answers_once_and_leaves_nothing(store, gguf_reference):
    result = call(store, "run", gguf_reference, "hello", "--json", "--", "--n-predict", "8", "--seed", "1")
    assert json_of(result)["digest"] == digest_of(gguf_reference)
    assert json_of(result)["content"]
    piped = call(store, "run", gguf_reference, "--", "-n", "8", stdin="hello")
    assert piped.stdout
    assert "prompt is empty" in error_line(call(store, "run", gguf_reference, status=2, stdin=" \n"))
    assert not processes_in(store)


def test_run_uses_a_runner_that_serves_the_model(serve, store, gguf_reference):
    serve(gguf_reference, "--", "-n", "8").wait_ready()
    before = set(processes_in(store))
    assert json_of(call(store, "run", gguf_reference, "hello", "--json", "--", "-n", "8"))["content"]
    assert set(processes_in(store)) == before
    (log,) = (store / "logs").iterdir()
    assert log.read_text(errors="replace").count("\n$ ") + log.read_text(errors="replace").startswith("$ ") == 1


def test_terminating_the_runner_stops_everything(serve, store, gguf_reference):
    serving = serve(gguf_reference).wait_ready()
    serving.process.send_signal(signal.SIGINT)
    assert serving.process.wait(15) == 0
    assert not processes_in(store)
    assert not list((store / "run").iterdir())
