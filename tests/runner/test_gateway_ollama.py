"""What Ollama's client changes in a store: pull, copy, delete, and what is refused."""

from __future__ import annotations

import httpx
import ollama
import pytest

from tests.runner.commands import call, is_healthy, json_of, wait_until

pytestmark = pytest.mark.engine


def test_models_are_pulled_named_and_deleted(serve, store, gguf_reference):
    serving = serve().wait_ready()
    client = ollama.Client(host=serving.url, timeout=60)
    told = list(client.pull(gguf_reference, stream=True))
    assert told[0].status == "pulling manifest"
    assert [line.status for line in told[-3:]] == ["verifying sha256 digest", "writing manifest", "success"]
    blobs = {line.digest: line for line in told if line.digest}
    assert all(line.completed == line.total for line in blobs.values())
    (stored,) = json_of(call(store, "list", "--json"))
    assert sum(line.total or 0 for line in blobs.values()) > stored["size"]  # the files, and the config
    assert client.pull(gguf_reference).status == "success"

    assert [model.model for model in client.list().models] == [gguf_reference]
    assert client.copy(gguf_reference, "team/tiny").status == "success"
    options = {"num_predict": 2}
    assert client.generate("team/tiny", "hi", options=options).eval_count == 2
    assert client.delete("team/tiny:latest").status == "success"
    with pytest.raises(ollama.ResponseError, match="not found"):
        client.generate("team/tiny", "hi", options=options)
    assert client.generate(gguf_reference, "hi", options=options).eval_count == 2
    client.copy(gguf_reference, "kept/tiny:v2")
    serving.stop()

    address = f"127.0.0.1:{serving.port}"
    serve("--listen", address)
    wait_until(lambda: is_healthy(serving.url), 60)
    assert client.generate("kept/tiny:v2", "hi", options=options).eval_count == 2
    client.delete("kept/tiny:v2")
    client.delete(gguf_reference)
    assert json_of(call(store, "list", "--json")) == []
    with pytest.raises(ollama.ResponseError, match="not found"):
        client.delete(gguf_reference)


def test_what_cannot_be_is_told_as_ollama_tells_it(serve, gguf_reference):
    serving = serve().wait_ready()
    client = ollama.Client(host=serving.url, timeout=60)
    for stream in (False, True):
        with pytest.raises(ollama.ResponseError, match="cannot reach"):
            told = client.pull("127.0.0.1:9/none/such:v1", stream=stream)
            list(told)
    with pytest.raises(ollama.ResponseError, match="packager pack"):
        client.create("mine", from_=gguf_reference)
    with pytest.raises(ollama.ResponseError, match="packager push"):
        client.push("mine")
    with pytest.raises(ollama.ResponseError, match="not found"):
        client.copy("nothing", "other")
    assert isinstance(httpx.post(f"{serving.url}/api/pull", content=b"[").json()["error"], str)
    assert isinstance(httpx.get(f"{serving.url}/api/nothing").json()["error"], str)
