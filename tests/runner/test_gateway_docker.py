"""Docker Model Runner's API, as its clients use it: a real engine on a small model."""

from __future__ import annotations

import json
import shutil
import signal

import httpx
import pytest

from runner.gateway import DIGEST_HEADER
from tests.runner.commands import call, is_healthy, json_of, wait_until

pytestmark = pytest.mark.engine

ALIAS = "team/tiny:v1"


def digest_of(store) -> str:
    return json_of(call(store, "ps", "--json"))[0]["models"][0]["digest"]


def complete(client: httpx.Client, model: str) -> httpx.Response:
    return client.post("/engines/v1/completions", json={"model": model, "prompt": "a", "max_tokens": 1})


def test_models_and_engines_as_docker_shows_them(serve, store, gguf_reference):
    serving = serve(gguf_reference).wait_ready()
    expected = digest_of(store)
    with httpx.Client(base_url=serving.url, timeout=60) as client:
        (model,) = client.get("/models").json()
        assert (model["id"], model["tags"], model["config"]["format"]) == (expected, [gguf_reference], "gguf")
        assert client.get(f"/models/{gguf_reference}").headers[DIGEST_HEADER] == expected
        assert client.get("/models/other").status_code == 404
        assert client.get("/engines/v1/models").json()["data"][0]["id"] == gguf_reference
        assert client.get(f"/engines/llama.cpp/v1/models/{gguf_reference}").headers[DIGEST_HEADER] == expected
        assert client.get("/engines/status").json() == {
            driver: "running" if driver == "llama.cpp" else "idle" for driver in client.get("/engines/status").json()
        }
        (running,) = client.get("/engines/ps").json()
        assert (running["backend_name"], running["model_name"], running["mode"], running["in_use"]) == (
            "llama.cpp", gguf_reference, "completion", False,
        )  # fmt: skip
        assert running["digest"] == expected
        used = client.get("/engines/df").json()
        assert used["models_disk_usage"] == json_of(call(store, "list", "--json"))[0]["size"]
        assert used["default_backend_disk_usage"] == 0


def test_what_cannot_be_created_is_told(serve, gguf_reference):
    serving = serve().wait_ready()
    wrong = f"{gguf_reference}@sha256:{'0' * 64}"
    with httpx.Client(base_url=serving.url, timeout=60) as client:
        for text, code in ((wrong, "digest-mismatch"), ("127.0.0.1:9/none/such:v1", "unreachable"), ("A B", "invalid")):
            last = json.loads(client.post("/models/create", json={"from": text}).text.splitlines()[-1])
            assert (last["type"], last["code"].startswith(code)) == ("error", True), last
        assert client.post("/models/create", json={}).status_code == 400
        assert client.get("/models").json() == []


def test_configurations_that_are_refused(serve, gguf_reference):
    serving = serve(gguf_reference, "--lazy").wait_ready()
    with httpx.Client(base_url=serving.url, timeout=60) as client:
        for body, code in (
            ({"runtime-flags": ["--log-file", "/tmp/x"]}, "flag-denied"),
            ({"raw-runtime-flags": "--log-file /tmp/x"}, "flag-denied"),
            ({"mode": "painting"}, "invalid"),
            ({"contextsize": 5}, "invalid"),
            ({"gpus": 5}, "invalid"),
            ({"raw-runtime-flags": 5}, "invalid"),
            ({"runtime-flags": "--parallel"}, "invalid"),
        ):
            refused = client.post("/engines/_configure", json={"model": gguf_reference, **body})
            assert refused.status_code == 400
            assert refused.json()["error"]["code"].startswith(code)
        tensor = {"model": gguf_reference, "runtime-flags": ["--tensor-parallel-size", "2"]}
        assert client.post("/engines/llama.cpp/_configure", json=tensor).status_code == 400
        assert client.post("/engines/_configure", json={"model": "other/model:v1"}).status_code == 404


