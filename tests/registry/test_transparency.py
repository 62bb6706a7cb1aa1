"""The registry's transparency log, as those who push, verify, watch and tamper meet it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from artifact.digest import Digest
from registry import keys
from registry.cli import app
from registry.fsck import Checker
from registry.log.key import generate
from registry.log.state import STATE
from registry.store.protocol import ObjectStore
from supplychain.tlog.checkpoint import Checkpoint
from supplychain.tlog.tiles import bundles_of, entries_of, tiles_of
from tests.registry.conftest import Backend
from tests.registry.logged import ORIGIN, Logged, client, fill, logged
from tests.registry.pushing import manifest_of, push_image, put_manifest, sha256
from tests.registry.servers import RunningRegistry, StartRegistry


@pytest.fixture
def these(backend: Backend, tmp_path: Path, registry_server: StartRegistry) -> Logged:
    """Empty storage whose registry is to keep a log."""
    return logged(backend, tmp_path, registry_server)


@pytest.fixture
def folder(tmp_path: Path, registry_server: StartRegistry) -> Logged:
    """As `these`, in a folder."""
    return logged(Backend("filesystem", str(tmp_path / "storage")), tmp_path, registry_server)


@pytest.fixture
def server(these: Logged) -> RunningRegistry:
    return these.serve()


@pytest.fixture
def http(server: RunningRegistry) -> Iterator[httpx.Client]:
    with client(server) as found:
        yield found


def checkpoint(http: httpx.Client, these: Logged) -> Checkpoint:
    answer = http.get("/transparency/checkpoint")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    return Checkpoint.open(answer.content, these.verifier)


def test_everything_that_happens_is_in_the_log(
    these: Logged, http: httpx.Client, server: RunningRegistry, tmp_path: Path
) -> None:
    """What clients do, in the order they did it; then the commands, which find everything as it should be."""
    first = push_image(http, "team/a", "v1", b"1")
    second = push_image(http, "team/a", "v1", b"2")
    push_image(http, "team/a", "v1", b"2")
    third = push_image(http, "team/b", None, b"3")
    assert put_manifest(http, "team/b", third, tag=["x", "y"]).status_code == 201
    assert http.delete("/v2/team/a/manifests/v1").status_code == 202
    assert http.delete(f"/v2/team/b/manifests/{sha256(third)}").status_code == 202
    push_image(http, "team/a", "v1", b"1")
    said = [(entry.action, entry.repository, entry.tag, entry.digest, entry.previous) for entry in these.entries()]
    a, b, c = (Digest.of(raw) for raw in (first, second, third))
    assert said == [
        ("push", "team/a", None, a, None),
        ("tag", "team/a", "v1", a, None),
        ("push", "team/a", None, b, None),
        ("tag", "team/a", "v1", b, a),
        ("push", "team/a", None, b, None),
        ("push", "team/b", None, c, None),
        ("push", "team/b", None, c, None),
        ("tag", "team/b", "x", c, None),
        ("tag", "team/b", "y", c, None),
        ("untag", "team/a", "v1", None, b),
        ("untag", "team/b", "x", None, c),
        ("untag", "team/b", "y", None, c),
        ("delete", "team/b", None, c, None),
        ("push", "team/a", None, a, None),
        ("tag", "team/a", "v1", a, None),
    ]
    assert all(entry.principal is None for entry in these.entries())
    done = these.verify(server.host, "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.output)
    assert (report["origin"], report["size"], report["tags"], report["findings"]) == (ORIGIN, 15, 1, [])

    seen = str(tmp_path / "seen")
    watch = ("monitor", server.host, "--state", seen, "--key", these.public)
    assert "seen for the first time, 15 entries" in these.command(*watch).output
    assert "15 entries, consistent with 15 before" in these.command(*watch).output
    push_image(http, "team/a", "v2", b"4")
    assert "17 entries, consistent with 15 before" in these.command(*watch).output

    proof = str(tmp_path / "v1.tlog-proof")
    done = these.command("prove", f"{server.host}/team/a:v1", "--key", these.public, "-o", proof)
    assert done.exit_code == 0, done.output
    done = these.command("check", proof, "--key", these.public, "--json")
    assert json.loads(done.output)["digest"] == str(a)
    assert json.loads(done.output)["index"] == 14
    pushed = these.command("prove", f"{server.host}/team/b@{c}", "--key", these.public)
    assert pushed.output.startswith("c2sp.org/tlog-proof@v1\n")
    assert these.command("prove", f"{server.host}/team/a:none", "--key", these.public).exit_code == 1
    generate(tmp_path / "other.key", ORIGIN)
    refused = these.command("check", proof, "--key", str(tmp_path / "other.key.pub"))
    assert refused.exception is not None
    assert refused.exception.exit_code == 3  # type: ignore[attr-defined]


def test_tiles_of_a_log_of_several_bundles(these: Logged, http: httpx.Client, server: RunningRegistry) -> None:
    """Every resource is there and is what it must be; what is whole is in the store, what is not yet whole is not."""
    push_image(http, "many", "t", b"0")
    fill(these.tags(), 540)
    raw = push_image(http, "many", "t", b"1")
    assert put_manifest(http, "many", raw, tag=["x", "y"]).status_code == 201
    head = checkpoint(http, these)
    assert head.size == 2 + 540 + 2 + 3
    entries: list[bytes] = []
    for tile in bundles_of(head.size):
        answer = http.get(f"/transparency/{tile.path}")
        assert answer.headers["content-type"] == "application/octet-stream"
        assert "immutable" in answer.headers["cache-control"]
        entries += entries_of(answer.content, tile.width)
    assert len(entries) == head.size
    for tile in tiles_of(head.size):
        answer = http.get(f"/transparency/{tile.path}")
        assert len(answer.content) == 32 * tile.width, tile.path
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        whole = http.get(f"/transparency/{tile.whole.path}")
        assert whole.status_code == (200 if tile.width == 256 else 404), tile.path
    assert http.get("/transparency/tile/0/000.p/7").content == http.get("/transparency/tile/0/000").content[:224]
    assert (
        http.get("/transparency/tile/entries/000.p/7").content
        == http.get("/transparency/tile/entries/000").content[: sum(2 + len(entry) for entry in entries[:7])]
    )
    for path in ("tile/0/002.p/200", "tile/0/003", "tile/3/000.p/1", "tile/entries/999", "tile/0/0", "nothing", ""):
        assert http.get(f"/transparency/{path}").status_code == 404, path
    assert http.post("/transparency/checkpoint").status_code == 405
    stored = {entry.key for entry in these.backend.open().list("log/")}
    assert stored == {
        STATE, "log/tile/0/000", "log/tile/0/001", "log/tile/entries/000", "log/tile/entries/001",
    }  # fmt: skip
    assert these.verify(server.host).exit_code == 0


def test_a_tag_that_the_log_does_not_hold_is_not_there(these: Logged, http: httpx.Client) -> None:
    """Written behind the registry's back, moved there from another tag, or with a number of somebody's choosing."""
    raw = push_image(http, "team/a", "v1", b"1")
    other = push_image(http, "team/a", "v2", b"2")
    store = these.backend.open()
    sealed = store.get(keys.tag("team/a", "v2")).data
    forged = {
        "plain": sha256(other).encode(),
        "transplanted": sealed,
        "numbered": f"{sha256(other)} 1 {'0' * 64}".encode(),
        "renumbered": re.sub(rb" \d+ ", b" 1 ", sealed),
    }
    for tag, data in forged.items():
        store.put(keys.tag("team/a", tag), data)
        assert http.get(f"/v2/team/a/manifests/{tag}").status_code == 404, tag
        assert http.head(f"/v2/team/a/manifests/{tag}").status_code == 404, tag
    assert "plain" not in http.get("/v2/team/a/tags/list").json()["tags"]
    store.put(keys.tag("team/a", "v1"), sha256(other).encode())
    assert http.get("/v2/team/a/manifests/v1").status_code == 404
    assert put_manifest(http, "team/a", raw, "v1").status_code == 201
    assert http.get("/v2/team/a/manifests/v1").content == raw


# Tampering: each kind of object, by somebody who can write to the store.


def grown(these: Logged, http: httpx.Client) -> None:
    """A log of one whole bundle and a part of another."""
    raw = push_image(http, "t", "v0", b"0")
    assert put_manifest(http, "t", raw, tag=["x1", "x2"]).status_code == 201
    fill(these.tags(), 300)
    push_image(http, "t", "v0", b"1")


def tampered(store: ObjectStore, key: str, old: bytes, new: bytes) -> None:
    data = store.get(key).data
    assert old in data
    store.put(key, data.replace(old, new, 1))


def test_tampering_is_found(folder: Logged, tmp_path: Path) -> None:
    """A changed entry, tile or tag: exit 3, with the kind of what is wrong; the same store mended: 0."""
    server = folder.serve()
    store = folder.backend.open()
    with client(server) as http:
        push_image(http, "t", "v0", b"first")
        old_record = store.get(keys.tag("t", "v0")).data
        grown(folder, http)
        new_record = store.get(keys.tag("t", "v0")).data
        tile = store.get("log/tile/0/000").data
        entry_bundle = store.get("log/tile/entries/000").data
        assert folder.verify(server.host).exit_code == 0
        assert CliRunner().invoke(app, ["audit", server.host, "--log", folder.public]).exit_code == 0

        cases = {
            ("log/tile/0/000", bytes(32) + tile[32:]): "tile",
            ("log/tile/entries/000", entry_bundle.replace(b'"x1"', b'"x2"', 1)): "checkpoint",
            ("log/tile/entries/000", entry_bundle[:-1]): "entries",
            (keys.tag("t", "v0"), old_record): "tag",
            (keys.tag("t", "v0"), sha256(manifest_of([b"1"])).encode()): "tag",
            (keys.tag("t", "x2"), b""): "tag",
        }
        for (key, data), kind in cases.items():
            good = store.get(key).data
            store.delete(key) if not data else store.put(key, data)
            done = folder.verify(server.host, "--patience", "0", "--json")
            assert done.exit_code == 3, (key, done.output)
            findings = json.loads(done.output)["findings"]
            assert {item["kind"] for item in findings} == {kind}, findings
            store.put(key, good)
        store.delete("log/tile/0/000")
        assert folder.verify(server.host, "--patience", "0").exit_code == 3
        assert CliRunner().invoke(app, ["audit", server.host, "--log", folder.public]).exit_code == 3
        store.put("log/tile/0/000", tile)
        store.put(keys.tag("t", "v0"), new_record)
        assert folder.verify(server.host).exit_code == 0
        # A tag of a repository that the log knows nothing of is not served, so there is nothing to find.
        store.put(keys.tag("elsewhere", "v1"), b"sha256:" + b"0" * 64)
        assert folder.verify(server.host).exit_code == 0


def test_an_old_tag_put_back_is_found_when_it_moves_on(folder: Logged) -> None:
    """A record of the registry's own, from before: what is then pushed does not follow from the log."""
    server = folder.serve()
    store = folder.backend.open()
    with client(server) as http:
        push_image(http, "t", "v0", b"0")
        old = store.get(keys.tag("t", "v0")).data
        push_image(http, "t", "v0", b"1")
        store.put(keys.tag("t", "v0"), old)
        push_image(http, "t", "v0", b"2")
        done = folder.verify(server.host, "--json")
    assert done.exit_code == 3
    assert [item["kind"] for item in json.loads(done.output)["findings"]] == ["entry"]


