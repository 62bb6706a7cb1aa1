"""What clients of three dialects see of one endpoint, with keys, limits and metrics: a real engine on a small model."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import ollama
import openai
import pytest

from runner.gateway import DIGEST_HEADER
from tests.runner.commands import (
    Serving,
    call,
    chat_request,
    error_line,
    free_port,
    is_healthy,
    json_of,
    processes_in,
    wait_until,
)
from tests.runner.encoders import encoders

pytestmark = pytest.mark.engine


class Keyed:
    """A runner that asks for keys, and a key of each kind."""

    flags = ("--embeddings", "--pooling", "mean", "--n-predict", "64")

    def __init__(self, folder: Path, reference: str) -> None:
        self.reference = reference
        self.store = folder / "store"
        self.keys = folder / "keys.json"
        self.infer = call(self.store, "key", "add", "user", "--keys", str(self.keys)).stdout.strip()
        self.admin = call(
            self.store, "key", "add", "root", "--scope", "admin", "--scope", "infer", "--keys", str(self.keys)
        ).stdout.strip()
        self.serving = Serving(self.store, reference, "--keys", str(self.keys), "--", *self.flags).wait_ready()

    def client(self, key: str) -> httpx.Client:
        """A client with a key, or without one."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.serving.url, headers=headers, timeout=60)


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory, gguf_reference: str) -> Iterator[Keyed]:
    made = Keyed(tmp_path_factory.mktemp("keyed"), gguf_reference)
    yield made
    made.serving.stop()
    wait_until(lambda: not processes_in(made.store))


def digest(keyed: Keyed) -> str:
    with keyed.client(keyed.infer) as client:
        return client.get("/v1/models").json()["data"][0]["digest"]


def test_keys_and_scopes(keyed):
    with keyed.client("") as client:
        assert client.get("/healthz").status_code == 200
        refused = client.post("/v1/chat/completions", json=chat_request())
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        assert client.get("/v1/models", headers={"x-api-key": "stw_0_0"}).status_code == 401
        assert client.get("/v1/models", headers={"x-api-key": keyed.infer}).status_code == 200
    with keyed.client(keyed.infer) as client:
        assert client.post("/v1/chat/completions", json=chat_request()).status_code == 200
        for method, path in (
            ("POST", "/models/create"), ("DELETE", f"/models/{keyed.reference}"), ("POST", "/engines/unload"),
            ("POST", "/engines/_configure"), ("POST", "/models/x/tag"), ("POST", "/engines/v1/other"),
            ("POST", "/api/pull"), ("POST", "/api/copy"), ("DELETE", "/api/delete"), ("POST", "/api/create"),
        ):  # fmt: skip
            assert client.request(method, path, json={}).status_code == 403, path
        assert client.post("/api/pull", json={}).json() == {"error": "this needs the scope admin"}
        assert client.get("/models").status_code == 200


def test_a_removed_key_counts_no_more_and_files_hold_no_secret(keyed):
    key = call(keyed.store, "key", "add", "guest", "--keys", str(keyed.keys)).stdout.strip()
    assert key.rpartition("_")[2] not in keyed.keys.read_text()
    assert oct(keyed.keys.stat().st_mode)[-3:] == "600"
    with keyed.client(key) as client:
        assert client.get("/v1/models").status_code == 200
        names = [row["name"] for row in json_of(call(keyed.store, "key", "list", "--json", "--keys", str(keyed.keys)))]
        assert names == ["guest", "root", "user"]
        call(keyed.store, "key", "remove", "guest", "--keys", str(keyed.keys))
        assert client.get("/v1/models").status_code == 401


