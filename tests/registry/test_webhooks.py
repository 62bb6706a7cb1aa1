"""Webhooks against a receiver that is there, one that is not, and one that misbehaves."""

from __future__ import annotations

import hashlib
import hmac
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry import keys
from registry.config.sections import Webhook
from registry.events import Event
from registry.metrics import Metrics
from registry.outbox import Outbox
from registry.receiver import receiver_id
from registry.store.open import open_store
from registry.store.protocol import ObjectStore
from registry.webhooks import Webhooks
from tests.registry.conftest import Backend
from tests.registry.pushing import MANIFEST, manifest_of, push_blob, push_image, put_manifest, sha256
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
        deadline = time.monotonic() + 90
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


def test_what_is_refused_is_not_told(tmp_path: Path, registry_server: StartRegistry, receiver: Receiver) -> None:
    (tmp_path / "registry.toml").write_text(
        f'[immutable]\ntags = ["**:v*"]\nkeep = true\n[[webhooks]]\nurl = "{receiver.url}"\n'
    )
    server = registry_server(tmp_path / "storage", "--config", str(tmp_path / "registry.toml"))
    with httpx.Client(base_url=server.url) as client:
        push_image(client, "team/model", "v1", b"one")
        push_blob(client, "team/model", b"two")
        assert put_manifest(client, "team/model", manifest_of([b"two"]), "v1").status_code == 403
        assert client.delete("/v2/team/model/manifests/v1").status_code == 403
        assert client.delete("/v2/team/model/manifests/v2").status_code == 404
        assert client.delete(f"/v2/team/model/manifests/{sha256(b'none')}").status_code == 404
        push_image(client, "team/model", "last", b"three")
    events = receiver.wait(4)
    assert [event["data"].get("tag") for event in events] == [None, "v1", None, "last"]
    wait_until(lambda: waiting(open_store(server.storage)) == [])


def hooks(
    store: ObjectStore, receiver: Receiver, metrics: Metrics, url: str = "", lease: float = 30.0, keep: float = 3600.0
) -> Webhooks:
    made = Webhooks(store, metrics, first_delay=0.02, lease=lease)
    made.configure([Webhook(url or receiver.url, ("push", "delete", "tag"), keep=keep)], "")
    return made


def publish(webhooks: Webhooks, *events: Event) -> None:
    with webhooks.notice("somebody", "1") as notice:
        notice.will(*events)


def outcomes(metrics: Metrics) -> dict[str, float]:
    return {labels[0]: value for (name, labels), value in metrics._values.items() if name == "events_total"}


def waiting(store: ObjectStore) -> list[str]:
    return [entry.key for entry in store.list(keys.EVENTS)]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(str(tmp_path / "events"))


def test_tried_again_until_it_is_taken_and_in_order(store: ObjectStore, receiver: Receiver) -> None:
    receiver.answer = lambda number: 503 if number < 4 else 200
    metrics = Metrics()
    webhooks = hooks(store, receiver, metrics)
    for name in ("one", "two"):
        publish(webhooks, Event("push", name, "sha256:00"))
    events = receiver.wait(5)
    assert [event["data"]["repository"] for event in events] == ["one"] * 4 + ["two"]
    assert len({event["id"] for event in events[:4]}) == 1, "the receiver can tell a repetition"
    webhooks.close()
    assert outcomes(metrics) == {"delivered": 2}
    assert waiting(store) == []


@pytest.mark.parametrize("status", [302, 400, 404])
def test_a_refusal_is_final_and_a_redirect_is_not_followed(store: ObjectStore, receiver: Receiver, status: int) -> None:
    """SSRF: no answer of a receiver makes the registry ask anybody else."""
    receiver.answer = lambda number: status
    metrics = Metrics()
    webhooks = hooks(store, receiver, metrics)
    publish(webhooks, Event("push", "one", "sha256:00"))
    receiver.wait(1)
    webhooks.close()
    assert len(receiver.requests) == 1
    assert outcomes(metrics) == {"failed": 1}
    assert waiting(store) == []


def test_an_event_that_is_never_taken_does_not_hold_up_the_rest(store: ObjectStore, receiver: Receiver) -> None:
    receiver.answer = lambda number: 500 if b'"poison"' in receiver.requests[number - 1][1] else 204
    metrics = Metrics()
    webhooks = hooks(store, receiver, metrics)
    for name in ("poison", "good"):
        publish(webhooks, Event("push", name, "sha256:00"))
    wait_until(lambda: outcomes(metrics) == {"delivered": 1})
    webhooks.close(seconds=20)
    assert len([key for key in waiting(store) if not key.endswith("/lease")]) == 1, "it is kept, nevertheless"