def test_a_model_that_answers_is_not_changed_under_any_of_its_names(
    serve, store, gguf_reference, echo_engine, tmp_path
):
    serving = serve(gguf_reference, *echo_engine).wait_ready()
    path, _, tag = gguf_reference.removeprefix("oci:").rpartition(":")
    shutil.copytree(path, tmp_path / "other")
    call(store, "pull", other := f"oci:{tmp_path}/other:{tag}")  # the store's name for it, and not the runner's
    with httpx.Client(base_url=serving.url, timeout=60) as client:
        body = {"model": other, "context-size": 512}
        with client.stream("POST", "/v1/chat/completions", json={}, headers={"x-request-id": "hold"}) as answer:
            events = answer.iter_lines()
            assert next(events)
            for name in (other, gguf_reference, digest_of(store)):
                refused = client.post("/engines/_configure", json={**body, "model": name})
                assert (refused.status_code, refused.json()["error"]["code"]) == (409, "busy")
            assert client.get("/engines/ps").json()[0]["in_use"]

        def changed() -> httpx.Response:
            return client.post("/engines/_configure", json=body)

        wait_until(lambda: not client.get("/engines/ps").json()[0]["in_use"])
        command = changed().json()["command"]
        assert f" {echo_engine[1]} " in command and "--ctx-size 2048" in command
        assert complete(client, gguf_reference).json()["target"] == "/v1/completions"
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == [gguf_reference]


def test_names_and_configurations_outlive_a_restart(serve, store, gguf_reference):
    serving = serve().wait_ready()
    address = f"127.0.0.1:{serving.port}"
    with httpx.Client(base_url=serving.url, timeout=60) as client:
        *told, last = map(json.loads, client.post("/models/create", json={"from": gguf_reference}).text.splitlines())
        assert {line["type"] for line in told} == {"progress"}
        assert told[-1]["pulled"] == told[-1]["total"] > 0
        assert last["type"] == "success"
        tagged = client.post(f"/models/{gguf_reference}/tag", params={"repo": "team/tiny", "tag": "v1"})
        assert (tagged.status_code, tagged.headers[DIGEST_HEADER]) == (201, last["digest"])
        (model,) = client.get("/models").json()
        assert sorted(model["tags"]) == sorted([gguf_reference, ALIAS])
        body = {"model": ALIAS, "context-size": 512, "runtime-flags": ["--parallel", "2"]}
        configured = client.post("/engines/llama.cpp/_configure", json=body)
        assert (configured.status_code, configured.headers[DIGEST_HEADER]) == (202, last["digest"])
        command = configured.json()["command"]
        assert "--ctx-size 1024 --parallel 2" in command
        assert complete(client, ALIAS).headers[DIGEST_HEADER] == last["digest"]
    serving.process.send_signal(signal.SIGKILL)
    serving.process.wait()

    serving = serve("--listen", address)
    with httpx.Client(base_url=f"http://{address}", timeout=60) as client:
        wait_until(lambda: is_healthy(f"http://{address}"), 60)
        for name in (ALIAS, "team/tiny", gguf_reference):
            assert complete(client, name).status_code == 200
        assert json_of(call(store, "ps", "--json"))[0]["models"][0]["command"] == command
        assert client.delete(f"/models/{ALIAS}").json() == [{"Untagged": ALIAS}]
        assert complete(client, ALIAS).status_code == 404
        assert complete(client, gguf_reference).status_code == 200
    serving.stop()

    serving = serve("--listen", address)
    with httpx.Client(base_url=f"http://{address}", timeout=60) as client:
        wait_until(lambda: is_healthy(f"http://{address}"), 60)
        assert complete(client, ALIAS).status_code == 404
        deleted = client.delete(f"/models/{gguf_reference}")
        assert deleted.json() == [{"Untagged": gguf_reference}, {"Deleted": last["digest"]}]
        assert deleted.headers[DIGEST_HEADER] == last["digest"]
        assert client.get("/v1/models").json()["data"] == []
        assert client.get("/models").json() == []


def test_models_are_unloaded_by_name_by_engine_and_altogether(serve, gguf_reference):
    serving = serve(gguf_reference, "--lazy").wait_ready()
    with httpx.Client(base_url=serving.url, timeout=60) as client:

        def unloaded(body: object) -> int:
            return client.post("/engines/unload", json=body).json()["unloaded_runners"]

        assert unloaded({"all": True}) == 0
        for body in (
            {"models": [gguf_reference]}, {"models": [gguf_reference], "backend": "llama.cpp"}, {"all": True},
            {"backend": "llama.cpp"},
        ):  # fmt: skip
            assert complete(client, gguf_reference).status_code == 200
            for other in ({}, {"models": ["other"]}, {"backend": "vllm"}, {"all": True, "backend": "vllm"}):
                assert unloaded(other) == 0
            assert unloaded(body) == 1
            assert client.get("/engines/ps").json() == []
        assert client.post("/engines/unload", json={"models": "x"}).status_code == 400
