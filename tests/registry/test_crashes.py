"""An upload interrupted at every single call to the store, and uploads that get into each other's way."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from artifact.digest import Digest
from artifact.errors import DigestMismatch
from registry.blobs import Blobs
from registry.fsck import Checker
from registry.store.protocol import Conflict, Missing, ObjectStore, StoreUnavailable
from registry.uploads import Uploads
from tests.registry.conftest import Backend

NAME = "cra/sh"
DATA = b"0123456789" * 1000
DIGEST = Digest("sha256", hashlib.sha256(DATA).hexdigest())


class Faulty:
    """A store, and its writers, whose call number `fail_at` is not made, nor any after it: as if killed there."""

    def __init__(self, inner: Any, counter: list[int], fail_at: int) -> None:
        self._inner = inner
        self._counter = counter
        self._fail_at = fail_at

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name == "close":
            return method

        def call(*arguments: Any, **options: Any) -> Any:
            self._counter[0] += 1
            if self._counter[0] >= self._fail_at:
                raise StoreUnavailable("killed here")
            result = method(*arguments, **options)
            return Faulty(result, self._counter, self._fail_at) if name == "writer" else result

        return call


def uploads(store: Any) -> Uploads:
    return Uploads(store, Blobs(store))


def push(store: Any, id_: str) -> None:
    """Two requests: half in a PATCH, half with the PUT, each resumed as a client would from what the session says."""
    session = uploads(store).find(NAME, id_)
    if session.offset < 5000 and session.closing is None:
        ingest = uploads(store).receive(NAME, id_)
        try:
            chunk = [DATA[ingest.session.offset : 5000]]
            ingest.hash(chunk)
            ingest.write(chunk)
            ingest.advance(len(chunk[0]))
            ingest.checkpoint()
        finally:
            ingest.close()
    ingest = uploads(store).receive(NAME, id_)
    try:
        if ingest.session.closing is not None:
            ingest.finish(DIGEST)
            return
        chunk = [DATA[ingest.session.offset :]]
        ingest.hash(chunk)
        ingest.write(chunk)
        ingest.advance(len(chunk[0]))
        ingest.commit(DIGEST)
    finally:
        ingest.close()


def readable(store: ObjectStore) -> bool:
    blobs = Blobs(store)
    try:
        return blobs.read(blobs.find(NAME, DIGEST), 10**6) == DATA
    except Missing:
        return False


def test_killed_at_every_call(backend: Backend) -> None:
    """Wherever it dies, nothing partial is visible, and trying again ends in the whole blob and nothing else."""
    store, fail_at, deaths = backend.open(), 0, 0
    while True:
        fail_at += 1
        id_ = uploads(store).begin(NAME).id
        try:
            push(Faulty(store, [0], fail_at), id_)
            break
        except StoreUnavailable:
            deaths += 1
        for finding in Checker(store).run():
            assert finding.kind not in ("missing-blob", "wrong-bytes", "dangling-link"), (fail_at, finding)
        try:
            push(store, id_)
        except Missing:  # the upload had ended: the client looks for the blob, and would begin anew without it
            assert readable(store), fail_at
        assert readable(store), fail_at
        assert [finding for finding in Checker(store).run() if finding.kind != "orphan-data"] == [], fail_at
        for entry in (*store.list("blobs/"), *store.list("repos/"), *store.list("data/"), *store.list("uploads/")):
            store.delete(entry.key)
    assert deaths > 10


@pytest.mark.parametrize("wrong", ["digest", "cancel"])
def test_a_late_request_cannot_remove_what_has_become_a_blob(backend: Backend, wrong: str) -> None:
    """Two requests hold one upload, as a store without locks lets them: what the first commits stays whole."""
    store = backend.open()
    session = uploads(store).begin(NAME)
    first = uploads(store).receive(NAME, session.id)
    stale = uploads(store).find(NAME, session.id)
    for chunk in ([DATA[:100]], [DATA[100:]]):
        first.hash(chunk)
        first.write(chunk)
        first.advance(len(chunk[0]))
    first.commit(DIGEST)
    first.close()
    if wrong == "cancel":
        with pytest.raises(Missing):
            uploads(store).cancel(NAME, session.id)
    writer = store.writer(f"data/{session.id}", scratch=f"uploads/{session.id}/", offset=0, state=None)
    with pytest.raises(Conflict):
        uploads(store).discard(stale, writer)
    writer.close()
    assert readable(store)


def test_two_small_uploads_racing_to_close(backend: Backend) -> None:
    if backend.driver == "filesystem":
        pytest.skip("a folder locks the upload")
    store = backend.open()
    id_ = uploads(store).begin(NAME).id
    ingests = [uploads(store).receive(NAME, id_) for _ in range(2)]
    for ingest, data in zip(ingests, (DATA, b"other bytes"), strict=True):
        ingest.hash([data])
        ingest.write([data])
        ingest.advance(len(data))
    ingests[0].commit(DIGEST)
    with pytest.raises(Conflict):
        ingests[1].commit(Digest.of(b"other bytes"))
    assert readable(store)


def test_mismatch_leaves_nothing(backend: Backend) -> None:
    store = backend.open()
    for ingest in (
        uploads(store).receive(NAME, uploads(store).begin(NAME).id),
        uploads(store).receive_whole(NAME, DIGEST),
    ):
        ingest.hash([b"evil"])
        ingest.write([b"evil"])
        ingest.advance(4)
        with pytest.raises(DigestMismatch):
            ingest.commit(DIGEST)
        ingest.close()
    assert store.list("data/") == store.list("uploads/") == store.list("blobs/") == []


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_without_a_saved_hash_the_stored_bytes_are_read(
    backend: Backend, algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of a platform whose libcrypto cannot save a hash, and of an algorithm told only at the end."""
    monkeypatch.setattr("registry.uploads.supported", lambda: algorithm != "sha256")
    store = backend.open()
    hex_ = hashlib.new(algorithm, DATA).hexdigest()
    id_ = uploads(store).begin(NAME).id
    for chunk in (DATA[:100], DATA[100:]):
        ingest = uploads(store).receive(NAME, id_)
        ingest.hash([chunk])
        ingest.write([chunk])
        ingest.advance(len(chunk))
        ingest.checkpoint()
        ingest.close()
    ingest = uploads(store).receive(NAME, id_)
    ingest.commit(Digest(algorithm, hex_))
    ingest.close()
    blobs = Blobs(store)
    assert blobs.read(blobs.find(NAME, Digest(algorithm, hex_)), 10**6) == DATA


