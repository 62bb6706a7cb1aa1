"""What every driver of the object store must do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from artifact.errors import InvalidInput
from registry.store.probe import conditional_writes_are_atomic, deletes_are_conditional
from registry.store.protocol import Busy, Conflict, Missing, ObjectStore, Stream
from tests.registry.conftest import Backend

MIB = 1024 * 1024
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def store(backend: Backend) -> ObjectStore:
    return backend.open()


def everything(stream: Stream) -> bytes:
    parts = []
    while part := stream.read(MIB):
        assert len(part) <= MIB
        parts.append(part)
    stream.close()
    stream.close()
    return b"".join(parts)


def content(store: ObjectStore, key: str) -> bytes:
    return everything(store.read(key, 0, store.head(key).size))


def test_put_get_head_delete(store: ObjectStore) -> None:
    etag = store.put("a/b", b"one")
    assert (store.get("a/b").data, store.get("a/b").etag) == (b"one", etag)
    assert store.head("a/b").size == 3
    assert store.put("a/b", b"two") != etag
    assert store.get("a/b").data == b"two"
    store.delete("a/b")
    store.delete("a/b")
    for read in (store.get, store.head, lambda key: store.read(key, 0, 1), lambda key: store.read(key, 0, 0)):
        with pytest.raises(Missing):
            read("a/b")


def test_conditions(store: ObjectStore) -> None:
    with pytest.raises(Conflict):
        store.put("k/a", b"x", if_match="none")
    first = store.put("k/a", b"1", if_none_match=True)
    with pytest.raises(Conflict):
        store.put("k/a", b"2", if_none_match=True)
    second = store.put("k/a", b"2", if_match=first)
    for attempt in (lambda: store.put("k/a", b"3", if_match=first), lambda: store.delete("k/a", if_match=first)):
        with pytest.raises(Conflict):
            attempt()
    assert store.get("k/a").data == b"2"
    store.delete("k/a", if_match=second)
    with pytest.raises(Conflict):
        store.delete("k/a", if_match=second)


def test_race_between_threads(store: ObjectStore) -> None:
    assert conditional_writes_are_atomic(store, rounds=3)
    assert store.list("probe/") == []


def test_deletion_races_with_replacement(store: ObjectStore) -> None:
    """Of a conditional deletion and a conditional replacement of the same object, one wins and the other is told."""
    assert deletes_are_conditional(store)
    with ThreadPoolExecutor(2) as pool:
        for turn in range(15):
            etag, barrier = store.put("race/x", f"{turn}".encode()), Barrier(2)

            def attempt(change: Callable[[], object], barrier: Barrier = barrier) -> bool:
                barrier.wait()
                try:
                    change()
                except Conflict:
                    return False
                return True

            changes = [
                lambda etag=etag: store.delete("race/x", if_match=etag),
                lambda etag=etag: store.put("race/x", b"replaced", if_match=etag),
            ]
            deleted, replaced = pool.map(attempt, changes)
            assert deleted != replaced
            assert [entry.key for entry in store.list("race/")] == (["race/x"] if replaced else [])


COUNT = """
import sys
from registry.store.open import open_store
from registry.store.protocol import Conflict, Missing
store = open_store(sys.argv[1])
done = 0
while done < 25:
    try:
        found = store.get("count/er")
        store.put("count/er", str(int(found.data) + 1).encode(), if_match=found.etag)
    except Missing:
        try:
            store.put("count/er", b"1", if_none_match=True)
        except Conflict:
            continue
    except Conflict:
        continue
    done += 1