def test_a_key_has_a_rate(keyed):
    key = call(keyed.store, "key", "add", "slow", "--rate", "2", "--keys", str(keyed.keys)).stdout.strip()
    with keyed.client(key) as client:
        answers = [client.get("/v1/models") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert 1 <= int(answers[2].headers["retry-after"]) <= 30
    call(keyed.store, "key", "remove", "slow", "--keys", str(keyed.keys))


def test_run_asks_a_runner_with_keys_only_with_a_key(keyed):
    def run(*options: str, status: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        command = ("run", keyed.reference, "hi", "--json", *options, "--", *keyed.flags)
        return call(keyed.store, *command, status=status, **environment)

    before = keyed.serving.engine_metric("llamacpp:tokens_predicted_total")
    for result in (run(RUNNER_API_KEY=keyed.infer), run("--api-key", keyed.admin)):
        assert json_of(result)["digest"] == digest(keyed)
        assert keyed.infer not in result.stdout + result.stderr
        assert "llamacpp_launcher" not in result.stderr  # no engine of its own
    assert keyed.serving.engine_metric("llamacpp:tokens_predicted_total") > before
    assert "RUNNER_API_KEY" in error_line(run(status=1, RUNNER_API_KEY="stw_0_0"))
    logs = b"".join(path.read_bytes() for path in (keyed.store / "logs").iterdir())
    for secret in (keyed.infer, keyed.admin):
        assert secret not in keyed.serving.stderr() + logs.decode(errors="replace")


def test_other_interfaces_need_keys_or_a_word(store, gguf_reference):
    result = call(store, "serve", gguf_reference, "--listen", "0.0.0.0:0", status=2)
    assert "--insecure" in error_line(result)
    missing = call(store, "serve", gguf_reference, "--keys", "nowhere.json", status=2)
    assert "runner key add" in error_line(missing)
    assert not store.exists()


def test_without_keys_strangers_may_use_models_and_change_nothing(serve, gguf_reference):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    serve(gguf_reference, "--lazy", "--insecure", "--listen", f"0.0.0.0:{port}")
    wait_until(lambda: is_healthy(url), 60)
    assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == gguf_reference
    for path in ("/engines/unload", "/engines/_configure", "/models/create"):
        assert httpx.post(f"{url}{path}", json={}).status_code == 403


def test_every_answer_has_an_id_and_names_its_model(keyed):
    expected = digest(keyed)
    with keyed.client(keyed.infer) as client:
        good = client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}, headers={"X-Request-Id": "abc-1"})
        bad = client.post("/v1/chat/completions", json={"messages": "none"})
        shown = client.post("/api/show", json={"model": keyed.reference})
        strange = client.get("/v1/models", headers={"X-Request-Id": "no spaces"})
    assert good.headers["X-Request-Id"] == "abc-1"
    assert len(strange.headers["X-Request-Id"]) == 32
    assert 400 <= bad.status_code < 600
    for answer in (good, bad, shown):
        assert answer.headers[DIGEST_HEADER] == expected


