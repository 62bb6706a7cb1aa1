"""Clients push through three replicas behind nginx, which are killed at random, over a store that fails at random.

Whatever was acknowledged is there in the end, whole; nothing partial was ever given a name.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import StowageError
from artifact.manifest import EMPTY_CONFIG, Manifest
from artifact.progress import Quiet
from artifact.remote import RemoteRepository
from artifact.source import bytes_source
from registry import keys
from registry.blobs import Blobs
from registry.fsck import Checker
from registry.manifests import Manifests
from registry.store.protocol import ObjectStore, StoreUnavailable
from registry.tags import Tags
from tests.registry.conftest import Backend
from tests.registry.faults import FaultyProxy
from tests.registry.replicas import Replicas, replicas
from tests.registry.servers import S3, StartRegistry

OCTETS = "application/octet-stream"
SECONDS = 20.0
CLIENTS = 3


class Pusher(threading.Thread):
    """One client: pushes models of its own and a shared one, and tries again until each is acknowledged."""

    def __init__(self, number: int, seed: int, host: str, deadline: float, shared: bytes) -> None:
        super().__init__(daemon=True)
        self._number = number
        self._random = random.Random(f"{seed}-{number}")
        self._host = host
        self._deadline = deadline
        self._shared = shared
        self.acknowledged: list[tuple[str, str, bytes]] = []
        self.attempted: set[bytes] = set()
        self.retries = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            turn = 0
            while time.monotonic() < self._deadline:
                self._push(turn)
                turn += 1
        except BaseException as error:
            self.error = error

    def _push(self, turn: int) -> None:
        size = self._random.choice([1, 5000, 200_000, 3_000_000, 20_000_000])
        own = self._random.randbytes(size)
        name, tag = (f"own/{self._number}", f"v{turn % 3}") if turn % 2 else ("shared/model", "latest")
        layers = [Descriptor.of(data, OCTETS) for data in (own, self._shared)]
        config = Descriptor.of(EMPTY_CONFIG, mediatypes.EMPTY)
        raw = Manifest(config, layers, annotations={"by": f"{self._number} {turn}"}).to_bytes()
        self.attempted.add(raw)
        contents = {config: EMPTY_CONFIG, layers[0]: own, layers[1]: self._shared}
        while True:
            try:
                repository = RemoteRepository(self._host, name)
                for descriptor, data in contents.items():
                    if not repository.has_blob(descriptor.digest):
                        repository.push_blob(descriptor, bytes_source(data), Quiet())
                repository.push_manifest(raw, mediatypes.IMAGE_MANIFEST, tag)
            except StowageError:
                self.retries += 1
                if time.monotonic() > self._deadline + 60:
                    raise
                time.sleep(0.1)
                continue
            self.acknowledged.append((name, tag, raw))
            return


def harass(these: Replicas, seed: int, deadline: float) -> int:
    """Kill replicas and start them again until the deadline; returns how often."""
    choice, kills = random.Random(seed), 0
    while time.monotonic() < deadline:
        time.sleep(choice.uniform(0.3, 1.5))
        number = choice.randrange(len(these.running))
        these.running[number].kill()
        kills += 1
        these.revive(number)
    return kills


def check(store: ObjectStore, pushers: list[Pusher]) -> None:
    """The model: every acknowledged manifest is there with all it needs, every tag points at what somebody pushed
    there, and no name leads to anything partial."""
    bad = [item for item in Checker(store).run() if item.kind not in ("orphan-data", "orphan-upload")]
    assert bad == []
    blobs, tags = Blobs(store), Tags(store)
    manifests = Manifests(store, blobs, tags)
    attempted = {Digest.of(raw) for pusher in pushers for raw in pusher.attempted}
    for pusher in pushers:
        assert pusher.error is None, pusher.error
        for name, tag, raw in pusher.acknowledged:
            assert manifests.by_digest(name, Digest.of(raw)).raw == raw
            assert tags.resolve(name, tag) in attempted
        last = {tag: raw for name, tag, raw in pusher.acknowledged if name != "shared/model"}
        for tag, raw in last.items():
            assert tags.resolve(f"own/{pusher._number}", tag) == Digest.of(raw)
    assert {entry.key.split("/")[-1] for entry in store.list(keys.tags("shared/model"))} == {"latest"}


@contextmanager
def troubled(backend: Backend, seed: int) -> Iterator[tuple[dict[str, str], FaultyProxy | None]]:
    """The environment of the replicas, with a proxy before S3."""
    if backend.driver == "filesystem":
        yield {}, None
        return
    proxy = FaultyProxy(backend.env["AWS_ENDPOINT_URL"], seed, 0.0)
    try:
        yield {**backend.env, "AWS_ENDPOINT_URL": proxy.url}, proxy
    finally:
        proxy.close()


@pytest.mark.s3
def test_a_head_without_its_body_stores_nothing(s3: S3) -> None:
    """As of a process that is killed in between: what is there stays, what is not there does not come to be."""
    proxy = FaultyProxy(s3.env["AWS_ENDPOINT_URL"], 1, 0.0, ways=("head alone",))
    try:
        storage = s3.storage()
        there = Backend("s3", storage, s3.env).open()
        with_proxy = Backend("s3", storage, {**s3.env, "AWS_ENDPOINT_URL": proxy.url}).open()
        etag = there.put("tags/old", b"sha256:1")
        proxy.probability = 1.0
        for key, condition in (("tags/new", {"if_none_match": True}), ("tags/old", {"if_match": etag}), ("tags/x", {})):
            with pytest.raises(StoreUnavailable):
                with_proxy.put(key, b"sha256:2", **condition)
        assert proxy.faults["head alone"] >= 3
        assert there.get("tags/old").data == b"sha256:1"
        assert [entry.key for entry in there.list("tags/")] == ["tags/old"]
    finally:
        proxy.close()


@pytest.mark.timeout(240)
def test_nothing_acknowledged_is_lost(backend: Backend, registry_server: StartRegistry, tmp_path: Path) -> None:
    seed = int(os.environ.get("STOWAGE_FAULT_SEED") or random.SystemRandom().randrange(2**32))
    print(f"seed: STOWAGE_FAULT_SEED={seed}")
    folder = tmp_path / "nginx"
    folder.mkdir()
    with troubled(backend, seed) as (env, proxy), replicas(registry_server, folder, backend.storage, env) as these:
        if proxy:
            proxy.probability = 0.05
        deadline = time.monotonic() + SECONDS
        shared = random.Random(seed).randbytes(6_000_000)
        pushers = [Pusher(number, seed, these.host, deadline, shared) for number in range(CLIENTS)]
        for pusher in pushers:
            pusher.start()
        kills = harass(these, seed, deadline)
        if proxy:
            proxy.probability = 0.0
        for pusher in pushers:
            pusher.join(timeout=90)
            assert not pusher.is_alive()
        pushed, retries = sum(len(p.acknowledged) for p in pushers), sum(p.retries for p in pushers)
        print(f"{pushed} pushes, {retries} tried again, {kills} kills, faults {proxy.faults if proxy else {}}")
        check(backend.open(), pushers)
    assert kills >= 2
    assert pushed >= CLIENTS
