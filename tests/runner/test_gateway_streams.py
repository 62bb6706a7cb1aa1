"""What passes the gateway unchanged, and what a client is told when an engine breaks off."""

from __future__ import annotations

import base64
import json
import os
import select
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import httpx
import ollama
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.gateway.events import WholeEvents
from tests.runner.commands import Serving, processes_in, wait_until

pytestmark = pytest.mark.engine


@given(st.lists(st.binary(max_size=12) | st.sampled_from([b"data: a\n\n", b"\r\n\r\n", b"\n", b"b\r\n"]), max_size=20))
def test_a_stream_can_only_break_between_two_events(pieces: list[bytes]) -> None:
    whole = WholeEvents()
    passed = [whole.take(piece) for piece in pieces]
    assert all(not piece or piece.endswith((b"\n\n", b"\r\n\r\n")) for piece in passed)
    assert b"".join(passed) + whole.rest() == b"".join(pieces)


def test_an_event_too_large_to_be_kept_back_goes_in_pieces() -> None:
    whole = WholeEvents()
    assert whole.take(b"x" * 1024 * 1024) == b""
    assert len(whole.take(b"y")) == 1024 * 1024 + 1


def engines(store: Path) -> list[int]:
    """Ids of the engine processes of a store."""
    return [pid for pid in processes_in(store) if b"guard.py" not in Path(f"/proc/{pid}/cmdline").read_bytes()]