def test_what_a_process_leaves_another_delivers(store: ObjectStore, receiver: Receiver) -> None:
    """Nobody is there while one process runs, and ends; then there is."""
    metrics = Metrics()
    first = hooks(store, receiver, metrics, "http://127.0.0.1:9/")
    for number in range(3):
        publish(first, Event("push", f"n{number}", "sha256:00"), Event("tag", f"n{number}", "sha256:00", "v1"))
    first.close(seconds=1)
    assert outcomes(metrics) == {}
    ours = receiver_id(Webhook(receiver.url, ()))
    theirs = receiver_id(Webhook("http://127.0.0.1:9/", ()))
    for key in waiting(store):  # the receiver has moved to where it is reached
        if not key.endswith("/lease"):
            store.put(key.replace(theirs, ours), store.get(key).data)
            store.delete(key)
    second = hooks(store, receiver, Metrics())
    events = receiver.wait(6)
    assert [event["data"]["repository"] for event in events] == ["n0", "n0", "n1", "n1", "n2", "n2"]
    assert all(event["data"]["principal"] == "somebody" for event in events)
    second.close()
    assert waiting(store) == []


def test_the_living_are_left_their_events(store: ObjectStore) -> None:
    """By the clock: an owner that renews its lease keeps what it has; one that does not is succeeded by one other."""
    now = time.time()
    clock = lambda: now  # noqa: E731
    owner, one, two = (Outbox(store, 30.0, clock) for _ in range(3))
    key = owner.new_key("0" * 16)
    owner.write(key, [Event("push", "x", "sha256:00")])
    now = time.time() + 50
    assert one.mine()[0] == [], "too fresh for its owner to have had to say anything"
    owner.renew()
    now += 29
    assert one.mine()[0] == []
    now += 2
    assert [found for found, _ in one.mine()[0]] == [key]
    assert two.mine()[0] == []
    owner.renew()  # thought dead, it may go on, but what is new is under another name
    assert owner.new_key("0" * 16).split("/")[1] != key.split("/")[1]
    one.remove(key)
    one.rest()
    assert waiting(store) == []


def test_killed_with_events_that_wait(
    backend: Backend, tmp_path: Path, registry_server: StartRegistry, receiver: Receiver
) -> None:
    """SIGKILL loses nothing that was acknowledged: the next process delivers it, under the same ids."""
    (tmp_path / "registry.toml").write_text(f'[[webhooks]]\nurl = "{receiver.url}"\n')
    receiver.answer = lambda number: 503
    server = registry_server(backend.storage, "--config", str(tmp_path / "registry.toml"), env=backend.env)
    with httpx.Client(base_url=server.url, timeout=60) as client:
        pushed = [sha256(push_image(client, "team/model", f"v{number}", bytes([number]))) for number in range(3)]
        assert client.delete("/v2/team/model/manifests/v0").status_code == 202
    tried = {event["id"] for event in receiver.wait(1)}
    server.kill()
    receiver.answer = lambda number: 204
    before = len(receiver.requests)
    webhooks = hooks(backend.open(), receiver, Metrics(), lease=0.5)
    events = receiver.wait(before + 7)[before:]
    kinds = [event["type"].removeprefix("dev.stowage.registry.") for event in events]
    assert kinds == ["push", "tag"] * 3 + ["delete"]
    assert [event["data"]["digest"] for event in events[:6:2]] == pushed
    assert tried <= {event["id"] for event in events}
    wait_until(lambda: [key for key in waiting(backend.open()) if not key.endswith("/lease")] == [])
    webhooks.close()


def test_killed_between_the_tag_and_the_answer(store: ObjectStore, receiver: Receiver) -> None:
    """What is written before a tag moves is told although nobody came to say that it moved."""
    dying = hooks(store, receiver, Metrics(), lease=0.3)
    dying.notice().will(Event("tag", "one", "sha256:00", "v1"))
    dying._closing = True
    dying._wake.set()
    webhooks = hooks(store, receiver, Metrics(), lease=0.3)
    assert receiver.wait(1)[0]["subject"] == "one:v1"
    webhooks.close()


def test_there_is_an_end(store: ObjectStore, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of how many events wait for a receiver, and for how long; what is dropped is counted."""
    monkeypatch.setattr("registry.webhooks.MOST_WAITING", 5)
    metrics = Metrics()
    webhooks = hooks(store, receiver, metrics, "http://127.0.0.1:9/")
    for _ in range(9):
        publish(webhooks, Event("push", "one", "sha256:00"))
    assert outcomes(metrics) == {"dropped": 4}
    assert len(waiting(store)) == 5
    webhooks.close(seconds=1)
    late = Metrics()
    webhooks = hooks(store, receiver, late, keep=1.0)
    publish(webhooks, Event("push", "one", "sha256:00", time=time.time() - 2), Event("push", "two", "sha256:00"))
    assert receiver.wait(1)[0]["data"]["repository"] == "two"
    webhooks.close()
    assert outcomes(late) == {"expired": 1, "delivered": 1}


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.builds(
            Event, st.sampled_from(["push", "tag", "delete"]), st.text(), st.none() | st.text(), st.none() | st.text(),
            st.none() | st.text(), st.none() | st.integers(), st.none() | st.text(), st.text(), st.text(),
            st.floats(allow_nan=False), st.text(),
        )
    )
)  # fmt: skip
def test_any_event_is_read_as_it_was_written(events: list[Event]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        outbox = Outbox(open_store(folder))
        key = outbox.new_key("0" * 16)
        outbox.write(key, events)
        assert outbox.read(key) == events
        outbox._store.put(key, b"[{]")
        assert outbox.read(key) == []