def test_openai_client(keyed):
    client = openai.OpenAI(base_url=f"{keyed.serving.url}/v1", api_key=keyed.infer)
    chunks = list(
        client.chat.completions.create(
            model=keyed.reference, stream=True, max_tokens=24, messages=[{"role": "user", "content": "hi"}],
            extra_body={"ignore_eos": True},
        )
    )  # fmt: skip
    assert len(chunks) > 4
    response = client.responses.create(model=keyed.reference, input="hi", max_output_tokens=4)
    assert response.model
    assert len(client.embeddings.create(model=keyed.reference, input=["a", "b"]).data) == 2
    tools = [{"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}]
    parts = [{"type": "text", "text": "what "}, {"type": "text", "text": "time"}]
    message = [{"role": "user", "content": parts}]
    answer = client.chat.completions.create(
        model=keyed.reference, messages=message, tools=tools, tool_choice="required", max_tokens=64,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    assert answer.choices[0].message.tool_calls or answer.choices[0].finish_reason == "length"


def test_what_an_engine_refuses_comes_through(keyed):
    with keyed.client(keyed.infer) as client:
        answer = client.post("/v1/rerank", json={"query": "a", "documents": ["b"]})
        form = client.post("/v1/audio/transcriptions", data={"model": "unknown"}, files={"file": b"RIFF"})
        sound = client.post("/v1/audio/transcriptions", data={"model": keyed.reference}, files={"file": b"RIFF"})
    assert answer.status_code >= 400
    assert "rerank" in answer.text
    assert form.json()["error"]["code"] == "model_not_found"
    assert sound.status_code >= 400
    assert sound.headers[DIGEST_HEADER] == digest(keyed)


def test_rankers_and_embedders(serve, tmp_path):
    embedder, ranker = encoders(tmp_path)
    serving = serve(ranker, embedder, "--lazy").wait_ready()
    with httpx.Client(base_url=serving.url, timeout=60) as client:
        documents = ["b c", "d", "a b"]
        for path in ("/rerank", "/v1/rerank", "/engines/llama.cpp/v1/rerank"):
            body = {"model": ranker, "query": "a b", "documents": documents, "top_n": 2}
            answer = client.post(path, json=body)
            assert answer.status_code == 200, answer.text
            scores = [row["relevance_score"] for row in answer.json()["results"]]
            assert len(scores) == 2
            assert scores == sorted(scores, reverse=True)
        configured = client.post("/engines/_configure", json={"model": ranker, "mode": "reranking"})
        assert configured.status_code == 202, configured.text
        assert configured.headers[DIGEST_HEADER] == answer.headers[DIGEST_HEADER]
    client = openai.OpenAI(base_url=f"{serving.url}/v1", api_key="none", timeout=60)
    first, second = (row.embedding for row in client.embeddings.create(model=embedder, input=["a b", "c"]).data)
    assert len(first) == len(second) == 64
    assert first != second
    asked = ollama.Client(host=serving.url, timeout=60)
    assert asked.embed(embedder, "a b").embeddings[0] == pytest.approx(first, abs=1e-3)
    assert asked.embeddings(embedder, "a b").embedding == pytest.approx(first, abs=1e-3)


def test_ollama_client(keyed):
    client = ollama.Client(host=keyed.serving.url, headers={"Authorization": f"Bearer {keyed.infer}"})
    (listed,) = client.list().models
    assert listed.model == keyed.reference
    (running,) = client.ps().models
    assert running.digest == digest(keyed).removeprefix("sha256:")
    assert client.show(keyed.reference).details.format == "gguf"
    options = {"num_predict": 6, "seed": 1, "temperature": 0}
    messages = [{"role": "user", "content": "hi"}]
    whole = client.chat(model=keyed.reference, messages=messages, options=options)
    pieces = list(client.chat(model=keyed.reference, messages=messages, options=options, stream=True))
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert "".join(piece.message.content or "" for piece in pieces) == whole.message.content
    assert whole.eval_count == pieces[-1].eval_count == 6
    assert whole.done_reason == "length"
    generated = client.generate(model=keyed.reference, prompt="hi", options=options)
    assert generated.response == whole.message.content
    assert client.generate(model=keyed.reference, prompt="a", raw=True, options=options).eval_count == 6
    assert len(client.embed(model=keyed.reference, input=["a", "b"]).embeddings) == 2
    with pytest.raises(ollama.ResponseError, match="not found"):
        client.chat(model="other", messages=messages)
    with pytest.raises(ollama.ResponseError, match="num_ctx"):
        client.chat(model=keyed.reference, messages=messages, options={"num_ctx": 99999})
    with pytest.raises(ollama.ResponseError, match="command line"):
        client.chat(model=keyed.reference, messages=messages, options={"num_gpu": 1})
    with pytest.raises(ollama.ResponseError, match="admin"):
        client.generate(model=keyed.reference, keep_alive=0)


def test_metrics_of_gateway_and_engine_carry_the_digest(keyed):
    with keyed.client(keyed.infer) as client:
        client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1})
        lines = client.get("/metrics").text.splitlines()
    label = f'digest="{digest(keyed)}"'
    samples = [line for line in lines if label in line]
    assert any(line.startswith("llamacpp:tokens_predicted_total{") for line in samples)
    assert any(line.startswith("stowage_requests_total{") and 'status="200"' in line for line in samples)
    assert any(line.startswith("stowage_first_byte_seconds_bucket{") for line in samples)
    assert any('state="ready"' in line and line.endswith(" 1.0") for line in samples)


def test_a_cancelled_request_reaches_the_engine_in_every_dialect(serve, gguf_reference):
    serving = serve(gguf_reference, "--", "--parallel", "1").wait_ready()
    options = {"num_predict": 1500, "temperature": 0}  # with which it does not end before
    body = {"model": gguf_reference, "messages": [{"role": "user", "content": "hi"}], "options": options}
    with (
        httpx.Client(timeout=60) as client,
        client.stream("POST", f"{serving.url}/api/chat", json=body) as answer,
    ):
        lines = answer.iter_lines()
        assert json.loads(next(lines))["done"] is False
    wait_until(lambda: serving.engine_metric("llamacpp:requests_processing") == 0, 30)
    assert serving.engine_metric("llamacpp:tokens_predicted_total") < 1500
