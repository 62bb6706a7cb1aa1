"""Webhooks against a receiver that is there, one that is not, and one that misbehaves."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from registry.config.sections import Webhook
from registry.events import Event
from registry.metrics import Metrics
from registry.webhooks import Webhooks
from tests.registry.pushing import MANIFEST, push_image, sha256
from tests.registry.servers import StartRegistry


class Receiver:
    """Keeps what it is sent; `answer` decides the status of each request by its number."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.answer: Callable[[int], int] = lambda number: 204
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.requests.append(({key.lower(): item for key, item in self.headers.items()}, body))
                status = receiver.answer(len(receiver.requests))
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", f"{receiver.url}/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.requests]

    def wait(self, count: int) -> list[dict[str, Any]]:
        deadline = time.monotonic() + 20
        while len(self.requests) < count:
            assert time.monotonic() < deadline, self.events
            time.sleep(0.02)
        return self.events


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    thread = threading.Thread(target=receiver.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()
    thread.join()


def test_push_tag_move_and_delete(tmp_path: Path, registry_server: StartRegistry, receiver: Receiver) -> None:
    (tmp_path / "secret").write_text("a secret\n")
    (tmp_path / "registry.toml").write_text(
        f'[server]\npublic-url = "http://127.0.0.1"\n[[webhooks]]\nurl = "{receiver.url}/h"\nsecret-file = "secret"\n'
        'repositories = ["team/**"]\n'
    )
    server = registry_server(tmp_path / "storage", "--config", str(tmp_path / "registry.toml"))
    with httpx.Client(base_url=server.url) as client:
        push_image(client, "other/model")  # nobody asked about it
        first = push_image(client, "team/model", "v1", b"one")
        second = push_image(client, "team/model", "v1", b"two")
        push_image(client, "team/model", "v1", b"two")  # the tag stays where it is
        assert client.delete("/v2/team/model/manifests/v1").status_code == 202
        assert client.delete(f"/v2/team/model/manifests/{sha256(first)}").status_code == 202
    events = receiver.wait(7)
    kinds = [event["type"].removeprefix("dev.stowage.registry.") for event in events]
    assert kinds == ["push", "tag", "push", "tag", "push", "delete", "delete"]
    for event in events:
        assert event["specversion"] == "1.0"
        assert event["source"] == "http://127.0.0.1"
        assert {"id", "time", "subject"} <= set(event)
    assert len({event["id"] for event in events}) == 7
    assert events[0]["data"]["mediaType"] == MANIFEST
    assert events[0]["data"]["size"] == len(first)
    assert events[0]["subject"] == f"team/model@{sha256(first)}"
    assert "previousDigest" not in events[1]["data"]
    assert events[3]["data"]["previousDigest"] == sha256(first)
    assert events[3]["data"]["digest"] == sha256(second)
    assert events[5]["subject"] == "team/model:v1"
    assert all(event["data"]["principal"] == "anonymous" and event["data"]["requestId"] for event in events)
    for headers, body in receiver.requests:
        assert headers["content-type"] == "application/cloudevents+json; charset=utf-8"
        expected = hmac.new(b"a secret", body, hashlib.sha256).hexdigest()
        assert headers["x-stowage-signature"] == f"sha256={expected}"


def test_a_receiver_that_hangs_holds_up_no_push(
    tmp_path: Path, registry_server: StartRegistry, receiver: Receiver
) -> None:
    released = threading.Event()
    receiver.answer = lambda number: (released.wait(20) and 204) or 204
    (tmp_path / "registry.toml").write_text(f'[[webhooks]]\nurl = "{receiver.url}"\n')
    server = registry_server(tmp_path / "storage", "--config", str(tmp_path / "registry.toml"))
    with httpx.Client(base_url=server.url, timeout=5) as client:
        for number in range(5):
            push_image(client, "team/model", f"v{number}")
    assert len(receiver.requests) <= 1
    released.set()
    receiver.wait(10)


def hooks(receiver: Receiver, metrics: Metrics, url: str = "") -> Webhooks:
    hook = Webhook(url or receiver.url, ("push", "delete", "tag"))
    return Webhooks([hook], "", metrics, first_delay=0.02)


def outcomes(metrics: Metrics) -> dict[str, float]:
    return {labels[0]: value for (name, labels), value in metrics._values.items() if name == "events_total"}


def test_tried_again_until_it_is_taken_and_in_order(receiver: Receiver) -> None:
    receiver.answer = lambda number: 503 if number < 4 else 200
    metrics = Metrics()
    webhooks = hooks(receiver, metrics)
    for name in ("one", "two"):
        webhooks.publish(Event("push", name, "sha256:00"))
    events = receiver.wait(5)
    assert [event["data"]["repository"] for event in events] == ["one"] * 4 + ["two"]
    assert len({event["id"] for event in events[:4]}) == 1, "the receiver can tell a repetition"
    webhooks.close()
    assert outcomes(metrics) == {"delivered": 2}


@pytest.mark.parametrize("status", [302, 400, 404])
def test_a_refusal_is_final_and_a_redirect_is_not_followed(receiver: Receiver, status: int) -> None:
    """SSRF: no answer of a receiver makes the registry ask anybody else."""
    receiver.answer = lambda number: status
    metrics = Metrics()
    webhooks = hooks(receiver, metrics)
    webhooks.publish(Event("push", "one", "sha256:00"))
    receiver.wait(1)
    webhooks.close()
    assert len(receiver.requests) == 1
    assert outcomes(metrics) == {"failed": 1}


def test_nobody_there(receiver: Receiver) -> None:
    """The queue has an end, what does not fit is counted, and closing does not take long."""
    metrics = Metrics()
    webhooks = hooks(receiver, metrics, "http://127.0.0.1:9/")
    begun = time.monotonic()
    for _ in range(1200):
        webhooks.publish(Event("push", "one", "sha256:00"))
    assert time.monotonic() - begun < 2
    webhooks.close(seconds=1)
    assert outcomes(metrics)["dropped"] >= 150
    assert time.monotonic() - begun < 5
