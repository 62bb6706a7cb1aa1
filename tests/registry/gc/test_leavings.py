"""Uploads, unfinished writes and bytes that are left over; one collector at a time; the command and the server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from registry import keys
from registry.blobs import PRESIGNED_SECONDS
from registry.gc.collector import Collector
from registry.gc.lease import LEASE, SECONDS, LeaseHeld
from registry.http.app import create_app
from registry.http.blobs import Redirects
from registry.uploads import LIFETIME
from tests.registry.conftest import Backend
from tests.registry.gc.conftest import GRACE, LAYER, Place
from tests.registry.pushing import begin, manifest_of, push_blob, put_manifest, sha256
from tests.registry.servers import ROOT, StartRegistry


def test_uploads_that_expired(place: Place) -> None:
    """Their bytes go, multipart uploads too; those that go on stay."""
    big = os.urandom(17 * 1024 * 1024)
    old = begin(place.client, "r")
    assert place.client.patch(old, content=big).status_code == 202
    place.clock.now += LIFETIME / 2
    alive = begin(place.client, "r")
    session = json.loads(place.store.get(keys.session(alive.rpartition("/")[2])).data)
    session["expires"] = place.clock.now + LIFETIME
    place.store.put(keys.session(alive.rpartition("/")[2]), json.dumps(session).encode())
    session["expires"] = place.clock.now - 1
    path = keys.session(old.rpartition("/")[2])
    place.store.put(path, json.dumps({**json.loads(place.store.get(path).data), "expires": 1}).encode())
    assert place.collector().run().expired_uploads == 1
    assert place.store._inner.unfinished() == []
    assert {key.split("/")[1] for key in place.stored() if key.startswith(("uploads/", "data/"))} <= {
        alive.rpartition("/")[2]
    }


def test_writes_that_never_ended(place: Place, driver: str) -> None:
    """A temporary file, or a multipart upload no session knows of."""
    if driver == "filesystem":
        (Path(place.store.place) / ".tmp" / "left").write_bytes(b"x")
    else:
        place.store._inner.begin_parts("data/11111111-0000-0000-0000-000000000000")
    assert len(place.store.unfinished()) == 1
    real = place.store._inner
    young = Collector(real, grace=0, clock=time.time).run()
    assert (young.unfinished_writes, len(real.unfinished())) == (0, 1)
    later = Collector(real, grace=0, clock=lambda: time.time() + LIFETIME + 60).run()
    assert (later.unfinished_writes, real.unfinished()) == (1, [])


def test_bytes_wait_for_the_urls_that_were_given_out(place: Place, driver: str) -> None:
    """With a grace period shorter than a URL lives, the record goes first and the bytes when no URL is left."""
    push_blob(place.client, "r", LAYER)
    for _ in range(2):
        place.clock.now += 10
        place.collector(grace=5).run()
    assert place.store.list("blobs/") == []
    assert len(place.store.list("data/")) == (0 if driver == "filesystem" else 1)
    place.clock.now += PRESIGNED_SECONDS + 120
    place.collector(grace=5).run()
    assert place.stored() == set()


def test_a_condemned_blob_is_not_redirected(place: Place, driver: str) -> None:
    """A URL given out after the mark could outlive the bytes."""
    if driver == "filesystem":
        pytest.skip("a folder has no URLs")
    client = TestClient(create_app(place.store), follow_redirects=False)
    path = f"/v2/r/blobs/{push_blob(client, 'r', bytes(Redirects().threshold))}"
    assert client.get(path).status_code == 307
    place.collect(1)
    assert client.get(path).status_code == 200
    assert client.head(path).status_code == 200
    assert client.get(path).status_code == 307


# One at a time, and the command.


def test_lease(place: Place) -> None:
    push_blob(place.client, "r", LAYER)
    steps = place.collector().steps()
    next(steps)
    with pytest.raises(LeaseHeld):
        place.collector().run()
    place.clock.now += SECONDS + 1
    assert place.collector().run().blobs == 1
    with suppress(LeaseHeld):
        for _ in steps:
            pass
    assert place.store.list(LEASE) == []


def test_dry_run_changes_nothing(place: Place) -> None:
    push_blob(place.client, "r", LAYER)
    before = place.stored()
    place.clock.now += GRACE + 1
    assert place.collector(dry_run=True).run().condemned == 2
    assert place.stored() == before
    place.collect(1)
    place.clock.now += GRACE + 1
    assert place.collector(dry_run=True).run().deleted_blobs == 1
    assert place.stored() == before


def run_gc(backend: Backend, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from registry.cli import main; main()", "gc", "--storage", backend.storage]
    env = {**os.environ, **backend.env}
    return subprocess.run([*command, *options], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


def test_command(backend: Backend) -> None:
    store = backend.open()
    with TestClient(create_app(store)) as client:
        push_blob(client, "r", LAYER)
        dry = run_gc(backend, "--dry-run", "--grace", "0", "--json")
        assert dry.returncode == 0, dry.stderr
        assert json.loads(dry.stdout)["condemned"] == 2
        assert run_gc(backend, "--grace", "0").returncode == 0
        assert json.loads(run_gc(backend, "--grace", "0", "--json").stdout)["deleted_blobs"] == 1
        assert client.get(f"/v2/r/blobs/{sha256(LAYER)}").status_code == 404
    store.put(LEASE, json.dumps({"expires": time.time() + 100}).encode())
    busy = run_gc(backend)
    assert (busy.returncode, len(busy.stderr.splitlines())) == (1, 1)
    assert run_gc(backend, "--grace", "-1").returncode == 2


def test_while_serving(backend: Backend, registry_server: StartRegistry) -> None:
    """Two processes over one store collect in turn, and answer meanwhile."""
    server = registry_server(
        backend.storage, "--workers", "2", "--gc-interval", "0.2", "--gc-grace", "0", env=backend.env
    )
    with httpx.Client(base_url=server.url, timeout=60) as client:
        raw = push_until_stored(client)
        push_blob(client, "r", b"unneeded")
        deadline = time.monotonic() + 60
        while client.get(f"/v2/r/blobs/{sha256(b'unneeded')}").status_code != 404:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert client.get("/v2/r/manifests/v1").content == raw
        assert client.get(f"/v2/r/blobs/{sha256(LAYER)}").content == LAYER
    assert server.stop() == 0


def push_until_stored(client: httpx.Client) -> bytes:
    """With no grace period at all a blob may go before its manifest comes; a client pushes it again."""
    raw, deadline = manifest_of([LAYER]), time.monotonic() + 60
    while True:
        for data in (b"{}", LAYER):
            push_blob(client, "r", data)
        if put_manifest(client, "r", raw, "v1").status_code == 201:
            return raw
        assert time.monotonic() < deadline
