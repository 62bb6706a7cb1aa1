"""fsck finds each kind of damage, names the object, and changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from starlette.testclient import TestClient

from registry import keys
from registry.fsck import Checker
from registry.gc.collector import Collector
from registry.http.app import create_app
from registry.store.protocol import ObjectStore
from tests.registry.conftest import Backend
from tests.registry.pushing import begin, descriptor, manifest_of, push_blob, put_manifest, sha256
from tests.registry.servers import ROOT

LAYER = b"layer bytes " * 1000


@pytest.fixture
def filled(backend: Backend) -> Iterator[tuple[TestClient, ObjectStore]]:
    """An image with a referrer, an upload in progress, and nothing wrong."""
    store = backend.open()
    with TestClient(create_app(store)) as client:
        for data in (b"{}", LAYER):
            push_blob(client, "fs/ck", data)
        raw = manifest_of([LAYER])
        put_manifest(client, "fs/ck", raw, "v1")
        subject = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": sha256(raw), "size": len(raw)}
        assert put_manifest(client, "fs/ck", manifest_of([], subject=subject)).status_code == 201
        assert client.patch(begin(client, "fs/ck"), content=b"half of").status_code == 202
        yield client, store


def kinds(store: ObjectStore) -> dict[str, str]:
    return {finding.key: finding.kind for finding in Checker(store).run()}


def layer_data(store: ObjectStore) -> str:
    digest = sha256(LAYER).removeprefix("sha256:")
    key: str = json.loads(store.get(f"blobs/sha256/{digest[:2]}/{digest}").data)["data"]
    return key


def test_nothing_wrong(filled: tuple[TestClient, ObjectStore]) -> None:
    assert kinds(filled[1]) == {}


def test_one_flipped_byte(filled: tuple[TestClient, ObjectStore]) -> None:
    """The registry serves what is stored, for the client to catch; fsck names the object."""
    client, store = filled
    damaged = bytearray(LAYER)
    damaged[500] ^= 1
    store.put(layer_data(store), bytes(damaged))
    assert client.get(f"/v2/fs/ck/blobs/{sha256(LAYER)}").content == damaged
    assert kinds(store) == {layer_data(store): "wrong-bytes"}


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b""])
def test_cut_or_lengthened(filled: tuple[TestClient, ObjectStore], change: Callable[[bytes], bytes]) -> None:
    store = filled[1]
    store.put(layer_data(store), change(LAYER))
    assert kinds(store) == {layer_data(store): "wrong-bytes"}


def test_layers_kept_elsewhere_are_not_missing(filled: tuple[TestClient, ObjectStore]) -> None:
    client, store = filled
    foreign = descriptor(b"on another server", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")
    raw = manifest_of([], layers=[foreign])
    assert put_manifest(client, "fs/ck", raw, "foreign").status_code == 201
    assert kinds(store) == {}


def test_bytes_gone_and_brought_back(filled: tuple[TestClient, ObjectStore]) -> None:
    """Pushing a blob whose bytes are gone puts it right."""
    client, store = filled
    store.delete(layer_data(store))
    record = f"blobs/sha256/{sha256(LAYER)[7:9]}/{sha256(LAYER)[7:]}"
    assert kinds(store) == {record: "missing-blob"}
    assert client.get(f"/v2/fs/ck/blobs/{sha256(LAYER)}").status_code == 404
    push_blob(client, "fs/ck", LAYER)
    assert client.get(f"/v2/fs/ck/blobs/{sha256(LAYER)}").content == LAYER
    assert kinds(store) == {}


def test_record_gone(filled: tuple[TestClient, ObjectStore]) -> None:
    store = filled[1]
    data, digest = layer_data(store), sha256(LAYER)[7:]
    store.delete(f"blobs/sha256/{digest[:2]}/{digest}")
    assert kinds(store) == {data: "orphan-data", f"repos/fs/ck/_blobs/sha256/{digest}": "dangling-link"}


def test_link_gone(filled: tuple[TestClient, ObjectStore]) -> None:
    store = filled[1]
    store.delete(f"repos/fs/ck/_blobs/sha256/{sha256(LAYER)[7:]}")
    manifest = sha256(manifest_of([LAYER]))[7:]
    assert kinds(store) == {f"repos/fs/ck/_manifests/sha256/{manifest}": "missing-blob"}


def test_manifest_gone_or_changed(filled: tuple[TestClient, ObjectStore]) -> None:
    store = filled[1]
    key = f"repos/fs/ck/_manifests/sha256/{sha256(manifest_of([LAYER]))[7:]}"
    before = store.get(key).data
    store.put(key, before.replace(b'"size"', b'"sizE"', 1))
    assert kinds(store) == {key: "wrong-bytes"}
    store.delete(key)
    assert kinds(store) == {"repos/fs/ck/_tags/v1": "dangling-link"}


def test_orphans(filled: tuple[TestClient, ObjectStore]) -> None:
    store = filled[1]
    store.put("data/00000000-0000-0000-0000-000000000000", b"nobody's")
    session = next(entry.key for entry in store.list("uploads/") if entry.key.endswith("/session"))
    store.put(session, json.dumps({**json.loads(store.get(session).data), "expires": 1}).encode())
    store.put(keys.upload("11111111-0000-0000-0000-000000000000") + "tail-0", b"x")
    assert kinds(store) == {
        "data/00000000-0000-0000-0000-000000000000": "orphan-data",
        session: "orphan-upload",
        "uploads/11111111-0000-0000-0000-000000000000/": "orphan-upload",
    }


@pytest.mark.parametrize("prefix", ["blobs/", "repos/fs/ck/_tags/", "repos/fs/ck/_referrers/"])
def test_unreadable_objects(filled: tuple[TestClient, ObjectStore], prefix: str) -> None:
    store = filled[1]
    key = store.list(prefix)[0].key
    store.put(key, b"\xff not what it was")
    assert kinds(store)[key] == "damaged"


def test_a_referrer_that_is_not_listed(filled: tuple[TestClient, ObjectStore]) -> None:
    """As a push leaves it that dies in the middle. Pushing it again puts it right, and so does the collector."""
    client, store = filled
    listing = store.list("repos/fs/ck/_referrers/")[0].key
    digest = listing.rpartition("/")[2]
    raw = client.get(f"/v2/fs/ck/manifests/sha256:{digest}").content
    for heal in (lambda: put_manifest(client, "fs/ck", raw), lambda: Collector(store).run()):
        before = store.get(listing).data
        store.delete(listing)
        assert kinds(store) == {f"repos/fs/ck/_manifests/sha256/{digest}": "unlisted-referrer"}
        heal()
        assert kinds(store) == {}
        assert store.get(listing).data == before


def test_command(filled: tuple[TestClient, ObjectStore], backend: Backend) -> None:
    """Exit 0 and 1, a line a finding or one JSON document; the store is as it was."""
    store = filled[1]
    command = [sys.executable, "-c", "from registry.cli import main; main()", "fsck", "--storage", backend.storage]

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, **backend.env}
        return subprocess.run([*command, *options], cwd=ROOT, env=env, capture_output=True, text=True)

    good = run()
    assert good.returncode == 0, good.stderr
    assert "0 findings" in good.stdout
    store.put("data/stray", b"x")
    before = [(entry.key, entry.size, entry.modified) for entry in store.list("", limit=10_000)]
    bad = run("--json")
    assert bad.returncode == 1
    assert [item["kind"] for item in json.loads(bad.stdout)["findings"]] == ["orphan-data"]
    assert "data/stray" in run().stdout
    assert [(entry.key, entry.size, entry.modified) for entry in store.list("", limit=10_000)] == before
