"""Reads that requests share: one for all that wait, none older than its question."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from registry.http.shared import SharedReads
from registry.store.protocol import Missing
from tests.registry.conftest import Backend
from tests.registry.pushing import MANIFEST, manifest_of, push_blob, put_manifest, sha256
from tests.registry.servers import StartRegistry


class Counter:
    """Answers with how often it has been asked; each read waits until it is let go."""

    def __init__(self) -> None:
        self.count = 0
        self.at_once = 0
        self.most = 0
        self.gate = threading.Semaphore(0)
        self.lock = threading.Lock()

    def __call__(self, key: str) -> int:
        with self.lock:
            self.count += 1
            mine = self.count
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        self.gate.acquire(timeout=10)
        with self.lock:
            self.at_once -= 1
        if key == "missing":
            raise Missing(key)
        return mine


def test_those_who_wait_share_and_those_who_come_later_do_not() -> None:
    async def run() -> None:
        counter = Counter()
        with ThreadPoolExecutor(4) as pool:
            reads = SharedReads(counter, pool, lanes=4, batch=1)
            first = [asyncio.ensure_future(reads.get("a")) for _ in range(5)]
            while counter.count < 1:
                await asyncio.sleep(0.01)
            later = [asyncio.ensure_future(reads.get("a")) for _ in range(7)]  # the first read has begun: too old
            await asyncio.sleep(0.05)
            assert counter.count == 1
            counter.gate.release(2)
            assert await asyncio.gather(*first) == [1] * 5
            assert await asyncio.gather(*later) == [2] * 7

    asyncio.run(run())


@pytest.mark.parametrize(("lanes", "batch"), [(1, 1), (2, 64), (16, 1)])
def test_every_key_gets_its_own_answer_and_no_more_lanes_than_told(lanes: int, batch: int) -> None:
    async def run() -> None:
        counter = Counter()
        counter.gate.release(1000)
        with ThreadPoolExecutor(lanes) as pool:
            reads = SharedReads(lambda key: (counter(key), key), pool, lanes, batch)
            found = await asyncio.gather(*(reads.get(f"k{number % 40}") for number in range(400)))
        assert [key for _, key in found] == [f"k{number % 40}" for number in range(400)]
        assert counter.count == 40
        assert counter.most <= lanes

    asyncio.run(run())


def test_errors_reach_all_who_wait_and_one_who_gives_up_disturbs_nobody() -> None:
    async def run() -> None:
        counter = Counter()
        with ThreadPoolExecutor(2) as pool:
            reads = SharedReads(counter, pool, lanes=2, batch=1)
            waiting = [asyncio.ensure_future(reads.get("missing")) for _ in range(3)]
            await asyncio.sleep(0.05)
            waiting[0].cancel()
            counter.gate.release()
            results = await asyncio.gather(*waiting, return_exceptions=True)
            assert isinstance(results[0], asyncio.CancelledError)
            assert all(isinstance(result, Missing) for result in results[1:])

    asyncio.run(run())


def test_a_moved_or_deleted_tag_is_never_served_again(backend: Backend, registry_server: StartRegistry) -> None:
    """While others ask for a tag all the time, whoever has moved or deleted it through another process sees the new
    state with the very next request (CVE-2026-35172: nothing remembered brings back what was deleted)."""
    asked, changed = (registry_server(backend.storage, env=backend.env) for _ in range(2))
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=asked.url, timeout=30) as client:
            while not stop.is_set():
                assert client.get("/v2/fre/sh/manifests/v1").status_code in (200, 404)

    with (
        ThreadPoolExecutor(4) as pool,
        httpx.Client(base_url=changed.url, timeout=30) as writer,
        httpx.Client(base_url=asked.url, timeout=30) as reader,
    ):
        for blob in (b"{}", b"layer"):
            push_blob(writer, "fre/sh", blob)
        running = [pool.submit(ask) for _ in range(4)]
        try:
            for turn in range(4):
                raw = manifest_of([b"layer"], annotations={"turn": str(turn)})
                assert put_manifest(writer, "fre/sh", raw, "v1").status_code == 201
                answer = reader.get("/v2/fre/sh/manifests/v1", headers={"Accept": MANIFEST})
                assert answer.headers["docker-content-digest"] == sha256(raw)
                if turn % 2:
                    reference = "v1" if turn == 1 else sha256(raw)
                    assert writer.delete(f"/v2/fre/sh/manifests/{reference}").status_code == 202
                    assert reader.get("/v2/fre/sh/manifests/v1").status_code == 404
        finally:
            stop.set()
        for future in running:
            future.result()