def test_a_changed_state_is_not_believed(folder: Logged) -> None:
    """Its seal is the key's: without the key nobody can write one that the registry takes, or signs."""
    server = folder.serve()
    store = folder.backend.open()
    with client(server) as http:
        push_image(http, "t", "v0", b"0")
        good = store.get(STATE).data
        tampered(store, STATE, b"v0", b"v7")
        assert http.get("/transparency/checkpoint").status_code == 500
        raw = manifest_of([b"0"])
        assert put_manifest(http, "t", raw, "v9").status_code == 503
        assert http.get("/v2/t/manifests/v9").status_code == 404
        store.put(STATE, good)
        assert put_manifest(http, "t", raw, "v9").status_code == 201


def monitored(these: Logged, host: str, state: Path) -> int:
    done = these.command("monitor", host, "--state", str(state), "--key", these.public)
    return done.exit_code if done.exception is None else getattr(done.exception, "exit_code", 1)


def test_a_history_that_was_rewritten_is_found(folder: Logged, tmp_path: Path) -> None:
    """By somebody who has the key: the log shrinks, or has another entry in an old place; both heads are kept."""
    seen = tmp_path / "seen"
    server = folder.serve()
    with client(server) as http:
        push_image(http, "t", "v0", b"0")
        early = folder.backend.open().get(STATE).data
        push_image(http, "t", "v0", b"1")
        push_image(http, "t", "v0", b"2")
        assert monitored(folder, server.host, seen) == 0
        kept = seen.read_bytes()
        folder.backend.open().put(STATE, early)
        assert http.get("/transparency/checkpoint").status_code == 500, "a process that has seen more notices by itself"
    server.stop()
    server = folder.serve()
    assert monitored(folder, server.host, seen) == 3
    with client(server) as http:
        push_image(http, "t", "v0", b"3")
        push_image(http, "t", "v0", b"4")
        assert monitored(folder, server.host, seen) == 3, "as many entries, but others"
        push_image(http, "t", "v0", b"5")
        assert monitored(folder, server.host, seen) == 3, "more, which do not begin with what was there"
    assert seen.read_bytes() == kept
    conflicts = sorted(tmp_path.glob("seen.conflict-*"))
    heads = [Checkpoint.open(file.read_bytes(), folder.verifier) for file in conflicts]
    assert sorted(head.size for head in heads) == [2, 6, 8]
    seen.write_bytes(b"nonsense")
    assert monitored(folder, server.host, seen) == 2


def test_fsck_knows_the_log(folder: Logged) -> None:
    server = folder.serve()
    store = folder.backend.open()
    with client(server) as http:
        grown(folder, http)
        assert http.delete("/v2/t/manifests/x1").status_code == 202
    server.stop()
    assert [item for item in Checker(store).run() if item.kind != "orphan-data"] == []
    for key, old, new in (
        ("log/tile/0/000", store.get("log/tile/0/000").data[:4], b"abcd"),
        ("log/tile/entries/000", b'"x1"', b'"x2"'),
        (STATE, b'"size":', b'"size":1'),
    ):
        good = store.get(key).data
        tampered(store, key, old, new)
        found = [item for item in Checker(store).run() if item.key.startswith("log/")]
        assert found, key
        store.put(key, good)
    store.delete("log/tile/0/000")
    assert "log/tile/0/000" in [item.key for item in Checker(store).run()]