def add(store: ObjectStore, id_: str, chunk: bytes) -> None:
    """One request that appends."""
    ingest = uploads(store).receive(NAME, id_)
    ingest.hash([chunk])
    ingest.write([chunk])
    ingest.advance(len(chunk))
    ingest.checkpoint()
    ingest.close()


def test_a_hash_that_one_replica_cannot_save_is_not_believed_by_another(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = backend.open()
    id_ = uploads(store).begin(NAME).id
    with monkeypatch.context() as patched:
        patched.setattr("registry.uploads.supported", lambda: False)
        add(store, id_, DATA[:100])
    add(store, id_, DATA[100:])
    ingest = uploads(store).receive(NAME, id_)
    ingest.commit(DIGEST)
    ingest.close()
    assert readable(store)


def test_many_small_requests_leave_no_more_than_one(backend: Backend) -> None:
    store = backend.open()
    session = uploads(store).begin(NAME)
    for start in range(0, len(DATA), 1000):
        before = uploads(store).load(session.id)
        add(store, session.id, DATA[start : start + 1000])
        assert len(store.list("uploads/")) <= 2
    with pytest.raises(Conflict):  # what the state before spoke of is gone: that is no reason to remove the upload
        uploads(store).expire(before)
    with ThreadPoolExecutor(16) as pool:  # as a version that kept them all has left it
        list(pool.map(lambda number: store.put(f"uploads/{session.id}/tail-{number}", b"old"), range(1001)))
    ingest = uploads(store).receive(NAME, session.id)
    ingest.commit(DIGEST)
    ingest.close()
    assert readable(store)
    assert store.list("uploads/") == []
