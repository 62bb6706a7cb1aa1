"""What the collector removes, what it leaves, and whom it gives way to."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from itertools import chain, count
from typing import Any

import pytest

from artifact.digest import Digest
from registry import keys
from registry.fsck import Checker
from registry.gc.collector import Collector
from registry.gc.lease import SECONDS, LeaseHeld
from registry.gc.survey import CannotCollect
from registry.store.protocol import ObjectStore, StoreUnavailable
from tests.registry.gc.conftest import GRACE, LAYER, Place, push, subject_of
from tests.registry.pushing import INDEX, MANIFEST, descriptor, manifest_of, push_blob, put_manifest, sha256


def test_what_is_needed_stays(place: Place) -> None:
    """Tagged and untagged manifests, what they refer to, and referrers; cycle after cycle."""
    raw = push(place.client)
    push(place.client, None, b"signature", **subject_of(raw))
    before = place.stored()
    for report in place.collect(3):
        assert (report.condemned, report.deleted_blobs, report.manifests, report.blobs) == (0, 0, 2, 3)
    assert place.stored() == before


def test_what_nobody_needs_goes_in_two_cycles(place: Place) -> None:
    raw = push(place.client)
    push(place.client, "v2", b"stays")
    left = place.stored()
    push_blob(place.client, "r", b"never named")
    push_blob(place.client, "other", LAYER)
    assert place.client.delete(f"/v2/r/manifests/{sha256(raw)}").status_code == 202
    first, second = place.collect(2)
    assert (first.deleted_blobs, first.condemned) == (0, 5)  # two records and three links
    assert (second.deleted_blobs, second.deleted_links, second.deleted_bytes) == (2, 3, len(LAYER + b"never named"))
    assert {key for key in place.stored() if key.startswith("data/")} < left
    assert len(place.store.list("blobs/")) == 2
    assert list(Checker(place.store).run()) == []


def test_nothing_young_goes(place: Place) -> None:
    push_blob(place.client, "r", b"to be named soon")
    place.clock.now += GRACE / 2
    assert place.collector().run().condemned == 0
    place.clock.now += GRACE / 2
    assert place.collector().run().condemned == 2
    place.clock.now += GRACE - 1
    assert place.collector().run().deleted_blobs == 0
    push_blob(place.client, "r", b"{}")
    assert put_manifest(place.client, "r", manifest_of([b"to be named soon"]), "v1").status_code == 201
    place.collect(2)
    assert list(Checker(place.store).run()) == []


def test_untagged_only_when_asked(place: Place) -> None:
    """An index keeps what it lists and a subject its referrers; a referrer without subject or tag goes with the
    untagged."""
    child, stray = push(place.client, None, b"child"), push(place.client, None, b"stray")
    index = json.dumps({"schemaVersion": 2, "manifests": [descriptor(child, MANIFEST)]}).encode()
    assert put_manifest(place.client, "r", index, "all", INDEX).status_code == 201
    kept = push(place.client, None, b"signature", **subject_of(index))
    lone = push(place.client, None, b"lone", **subject_of(b"never pushed"))
    tagged = push(place.client, "sig", b"tagged", **subject_of(b"never pushed"))
    place.collect(2)
    assert len(place.store.list("repos/r/_manifests/")) == 6
    reports = place.collect(2, untagged=True)
    assert [report.deleted_manifests for report in reports] == [0, 2]
    for raw, status in ((child, 200), (index, 200), (kept, 200), (tagged, 200), (stray, 404), (lone, 404)):
        assert place.client.get(f"/v2/r/manifests/{sha256(raw)}").status_code == status
    listed = place.client.get(f"/v2/r/referrers/{sha256(b'never pushed')}").json()["manifests"]
    assert [item["digest"] for item in listed] == [sha256(tagged)]
    assert list(Checker(place.store).run()) == []


def test_referrers_go_with_their_subject(place: Place) -> None:
    raw = push(place.client)
    push(place.client, None, b"signature", **subject_of(raw))
    place.client.delete("/v2/r/manifests/v1")
    place.collect(2, untagged=True)
    assert place.stored() == set()


# Somebody comes between.

CLIENTS: dict[str, Callable[[Place], bool]] = {
    "manifest": lambda place: put_manifest(place.client, "r", manifest_of([LAYER]), "new").status_code == 201,
    "head": lambda place: place.client.head(f"/v2/r/blobs/{sha256(LAYER)}").status_code == 200,
    "mount": lambda place: place.client.post(
        "/v2/m/blobs/uploads/", params={"mount": sha256(LAYER), "from": "r"}
    ).status_code == 201,
    "mount from anywhere": lambda place: place.client.post(
        "/v2/m/blobs/uploads/", params={"mount": sha256(LAYER)}
    ).status_code == 201,
    "push": lambda place: bool(push_blob(place.client, "r", LAYER)),
    "push elsewhere": lambda place: bool(push_blob(place.client, "m", LAYER)),
}  # fmt: skip


def positions(stride: int) -> Iterator[int]:
    """The first step, at which everything is still there, and from somewhere on every `stride`-th."""
    return chain([0], count(1 + secrets.randbelow(stride), stride))


@pytest.mark.parametrize("what", CLIENTS)
def test_asked_for_at_every_step(fresh: Callable[[], Place], driver: str, what: str) -> None:
    """However far the removing cycle has come: what a client is told exists then is there when the cycle has ended,
    and a manifest that names it is accepted."""
    told = 0
    for at in positions(1 if driver == "filesystem" else 5):
        place = fresh()
        push_blob(place.client, "r", b"{}")
        push_blob(place.client, "r", LAYER)
        place.collect(1)
        place.clock.now += GRACE + 1
        steps = place.collector().steps()
        for _ in range(at):
            if next(steps, None) is None:
                assert at > 5 and told
                return
        promised = CLIENTS[what](place)
        for _ in steps:
            pass
        if promised:
            told += 1
            repo = "m" if what in ("mount", "mount from anywhere", "push elsewhere") else "r"
            assert place.client.get(f"/v2/{repo}/blobs/{sha256(LAYER)}").content == LAYER, at
            push_blob(place.client, repo, b"{}")
            assert put_manifest(place.client, repo, manifest_of([LAYER]), "later").status_code == 201, at
        kinds = {finding.kind for finding in Checker(place.store).run()}
        assert kinds <= {"orphan-data", "dangling-link"}, at
        place.collect(2)
        assert list(Checker(place.store).run()) == [], at


@pytest.mark.parametrize("again", [False, True])
def test_an_unlisted_referrer_removed_at_every_step(fresh: Callable[[], Place], driver: str, again: bool) -> None:
    """It is listed if it is there in the end, removed and pushed again or not, and else it is not."""
    for at in positions(1 if driver == "filesystem" else 4):
        place = fresh()
        raw = push(place.client)
        signature = push(place.client, None, b"signature", **subject_of(raw))
        (listing,) = [key for key in place.stored() if "/_referrers/" in key]
        place.store.delete(listing)
        assert place.collector(dry_run=True).run().listed_referrers == 1
        assert listing not in place.stored()
        steps = place.collector().steps()
        for _ in range(at):
            if next(steps, None) is None:
                assert at > 5
                return
        assert place.client.delete(f"/v2/r/manifests/{sha256(signature)}").status_code == 202
        if again:
            next(steps, None)
            assert put_manifest(place.client, "r", signature).status_code == 201
        for _ in steps:
            pass
        assert list(Checker(place.store).run()) == [], at
        listed = place.client.get(f"/v2/r/referrers/{sha256(raw)}").json()["manifests"]
        assert len(listed) == again, at


@pytest.mark.parametrize("ask", ["index", "head", "put"])
def test_untagged_manifest_asked_for_at_every_step(fresh: Callable[[], Place], driver: str, ask: str) -> None:
    """A manifest that somebody asks for as it is about to go stays with its blobs and its referrers."""
    told = 0
    for at in positions(1 if driver == "filesystem" else 8):
        place = fresh()
        raw = push(place.client, None)
        signature = push(place.client, None, b"signature", **subject_of(raw))
        place.collect(1, untagged=True)
        place.clock.now += GRACE + 1
        steps = place.collector(untagged=True).steps()
        for _ in range(at):
            if next(steps, None) is None:
                assert at > 5 and told
                return
        index = json.dumps({"schemaVersion": 2, "manifests": [descriptor(raw, MANIFEST)]}).encode()
        before = place.stored()
        if ask == "index":
            promised = put_manifest(place.client, "r", index, "all", INDEX).status_code == 201
        elif ask == "head":
            promised = place.client.head(f"/v2/r/manifests/{sha256(raw)}").status_code == 200
        else:
            promised = put_manifest(place.client, "r", raw, "v1").status_code == 201
        for _ in steps:
            pass
        if promised:
            told += 1
            assert place.client.get(f"/v2/r/manifests/{sha256(raw)}").content == raw
            assert place.client.get(f"/v2/r/blobs/{sha256(LAYER)}").content == LAYER
            if {keys.manifest("r", Digest.of(item)) for item in (raw, signature)} <= before:
                listed = place.client.get(f"/v2/r/referrers/{sha256(raw)}").json()["manifests"]
                assert [item["digest"] for item in listed] == [sha256(signature)], at
        assert {finding.kind for finding in Checker(place.store).run()} <= {"orphan-data", "dangling-link"}, at


# It stops rather than guess.


class Failing:
    """A store whose call number `fail_at` of one kind fails."""

    def __init__(self, inner: ObjectStore, method: str, fail_at: int) -> None:
        self._inner, self._method, self._left = inner, method, fail_at

    def __getattr__(self, name: str) -> Any:
        if name == self._method:
            self._left -= 1
            if self._left == 0:
                raise StoreUnavailable("the store went away")
        return getattr(self._inner, name)


@pytest.mark.parametrize("method", ["list", "get"])
def test_a_failure_half_way_condemns_nothing(place: Place, method: str) -> None:
    """A listing or reading that fails before the picture is whole: nothing is condemned and nothing removed."""
    for number in range(4):
        push(place.client, f"v{number}", f"layer {number}".encode())
    push_blob(place.client, "r", b"unneeded")
    place.collect(1)
    place.clock.now += GRACE + 1
    fail_at = failures = 0
    while True:
        before, fail_at = place.stored(), fail_at + 1
        collector = Collector(Failing(place.store, method, fail_at), grace=GRACE, clock=place.clock)  # type: ignore[arg-type]
        steps, names = collector.steps(), []
        try:
            names.extend(steps)
        except StoreUnavailable:
            failures += 1
            if not any(name.startswith("delete") for name in names):
                assert place.stored() == before
            continue
        break
    assert failures > 5
    assert list(Checker(place.store).run()) == []


@pytest.mark.parametrize("prefix", ["repos/r/_manifests/", "repos/r/_tags/", "blobs/"])
def test_damage_stops_it(place: Place, prefix: str) -> None:
    """What cannot be read might refer to anything: the cycle fails and names the object."""
    push(place.client)
    push_blob(place.client, "r", b"unneeded")
    key = place.store.list(prefix)[0].key
    place.store.put(key, b"\xff")
    before = place.stored()
    place.clock.now += GRACE + 1
    with pytest.raises(CannotCollect, match=key):
        place.collector().run()
    assert place.stored() == before
    assert place.store.list("gc/") == []


def test_interrupted_at_every_step(fresh: Callable[[], Place], driver: str) -> None:
    """A collector that is killed leaves nothing broken, and one that comes later finishes, once the lease is over."""
    at = 0
    while True:
        place = fresh()
        push(place.client)
        push(place.client, None, b"goes", repo="other")
        place.collect(1, untagged=True)
        place.clock.now += GRACE + 1
        collector = place.collector(untagged=True)
        collector._lease.release = lambda: None  # type: ignore[method-assign]
        steps = collector.steps()
        for _ in range(at):
            if next(steps, None) is None:
                assert at > 5
                return
        steps.close()
        assert {finding.kind for finding in Checker(place.store).run()} <= {"orphan-data", "dangling-link"}, at
        if at:
            with pytest.raises(LeaseHeld):
                place.collector().run()
        place.clock.now += SECONDS
        place.collect(2, untagged=True)
        assert list(Checker(place.store).run()) == [], at
        assert len(place.store.list("data/")) == 2
        at += 1 if driver == "filesystem" else 6
