"""Pushes, deletions, mounts and tag moves in any order between the steps of the collector, with a clock moved by hand.

Two things hold: whatever a client was told exists and has not deleted is there, whole; and two cycles after everything
has come to rest, nothing is there that nobody needs.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from artifact.digest import Digest
from registry import condemned, keys, manifests
from registry.blobs import BlobRecord, Blobs
from registry.fsck import Checker
from registry.gc.collector import Collector
from registry.gc.lease import SECONDS, LeaseHeld
from registry.manifests import Manifests, ReferenceUnknown, StoredManifest, read_manifest
from registry.referrers import Referrers
from registry.store.filesystem import FilesystemStore
from registry.store.protocol import Missing, ObjectStore
from registry.tags import Tags
from registry.uploads import LIFETIME, Uploads
from tests.registry.gc.clocked import Clock, ClockedStore
from tests.registry.pushing import INDEX, MANIFEST, descriptor, manifest_of
from tests.registry.servers import S3

GRACE = 3600.0
MEMORY = Path("/dev/shm")  # where syncing costs nothing
REPOS = ("a", "a/b", "c")
CONTENTS = [b"{}", *(f"blob {number}".encode() for number in range(4))]
TAGS = ("v1", "v2")

repos, contents, tags = st.sampled_from(REPOS), st.sampled_from(CONTENTS), st.sampled_from(TAGS)


class Numbered:
    """Random ids that are the same each time an example is run: the order of a listing, and with it what a step of the
    collector does, follows from them, and hypothesis runs an example again."""

    def __init__(self) -> None:
        self._count = 0

    def token_hex(self, size: int) -> str:
        self._count += 1
        return hashlib.sha256(b"%d" % self._count).hexdigest()[: 2 * size]


class Inline(Executor):
    """Does one thing after the other, so that how far a refused request came does not depend on its threads."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.fixture(autouse=True)
def _same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (keys, condemned):
        monkeypatch.setattr(module, "secrets", Numbered())
    monkeypatch.setattr(manifests, "_CHECK", Inline())