"""


def test_no_update_is_lost_between_processes(store: ObjectStore, backend: Backend) -> None:
    command = [sys.executable, "-c", COUNT, backend.storage]
    running = [subprocess.Popen(command, cwd=ROOT, env={**os.environ, **backend.env}) for _ in range(3)]
    assert [process.wait(timeout=120) for process in running] == [0, 0, 0]
    assert store.get("count/er").data == b"75"


def test_creating_while_the_folder_is_being_emptied(store: ObjectStore) -> None:
    """Deleting the last object of a folder must not make a put next to it fail."""

    def churn(name: str) -> None:
        for _ in range(40):
            store.put(f"deep/er/folder/{name}", b"x")
            store.delete(f"deep/er/folder/{name}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(churn, "abcd"))
    assert store.list("deep/") == []


def test_list(store: ObjectStore) -> None:
    keys = ["l/a/x", "l/a/y", "l/a-b/x", "l/b", "l/_t/1", "l/_t/10", "l/_t/2", "m"]
    for key in keys:
        store.put(key, key.encode())
    assert {entry.key for entry in store.list("l/")} == set(keys[:-1])
    assert [entry.key for entry in store.list("l/_t/")] == ["l/_t/1", "l/_t/10", "l/_t/2"]
    assert [entry.key for entry in store.list("l/_t/", start_after="l/_t/1")] == ["l/_t/10", "l/_t/2"]
    assert [entry.key for entry in store.list("l/_t/1")] == ["l/_t/1", "l/_t/10"]
    assert [entry.size for entry in store.list("l/_")] == [6, 7, 6]
    assert store.list("none/") == store.list("l/b/") == []
    paged, last = [], ""
    while page := store.list("l/", start_after=last, limit=2):
        paged += [entry.key for entry in page]
        last = page[-1].key
    assert sorted(paged) == sorted(keys[:-1])
    assert len(store.list("", limit=3)) == 3


NAMES = st.lists(
    st.text("ab0-_.", min_size=1, max_size=6).map(lambda text: "k" + text), min_size=1, max_size=12, unique=True
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=NAMES, after=st.text("kab0-_.", min_size=1, max_size=5).map(lambda text: "k" + text))
def test_list_of_one_folder_is_in_ascii_order(store: ObjectStore, names: list[str], after: str) -> None:
    for entry in store.list("one/"):
        store.delete(entry.key)
    for name in names:
        store.put(f"one/{name}", b"")
    expected = sorted(f"one/{name}" for name in names)
    assert [entry.key for entry in store.list("one/")] == expected
    later = [key for key in expected if key > f"one/{after}"]
    assert [entry.key for entry in store.list("one/", start_after=f"one/{after}")] == later


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "../a", "a/../b", ".a", "a/.b", "a\0b", "a\nb", "é", "a" * 1025]
)
def test_keys_that_are_none(store: ObjectStore, key: str) -> None:
    with pytest.raises(InvalidInput):
        store.put(key, b"")
    with pytest.raises(InvalidInput):
        store.get(key)


def test_ranges(store: ObjectStore) -> None:
    data = os.urandom(2 * MIB + 5)
    store.put("r/x", data)
    assert everything(store.read("r/x", 0, len(data))) == data
    assert everything(store.read("r/x", MIB - 1, MIB + 2)) == data[MIB - 1 : 2 * MIB + 1]
    assert everything(store.read("r/x", 7, 0)) == b""


@pytest.mark.parametrize("sizes", [[], [3], [MIB, 0, 5], [16 * MIB], [15 * MIB, 20 * MIB, 1], [87 * MIB]])
def test_writer_in_one_go(store: ObjectStore, sizes: list[int]) -> None:
    chunks = [os.urandom(size) for size in sizes]
    writer = store.writer("w/x", scratch="s/x/")
    for chunk in chunks:
        writer.write([chunk[:10], chunk[10:]])
    writer.seal()
    writer.complete()
    writer.complete()
    writer.close()
    assert content(store, "w/x") == b"".join(chunks)
    assert store.list("s/") == []


def test_writer_continued_elsewhere(backend: Backend) -> None:
    """Each request may reach another process; one of them dies with bytes written that were never saved."""
    chunks = [os.urandom(size) for size in (5 * MIB, 17 * MIB, 100, 12 * MIB)]
    state, offset = None, 0
    for chunk in chunks:
        writer = backend.open().writer("w/x", scratch="s/x/", offset=offset, state=state)
        writer.write([chunk])
        state, offset = writer.checkpoint(), offset + len(chunk)
        writer.write([os.urandom(18 * MIB)])
        writer.close()
    store = backend.open()
    writer = store.writer("w/x", scratch="s/x/", offset=offset, state=state)
    state = writer.seal()
    writer.close()
    for _ in range(2):  # the second repeats what a request did whose answer was lost
        writer = backend.open().writer("w/x", scratch="s/x/", offset=offset, state=state)
        writer.complete()
        writer.close()
    assert content(store, "w/x") == b"".join(chunks)


@pytest.mark.parametrize("sizes", [(100, 200, 300), (5 * MIB, 3 * MIB, 20 * MIB + 5), (16 * MIB, 17 * MIB, 1)])
def test_writer_that_is_saved_and_goes_on(store: ObjectStore, sizes: tuple[int, ...]) -> None:
    """As a long request does every few seconds."""
    chunks = [os.urandom(size) for size in sizes]
    writer = store.writer("w/x", scratch="s/x/")
    for chunk in chunks:
        writer.write([chunk])
        writer.checkpoint()
        assert writer.loose <= 16 * MIB
    writer.seal()
    writer.complete()
    writer.close()
    assert content(store, "w/x") == b"".join(chunks)


@pytest.mark.parametrize("size", [10, 20 * MIB])
def test_writer_aborted(store: ObjectStore, size: int) -> None:
    writer = store.writer("w/x", scratch="s/x/")
    writer.write([os.urandom(size)])
    writer.abort()
    assert store.list("w/") == []


def test_writers_exclude_each_other_in_a_folder(backend: Backend) -> None:
    if backend.driver != "filesystem":
        pytest.skip("S3 parts are immutable; the session's compare-and-swap decides")
    first = backend.open().writer("w/x", scratch="s/")
    first.write([b"first"])
    with pytest.raises(Busy):
        backend.open().writer("w/x", scratch="s/")
    first.seal()
    first.close()
    assert content(backend.open(), "w/x") == b"first"


def test_presigned(store: ObjectStore, driver: str) -> None:
    store.put("p/x", b"0123456789")
    url = store.presign("p/x", 60)
    if driver == "filesystem":
        assert url is None
        return
    assert url is not None
    assert httpx.get(url).content == b"0123456789"
    assert httpx.get(url, headers={"Range": "bytes=2-3"}).content == b"23"
    assert httpx.get(url.replace("/p/x", "/p/y")).status_code in (403, 404)
