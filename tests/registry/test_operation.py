"""What an operator sees: metrics, access log, request ids, limits. Against a running server."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from registry.http.app import create_app
from registry.limits import RateLimits
from registry.metrics import REQUESTS, UPLOADS, Metrics
from registry.store.open import open_store
from tests.registry.conftest import environment
from tests.registry.pushing import error_code, push_blob, push_image, sha256
from tests.registry.servers import RunningRegistry, StartRegistry

MIB = 1024 * 1024


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of an exposition, as Prometheus's own parser reads it."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(server: RunningRegistry, name: str, **labels: str) -> float:
    found = samples(httpx.get(f"{server.url}/metrics").text)
    return found.get((f"stowage_registry_{name}", frozenset(labels.items())), 0.0)


def eventually(condition, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_store_that_is_away_is_not_described_to_clients(tmp_path: Path) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_CONFIG_FILE": str(tmp_path / "none")}
    with environment({"AWS_ENDPOINT_URL": "http://127.0.0.1:1", **keys}):
        client = TestClient(create_app(open_store("s3://bucket/prefix")))
        answer = client.get("/v2/a/manifests/v1")
        assert (answer.status_code, error_code(answer)) == (503, "UNAVAILABLE")
        ready = client.get("/readyz")
        assert ready.status_code == 503
    for text in (answer.text, ready.text):
        assert "object store does not answer" in text
        assert not any(word in text for word in ("127.0.0.1", "bucket", "prefix", "manifests", "blobs"))


def configured(tmp_path: Path, registry_server: StartRegistry, text: str, *options: str) -> RunningRegistry:
    config = tmp_path / "registry.toml"
    config.write_text(text)
    return registry_server(tmp_path / "storage", "--config", str(config), *options)


def test_metrics_count_requests_bytes_and_latency(tmp_path: Path, registry_server: StartRegistry) -> None:
    server = registry_server(tmp_path / "storage")
    data = bytes(3 * MIB)
    with httpx.Client(base_url=server.url) as client:
        push_blob(client, "met/rics", data)
        for _ in range(3):
            assert len(client.get(f"/v2/met/rics/blobs/{sha256(data)}").content) == len(data)
        client.get("/v2/met/rics/manifests/none")
    assert value(server, "requests_total", route="blob", method="GET", status="200") == 3
    assert value(server, "requests_total", route="manifest", method="GET", status="404") == 1
    assert value(server, "sent_bytes_total", route="blob") == 3 * len(data)
    assert value(server, "received_bytes_total", route="upload") == len(data)
    assert value(server, "request_seconds_count", route="blob") == 3
    assert value(server, "request_seconds_bucket", route="blob", le="+Inf") == 3
    assert value(server, "requests_in_flight") == value(server, "uploads_in_flight") == 0


def test_metrics_of_several_workers_add_up(tmp_path: Path, registry_server: StartRegistry) -> None:
    server = registry_server(tmp_path / "storage", "--workers", "2")
    with ThreadPoolExecutor(4) as pool:  # a connection each: they come to whichever worker takes them
        list(pool.map(lambda _: httpx.get(f"{server.url}/v2/"), range(30)))
    eventually(lambda: value(server, "requests_total", route="base", method="GET", status="200") == 30)


def test_no_metrics_when_switched_off(tmp_path: Path, registry_server: StartRegistry) -> None:
    server = configured(tmp_path, registry_server, "[metrics]\nenabled = false\n")
    assert httpx.get(f"{server.url}/metrics").status_code == 404
    assert httpx.get(f"{server.url}/healthz").text == httpx.get(f"{server.url}/readyz").text == "ok\n"


@given(st.text(max_size=30), st.floats(0, 1e9), st.integers(0, 3))
def test_any_label_can_be_read_back(label: str, amount: float, dead: int) -> None:
    """Also from the files of processes that have ended, whose gauges count no more."""
    total, mine = Metrics(), Metrics()
    mine.add(REQUESTS, label, "GET", "200", amount=amount)
    mine.add(UPLOADS)
    total.merge(mine.snapshot())
    for _ in range(dead):
        total.merge(json.dumps({**json.loads(mine.snapshot()), "pid": 2**30}).encode())  # beyond what Linux gives
    found = samples("\n".join(total._lines()) + "\n")
    key = frozenset({"route": label, "method": "GET", "status": "200"}.items())
    assert found["stowage_registry_requests_total", key] == pytest.approx(amount * (dead + 1))
    assert found["stowage_registry_uploads_in_flight", frozenset()] == 1


@pytest.mark.parametrize("format_", ["text", "json"])
def test_access_log(tmp_path: Path, registry_server: StartRegistry, format_: str) -> None:
    """One line a request, with id, principal, status and bytes; no query, which may hold a secret."""
    server = configured(tmp_path, registry_server, f'[log]\nformat = "{format_}"\n')
    data = b"x" * 100
    with httpx.Client(base_url=server.url) as client:
        push_blob(client, "log/ged", data)
        answer = client.get(f"/v2/log/ged/blobs/{sha256(data)}?token=secret")
    request_id = answer.headers["x-request-id"]
    eventually(lambda: request_id in server.log.read_text())
    line = next(line for line in server.log.read_text().splitlines() if request_id in line)
    assert "secret" not in line
    if format_ == "json":
        found = json.loads(line)
        assert (found["method"], found["status"], found["sent"]) == ("GET", 200, 100)
        assert (found["principal"], found["client"]) == ("anonymous", "127.0.0.1")
        assert found["path"] == f"/v2/log/ged/blobs/{sha256(data)}"
    else:
        assert f'GET "/v2/log/ged/blobs/{sha256(data)}" 200 0 100 ' in line


def test_nobody_writes_lines_of_their_own_into_the_log(tmp_path: Path, registry_server: StartRegistry) -> None:
    server = registry_server(tmp_path / "storage")
    httpx.get(f"{server.url}/v2/a%0Aforged%22line/tags/list", headers={"X-Request-Id": "forged\tid"})
    eventually(lambda: "forged%22line" in server.log.read_text())
    assert not any(line.startswith("forged") for line in server.log.read_text().splitlines())


def test_request_ids_are_made_unless_a_trusted_proxy_says_one(tmp_path: Path, registry_server: StartRegistry) -> None:
    told = {"X-Request-Id": "from-the-proxy.1", "X-Forwarded-For": "203.0.113.7, 192.0.2.9"}
    server = configured(tmp_path, registry_server, "")
    ids = {httpx.get(f"{server.url}/v2/", headers=told).headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3
    assert "from-the-proxy.1" not in ids
    trusting = configured(tmp_path, registry_server, '[server]\ntrusted-proxies = ["127.0.0.0/8"]\n')
    assert httpx.get(f"{trusting.url}/v2/", headers=told).headers["x-request-id"] == "from-the-proxy.1"
    evil = httpx.get(f"{trusting.url}/v2/", headers={"X-Request-Id": 'a b"c'}).headers["x-request-id"]
    assert evil.isalnum()
    eventually(lambda: "from-the-proxy.1" in trusting.log.read_text())
    line = next(line for line in trusting.log.read_text().splitlines() if "from-the-proxy.1" in line)
    assert " 192.0.2.9 " in line, "the nearest address that is no trusted proxy"


def test_errors_have_an_id_too(tmp_path: Path, registry_server: StartRegistry) -> None:
    server = registry_server(tmp_path / "storage")
    answer = httpx.get(f"{server.url}/v2/no/such/manifests/v1")
    assert answer.status_code == 404
    assert len(answer.headers["x-request-id"]) == 32


def test_rate_limit(tmp_path: Path, registry_server: StartRegistry) -> None:
    """429 with the code of the specification and the time to wait; health checks are not counted."""
    server = configured(tmp_path, registry_server, "[limits]\nrequests-per-second = 1\nburst = 3\n")
    with httpx.Client(base_url=server.url) as client:
        answers = [client.get("/v2/") for _ in range(6)]
        assert [answer.status_code for answer in answers[:3]] == [200] * 3
        assert answers[-1].status_code == 429
        assert error_code(answers[-1]) == "TOOMANYREQUESTS"
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 3
        assert client.get("/healthz").status_code == 200
        time.sleep(1.1)
        assert client.get("/v2/").status_code == 200
    assert value(server, "limited_total") >= 1


@given(st.lists(st.floats(0, 5), max_size=60), st.floats(0.1, 20), st.integers(1, 20))
def test_no_sender_gets_more_than_the_rate(pauses: list[float], rate: float, burst: int) -> None:
    now = 0.0
    limits = RateLimits(rate, burst, clock=lambda: now)
    allowed = 0
    for turn, pause in enumerate(pauses):
        now += pause
        wait = limits.wait("somebody")
        allowed += wait == 0
        assert wait <= 1 / rate + 1e-9
        assert limits.wait(f"sender {turn}") == 0, "each has a bucket of its own"
    assert allowed <= burst + rate * now + 1e-6


def test_unlimited_without_a_rate() -> None:
    assert all(RateLimits().wait("x") == 0 for _ in range(100))


def test_pushes_in_flight_are_seen(tmp_path: Path, registry_server: StartRegistry) -> None:
    server = registry_server(tmp_path / "storage")
    seen: list[float] = []

    def slow():
        yield bytes(1000)
        eventually(lambda: value(server, "uploads_in_flight") == 1)
        seen.append(value(server, "uploads_in_flight"))
        yield b""

    with httpx.Client(base_url=server.url) as client:
        push_image(client, "in/flight")
        location = client.post("/v2/in/flight/blobs/uploads/").headers["location"]
        assert client.patch(location, content=slow()).status_code == 202
    assert seen == [1]
    assert value(server, "uploads_in_flight") == 0