class Registry(RuleBasedStateMachine):
    """The registry below its HTTP side, a collector that advances step by step, and what clients may rely on."""

    untagged = False

    def new_store(self) -> ObjectStore:
        self._folder = tempfile.mkdtemp(prefix="gc-", dir=MEMORY if MEMORY.is_dir() else None)
        return FilesystemStore(Path(self._folder))

    def drop_store(self) -> None:
        shutil.rmtree(self._folder)

    @initialize()
    def begin(self) -> None:
        keys.secrets, condemned.secrets = Numbered(), Numbered()
        self.clock = Clock()
        self.store = ClockedStore(self.new_store(), self.clock)
        self.blobs = Blobs(self.store)
        self.tags = Tags(self.store)
        self.manifests = Manifests(self.store, self.blobs, self.tags)
        self.referrers = Referrers(self.store, self.manifests)
        self.uploads = Uploads(self.store, self.blobs, self.clock)
        self.cycle: Iterator[str] | None = None
        self.promised: dict[tuple[str, Digest], StoredManifest] = {}  # manifests that clients have stored
        self.pointed: dict[tuple[str, str], Digest] = {}
        self.removed: set[tuple[str, Digest]] = set()  # blobs that a client has deleted under its manifests
        self.checked: list[tuple[str, StoredManifest, str | None, float]] = []
        self.seen: dict[tuple[str, Digest], tuple[bytes, float]] = {}  # blobs pushed or asked for, and when

    # What clients do.

    @rule(repo=repos, content=contents, whole=st.booleans())
    def push_blob(self, repo: str, content: bytes, whole: bool) -> None:
        digest = Digest.of(content)
        if whole:
            ingest = self.uploads.receive_whole(repo, digest)
        else:
            ingest = self.uploads.receive(repo, self.uploads.begin(repo).id)
        ingest.hash([content])
        ingest.write([content])
        ingest.advance(len(content))
        ingest.commit(digest)
        ingest.close()
        self._rely(repo, content)

    def _rely(self, repo: str, content: bytes) -> None:
        place = repo, Digest.of(content)
        self.removed.discard(place)
        self.seen[place] = content, self.clock.now

    @rule(repo=repos, content=contents)
    def ask_for_blob(self, repo: str, content: bytes) -> None:
        try:
            self.blobs.claim(repo, Digest.of(content))
        except Missing:
            return
        self._rely(repo, content)

    @rule(repo=repos, content=contents, origin=st.one_of(st.none(), repos))
    def mount(self, repo: str, content: bytes, origin: str | None) -> None:
        if self.blobs.mount(repo, Digest.of(content), origin):
            self._rely(repo, content)

    @rule(repo=repos, content=contents)
    def delete_blob(self, repo: str, content: bytes) -> None:
        place = repo, Digest.of(content)
        try:
            self.blobs.unlink(*place)
        except Missing:
            return
        self.seen.pop(place, None)
        self.removed.add(place)

    @rule(repo=repos, layers=st.lists(contents, max_size=2), tag=st.one_of(st.none(), tags), data=st.data())
    def begin_manifest(self, repo: str, layers: list[bytes], tag: str | None, data: st.DataObject) -> None:
        """The first half of a PUT: everything it refers to has been found."""
        known = sorted({manifest.digest for (name, _), manifest in self.promised.items() if name == repo})
        more = {}
        if known and data.draw(st.booleans()):
            more["subject"] = {"mediaType": MANIFEST, "digest": str(data.draw(st.sampled_from(known))), "size": 1}
        raw, kind = manifest_of(layers, **more), MANIFEST
        if known and data.draw(st.booleans()):
            children = data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=2))
            listed = [{**descriptor(b"", MANIFEST), "digest": str(child)} for child in children]
            raw, kind = json.dumps({"schemaVersion": 2, "manifests": listed, **more}).encode(), INDEX
        manifest = read_manifest(raw, kind, None)
        try:
            self.manifests.check(repo, manifest)
        except ReferenceUnknown:
            return
        self.checked.append((repo, manifest, tag, self.clock.now))

    @precondition(lambda self: self.checked)
    @rule()
    def end_manifest(self) -> None:
        """The second half. A request does not take as long as a grace period."""
        repo, manifest, tag, begun = self.checked.pop(0)
        if self.clock.now - begun >= GRACE or not self._complete(repo, manifest):
            return
        self.manifests.put(repo, manifest)
        self.referrers.add(repo, manifest)
        if tag:
            self.tags.point(repo, tag, manifest.digest)
            self.pointed[repo, tag] = manifest.digest
        self.promised[repo, manifest.digest] = manifest

    def _complete(self, repo: str, manifest: StoredManifest) -> bool:
        """Whether no client has deleted in between what the first half found."""
        children, blobs = _references(manifest)
        return all((repo, child) in self.promised for child in children) and not any(
            (repo, blob) in self.removed for blob in blobs
        )

    @precondition(lambda self: self.promised)
    @rule(data=st.data())
    def delete_manifest(self, data: st.DataObject) -> None:
        repo, digest = data.draw(st.sampled_from(sorted(self.promised)))
        try:
            self.referrers.remove(repo, self.manifests.delete(repo, digest))
        except Missing:  # collected already
            assert (repo, digest) not in self._kept()
        del self.promised[repo, digest]
        self.pointed = {key: value for key, value in self.pointed.items() if (key[0], value) != (repo, digest)}

    @precondition(lambda self: self.pointed)
    @rule(data=st.data())
    def delete_tag(self, data: st.DataObject) -> None:
        repo, tag = data.draw(st.sampled_from(sorted(self.pointed)))
        self.tags.delete(repo, tag)
        del self.pointed[repo, tag]

    @rule(repo=repos, content=contents)
    def abandon_upload(self, repo: str, content: bytes) -> None:
        ingest = self.uploads.receive(repo, self.uploads.begin(repo).id)
        ingest.hash([content])
        ingest.write([content])
        ingest.advance(len(content))
        ingest.checkpoint()
        ingest.close()

    @rule()
    def die_before_the_record(self) -> None:
        """Bytes that were stored by a process that died then."""
        writer = self.store.writer(keys.data(keys.new_upload_id()), scratch="uploads/x/")
        writer.write([b"nobody's"])
        writer.seal()
        writer.complete()
        writer.close()

    # Time, and the collector.

    @rule(seconds=st.sampled_from([1.0, GRACE / 2, GRACE, LIFETIME + 1.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @precondition(lambda self: self.cycle is None)
    @rule()
    def collect(self) -> None:
        self.cycle = self._collector().steps()

    def _collector(self) -> Collector:
        return Collector(self.store, grace=GRACE, untagged=self.untagged, clock=self.clock)

    @precondition(lambda self: self.cycle is not None)
    @rule(count=st.integers(1, 12))
    def step(self, count: int) -> None:
        assert self.cycle is not None
        try:
            for _ in range(count):
                next(self.cycle)
        except (StopIteration, LeaseHeld):
            self.cycle = None

    @rule()
    def whole_cycle(self) -> None:
        try:
            self._collector().run()
        except LeaseHeld:
            return

    @precondition(lambda self: self.cycle is not None)
    @rule()
    def interrupt(self) -> None:
        assert self.cycle is not None
        self.cycle.close()
        self.cycle = None

    # What must hold.

    def _kept(self) -> set[tuple[str, Digest]]:
        """The manifests that the collector may not touch."""
        if not self.untagged:
            return set(self.promised)
        kept = {(repo, digest) for (repo, _), digest in self.pointed.items()}
        while True:
            more = {(repo, child) for repo, digest in kept for child in _references(self.promised[repo, digest])[0]}
            more |= {
                place for place, found in self.promised.items() if found.subject and (place[0], found.subject) in kept
            }
            if (more := more & set(self.promised)) <= kept:
                return kept
            kept |= more

    @invariant()
    def nothing_needed_is_lost(self) -> None:
        for repo, digest in self._kept():
            manifest = self.promised[repo, digest]
            assert self.manifests.by_digest(repo, digest).raw == manifest.raw
            if manifest.subject:
                assert digest in [item.digest for item in self.referrers.of(repo, manifest.subject)]
            for blob in _references(manifest)[1]:
                if (repo, blob) not in self.removed:
                    self._readable(repo, blob)
        for (repo, tag), digest in self.pointed.items():
            assert self.tags.resolve(repo, tag) == digest
        for (repo, digest), (_, when) in self.seen.items():
            if self.clock.now - when < GRACE:
                self._readable(repo, digest)

    def _readable(self, repo: str, digest: Digest) -> None:
        assert digest.matches(self.blobs.read(self.blobs.find(repo, digest), 1000))

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        try:
            self._two_cycles_leave_nothing()
        finally:
            self.drop_store()

    def _two_cycles_leave_nothing(self) -> None:
        if self.cycle is not None:
            self.cycle.close()
        for _ in range(2):
            self.clock.now += LIFETIME + GRACE + SECONDS
            self._collector().run()
        self.nothing_needed_is_lost()
        if self.untagged:
            self.promised = {place: self.promised[place] for place in self._kept()}
        stored = {entry.key for entry in self.store._inner.list("", limit=10**6)}
        assert {key for key in stored if "/_manifests/" in key} == {keys.manifest(*place) for place in self.promised}
        references = {(repo, blob) for (repo, _), found in self.promised.items() for blob in _references(found)[1]}
        assert {key for key in stored if "/_blobs/" in key} == {
            keys.blob(*place) for place in references if place not in self.removed
        }
        records = {keys.record(digest) for _, digest in references}
        assert {key for key in stored if key.startswith("blobs/")} == records
        data = {BlobRecord.from_bytes(self.store.get(key).data).data for key in records}
        assert {key for key in stored if key.startswith(("data/", "uploads/", "gc/", "probe/"))} == data
        allowed = {keys.manifest(*place) for place in self.promised}
        findings = [item for item in Checker(self.store).run() if item.key not in allowed or not self.removed]
        assert [item for item in findings if item.kind != "missing-blob"] == []


def _references(manifest: StoredManifest) -> tuple[set[Digest], set[Digest]]:
    """The manifests and the blobs that a manifest names."""
    value = json.loads(manifest.raw)
    children = {Digest.parse(item["digest"]) for item in value.get("manifests", ())}
    blobs = {Digest.parse(item["digest"]) for item in (*value.get("layers", ()), value.get("config")) if item}
    return children, blobs


class RegistryWithoutUntagged(Registry):
    """The same, with untagged manifests collected."""

    untagged = True


QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@pytest.mark.parametrize("machine", [Registry, RegistryWithoutUntagged])
def test_in_a_folder(machine: type[Registry]) -> None:
    run_state_machine_as_test(machine, settings=settings(max_examples=40, stateful_step_count=50, **QUIET))


@pytest.mark.s3
def test_on_s3(s3: S3) -> None:
    from registry.store.s3 import S3Store
    from tests.registry.conftest import environment

    class OnS3(RegistryWithoutUntagged):
        def new_store(self) -> ObjectStore:
            with environment(s3.env):
                return S3Store(s3.bucket, hashlib.sha256(str(id(self)).encode()).hexdigest()[:12])

        def drop_store(self) -> None:
            for entry in self.store.list("", limit=10**6):
                self.store.delete(entry.key)

    run_state_machine_as_test(OnS3, settings=settings(max_examples=4, stateful_step_count=40, **QUIET))
