"""Writes to S3: the bytes that are meant, also when they have to be sent again, and no copy of them."""

from __future__ import annotations

import base64
import hashlib
import os
import tracemalloc
from pathlib import Path

import pytest

from registry.store.open import open_store
from registry.store.protocol import Conflict
from tests.registry.conftest import Backend, environment
from tests.registry.store.scripted import ScriptedS3, error

MIB = 1024 * 1024
DATA = os.urandom(3 * MIB + 7)


@pytest.mark.parametrize("kind", [bytes, memoryview])
def test_what_is_sent_again_is_the_same(
    kind: type[bytes | memoryview], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
    with ScriptedS3({}) as s3, environment({"AWS_ENDPOINT_URL": s3.url, **keys}):
        store = open_store("s3://models/p")
        s3.misdeeds += [error("503 Slow Down", "SlowDown"), lambda connection, asked: False]
        store.put("a", kind(DATA))
    assert s3.objects == {"/models/p/a": DATA}
    assert [asked.body == DATA for asked in s3.asked] == [True] * 3
    md5 = base64.b64encode(hashlib.md5(DATA, usedforsecurity=False).digest()).decode()
    assert {asked.headers["content-md5"] for asked in s3.asked} == {md5}


def test_a_view_is_an_object_like_any_other(backend: Backend) -> None:
    store = backend.open()
    buffer = bytearray(b"--" + DATA + b"--")
    with memoryview(buffer)[2:-2] as view:
        etag = store.put("v/x", view, if_none_match=True)
        with pytest.raises(Conflict):
            store.put("v/x", view, if_none_match=True)
        assert store.put("v/x", view, if_match=etag)
        with pytest.raises(Conflict):
            store.put("v/x", view, if_match='"another"')
    assert store.get("v/x").data == DATA
    del buffer[1:]  # nothing holds on to it, which would be a BufferError


def test_no_copy_is_made_of_what_is_put(backend: Backend) -> None:
    store = backend.open()
    with memoryview(bytearray(16 * MIB)) as view:
        store.put("c/1", view)  # what is loaded once is loaded now
        tracemalloc.start()
        try:
            store.put("c/2", view)
            assert tracemalloc.get_traced_memory()[1] < MIB
        finally:
            tracemalloc.stop()


def test_no_copy_is_made_of_what_a_writer_saves_or_seals(backend: Backend) -> None:
    store = backend.open()
    part = os.urandom(15 * MIB)
    for _ in range(2):  # what is loaded once is loaded the first time
        writer = store.writer("c/x", scratch="s/x/")
        writer.write([part])
        tracemalloc.start()
        try:
            writer.checkpoint()
            writer.seal()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        writer.abort()
    assert peak < MIB