class Killer:
    """Kills a runner's engine, one after the other."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._killed: set[int] = set()

    def kill(self) -> None:
        """Kill the engine that runs now."""
        (engine,) = engines(self._serving.store)
        self._killed.add(engine)
        os.kill(engine, signal.SIGKILL)

    def wait_for_the_next(self) -> None:
        """Return when another engine is ready."""

        def runs() -> bool:
            found = {*engines(self._serving.store)}
            return bool(found) and not found & self._killed

        wait_until(runs, 60)
        self._serving.wait_ready()


def test_a_killed_engine_ends_every_stream_with_an_error_of_its_dialect(serve, gguf_reference):
    serving = serve(gguf_reference).wait_ready()
    killer = Killer(serving)
    messages = [{"role": "user", "content": "hi"}]

    client = openai.OpenAI(base_url=f"{serving.url}/v1", api_key="none", max_retries=0, timeout=60)
    chunks = client.chat.completions.create(
        model=gguf_reference, messages=messages, stream=True, max_tokens=8000, extra_body={"ignore_eos": True}
    )
    next(iter(chunks))
    killer.kill()
    with pytest.raises(openai.APIError, match="broke off"):
        list(chunks)

    killer.wait_for_the_next()
    lines: list[str] = []
    body = {"model": gguf_reference, "input": "hi", "max_output_tokens": 8000, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", f"{serving.url}/v1/responses", json=body, timeout=60) as answer:
        told = answer.iter_lines()
        while "delta" not in (line := next(told)):
            lines.append(line)
        killer.kill()
        with pytest.raises(httpx.RemoteProtocolError):  # no end in HTTP either
            lines.extend(told)
    *_, event, data, empty = lines
    assert (event, empty) == ("event: error", "")
    error = json.loads(data.removeprefix("data: "))
    assert (error["type"], error["code"]) == ("error", "engine-broken")
    assert not any("response.completed" in line for line in lines)

    killer.wait_for_the_next()
    asked = ollama.Client(host=serving.url, timeout=60)
    pieces = asked.chat(model=gguf_reference, messages=messages, stream=True, options={"num_predict": 8000})
    assert not next(pieces).done
    killer.kill()
    with pytest.raises(ollama.ResponseError, match="broke off"):
        list(pieces)


@pytest.fixture
def echo(serve: Callable[..., Serving], echo_engine: tuple[str, ...], gguf_reference: str) -> Serving:
    """A runner whose engine answers with what it was asked."""
    return serve(gguf_reference, *echo_engine).wait_ready()


def test_what_is_asked_reaches_the_engine_unchanged(echo, gguf_reference):
    alias = gguf_reference.rpartition(":")[0]

    def post(path: str, headers: dict[str, str], body: bytes) -> tuple[str, dict[str, str], bytes]:
        answer = httpx.post(f"{echo.url}{path}", content=body, headers=headers, timeout=60).json()
        told = {name.lower(): value for name, value in answer["headers"].items()}
        return answer["target"], told, base64.b64decode(answer["body"])

    text = json.dumps({"model": gguf_reference, "messages": [{"role": "tool", "content": "é\n"}], "x": [1.0, None]})
    odd = text.replace(", ", " ,\n\t").encode()
    json_type = {"content-type": "application/json"}
    secrets = {"authorization": "Bearer stw_secret", "cookie": "a=b"}
    for path in ("chat/completions", "completions", "embeddings", "rerank", "responses"):
        target, told, body = post(f"/v1/{path}", {**json_type, **secrets, "x-request-id": "id-1"}, odd)
        assert (target, body) == (f"/v1/{path}", odd)
        assert told["x-request-id"] == "id-1"
        assert not {"authorization", "cookie"} & set(told)
    _, _, body = post("/v1/completions", json_type, json.dumps({"model": alias, "tools": [{"é": 1}]}).encode())
    assert json.loads(body) == {"model": gguf_reference, "tools": [{"é": 1}]}

    form_type = {"content-type": 'multipart/form-data; boundary="sep arated"'}
    file = b'Content-Disposition: form-data; name="file"; filename="model"\r\n\r\n\x00\xff--sep\r\n'
    for name, kept in ((gguf_reference, True), (alias, False)):
        model = b'Content-Disposition: form-data; name="model"\r\n\r\n%b' % name.encode()
        form = b"".join(b"--sep arated\r\n%b\r\n" % part for part in (file, model)) + b"--sep arated--\r\n"
        target, told, body = post("/v1/audio/transcriptions", form_type, form)
        assert (target, told["content-type"]) == ("/v1/audio/transcriptions", form_type["content-type"])
        assert body == (form if kept else form.replace(model, model.replace(name.encode(), gguf_reference.encode())))


def test_half_an_event_is_no_event(echo):
    lines: list[str] = []
    with (
        pytest.raises(httpx.RemoteProtocolError),
        httpx.stream(
            "POST", f"{echo.url}/v1/chat/completions", json={}, headers={"x-request-id": "break-event"}, timeout=60
        ) as answer,
    ):
        lines.extend(answer.iter_lines())
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line]
    assert events[0] == {"choices": []}
    assert [event["error"]["code"] for event in events[1:]] == ["engine-broken"]


def test_no_answer_is_an_error_in_both_dialects(echo, gguf_reference):
    silent = {"x-request-id": "break-head"}
    answer = httpx.post(f"{echo.url}/v1/completions", json={"prompt": "a"}, headers=silent, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine-broken")
    body = {"model": gguf_reference, "prompt": "a"}
    answer = httpx.post(f"{echo.url}/api/generate", json=body, headers=silent, timeout=60)
    assert answer.status_code == 503
    assert "did not answer" in answer.json()["error"]


def test_heads_and_bodies_are_bounded(echo, gguf_reference):
    """Before anybody is asked who they are."""
    head, place = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n", ("127.0.0.1", echo.port)
    chunked = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    for parts in (
        [head + b"x: " + b"y" * 70_000 + b"\r\n\r\n"],
        [head + b"x: ", *[b"y" * 10_000] * 60],
        [b"GET /" + b"y" * 70_000],
        [chunked + b"2\r\n{}\r\n0\r\nx: ", *[b"y" * 10_000] * 60],
    ):
        with socket.create_connection(place, 30) as client:
            for part in parts:
                client.sendall(part)
                if select.select([client], [], [], 0.05)[0]:
                    break
            assert client.recv(100).startswith(b"HTTP/1.1 431 ")
    with httpx.Client(base_url=echo.url, timeout=60) as client:
        for number in (1, 200):
            headers = {f"x-{at}": "y" * 250 for at in range(number)}
            body = {"model": gguf_reference, "prompt": "z" * 300_000}
            assert client.post("/v1/completions", json=body, headers=headers).status_code == 200
        large = b" " * (64 * 1024 * 1024 + 1)
        for path in ("/api/chat", "/api/pull", "/engines/unload"):
            assert client.post(path, content=large).status_code == 413


def test_what_ollamas_clients_must_not_say_is_their_mistake(echo, gguf_reference):
    with httpx.Client(base_url=echo.url, timeout=60) as client:
        for wrong in (
            {"options": "x"}, {"options": {"num_predict": "5"}}, {"images": 5}, {"keep_alive": 1e300},
            {"keep_alive": "9999999999h"}, {"prompt": ["a"]}, {"system": 5}, {"model": "\ud800"},
        ):  # fmt: skip
            body = {"model": gguf_reference, "prompt": "a", **wrong}
            refused = client.post("/api/generate", content=json.dumps(body), headers={"x-request-id": "break-head"})
            assert refused.status_code == (404 if "model" in wrong else 400), wrong
            assert isinstance(refused.json()["error"], str)
        assert client.get("/api/ps").json()["models"][0]["name"] == gguf_reference
