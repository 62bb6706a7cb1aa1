"""The log under processes that die, are held up, and get into each other's way.

Three things hold whatever happens: what was acknowledged is in the log and is served; what is served is in the log; and
there is one log, whose every head is the beginning of the next.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from artifact.digest import Digest
from registry import keys
from registry.fsck import Checker
from registry.gc.collector import Collector
from registry.log.sequencer import Draft, Stale
from registry.log.state import STATE, Pending
from registry.log.tags import LoggedTags
from registry.store.protocol import Missing, ObjectStore, StoreUnavailable
from registry.tagrecord import TagRecord
from registry.tags import Tags
from registry.uploads import LIFETIME
from supplychain.tlog.checkpoint import Checkpoint
from tests.registry.conftest import Backend
from tests.registry.logged import Logged, fill, held, logged, one_log
from tests.registry.pushing import sha256
from tests.registry.servers import S3, StartRegistry

NAME = "team/model"
FIRST, SECOND, THIRD = (Digest.of(text) for text in (b"first", b"second", b"third"))


@pytest.fixture
def these(backend: Backend, tmp_path: Path) -> Logged:
    found = logged(backend, tmp_path)
    found.sequencer().create()
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Logged:
    found = logged(Backend("filesystem", str(tmp_path / "storage")), tmp_path)
    found.sequencer().create()
    return found


class Dying:
    """A store that is not reached any more from call number `fail_at` on; with `late`, that call is still carried
    out, and only its answer is lost; with `once`, the calls after it are answered again."""

    def __init__(self, inner: ObjectStore, fail_at: int, late: bool, once: bool = False) -> None:
        self._inner = inner
        self._left = fail_at
        self._late = late
        self._once = once

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if not callable(method):
            return method

        def call(*arguments: Any, **options: Any) -> Any:
            self._left -= 1
            if self._left == 0 and self._late:
                method(*arguments, **options)
            if self._left == 0 or (self._left < 0 and not self._once):
                raise StoreUnavailable("killed here")
            return method(*arguments, **options)

        return call


def visible(store: ObjectStore, tags: Tags) -> dict[str, Digest]:
    found: dict[str, Digest] = {}
    for tag in tags.list(NAME, "", 1000):
        with suppress(Missing):
            found[tag] = tags.resolve(NAME, tag)
    return found


def ever(these: Logged) -> set[tuple[str, Digest]]:
    """Every place that a tag was ever in, by the log."""
    return {(entry.tag, entry.digest) for entry in these.entries() if entry.tag and entry.digest}


Action = Callable[[LoggedTags], object]
ACTIONS: dict[str, Action] = {
    "a new tag": lambda tags: tags.point(NAME, "new", SECOND, pushed=True),
    "a tag moved": lambda tags: tags.point(NAME, "old", SECOND, pushed=True),
    "a tag removed": lambda tags: tags.delete(NAME, "old"),
    "a tag that was there before": lambda tags: tags.point(NAME, "gone", SECOND),
    "a manifest with its tags removed": lambda tags: tags.delete_pointing_at(NAME, FIRST),
    "a bundle that becomes whole": lambda tags: fill(tags, 300),
}


@pytest.mark.parametrize("late", [False, True], ids=["before the call", "after the call"])
@pytest.mark.parametrize("action", ACTIONS)
def test_killed_at_every_call(tmp_path: Path, action: str, late: bool) -> None:
    killed_at_every_call(Backend("filesystem", str(tmp_path / "storage")), tmp_path, action, late)


@pytest.mark.s3
def test_killed_at_every_call_to_s3(s3: S3, tmp_path: Path) -> None:
    killed_at_every_call(Backend("s3", s3.storage(), s3.env), tmp_path, "a tag moved", late=True)


def begun(these: Logged, store: ObjectStore) -> LoggedTags:
    """A log with two tags in it and one that was removed: what the actions act on."""
    these.sequencer(store).create()
    tags = these.tags(store)
    for tag in ("old", "other", "gone"):
        tags.point(NAME, tag, FIRST)
    tags.delete(NAME, "gone")
    return tags


def killed_at_every_call(backend: Backend, tmp_path: Path, action: str, late: bool) -> None:
    """Wherever a process dies, nothing is visible that the log does not hold; the next process makes the rest of what
    the log holds visible, and the same action then ends as if nothing had happened."""
    expected: dict[str, Digest] | None = None
    fail_at, deaths = 0, 0
    while True:
        fail_at += 1
        these = logged(backend, tmp_path)
        store = backend.open()
        begun(these, store)
        try:
            ACTIONS[action](LoggedTags(these.sequencer(Dying(store, fail_at, late))))  # type: ignore[arg-type]
            acknowledged = True
        except StoreUnavailable:
            acknowledged = False
            deaths += 1
        after = these.tags(store)
        seen = visible(store, after)
        assert {(tag, digest) for tag, digest in seen.items()} <= ever(these), fail_at
        if acknowledged:
            assert seen == held(these)
        after._journal.finish()
        assert visible(store, after) == held(these), fail_at
        assert these.state().pending == ()
        if not acknowledged:
            with suppress(Missing):  # it had happened
                ACTIONS[action](after)
        after._journal.finish()
        done = visible(store, after)
        assert done == held(these)
        expected = expected or done
        assert done == expected, fail_at
        assert [item for item in Checker(store).run() if item.kind in ("unlogged", "damaged", "wrong-bytes")] == []
        for entry in (*store.list("log/"), *store.list("repos/")):
            store.delete(entry.key)
        if acknowledged:
            break
    assert deaths >= 2


@pytest.mark.parametrize("action", ACTIONS)
def test_one_answer_of_the_store_is_lost(tmp_path: Path, action: str) -> None:
    """What was carried out although nobody was told so is not done twice: every entry is in the log once."""
    backend, fail_at, lost = Backend("filesystem", str(tmp_path / "storage")), 0, 0
    while True:
        fail_at += 1
        these = logged(backend, tmp_path)
        store = backend.open()
        before = begun(these, store)
        count = these.state().size
        dying = Dying(store, fail_at, late=True, once=True)
        tags = LoggedTags(these.sequencer(dying))  # type: ignore[arg-type]
        with suppress(StoreUnavailable):
            ACTIONS[action](tags)
        before._journal.finish()
        ids = [entry.id for entry in these.entries()]
        assert len(set(ids)) == len(ids), fail_at
        assert visible(store, before) == held(these), fail_at
        assert len(ids) <= count + (300 if "bundle" in action else 3)
        for entry in (*store.list("log/"), *store.list("repos/")):
            store.delete(entry.key)
        if dying._left > 0:
            break
        lost += 1
    assert lost >= 3


# Processes that are held up between what they have logged and what they make visible.


def test_a_creation_that_comes_late_does_not_bring_a_removed_tag_back(these: Logged) -> None:
    slow, quick = these.tags(), these.tags()
    log = slow._journal
    draft = Draft(slow._entry("tag", NAME, FIRST, "v1"), log.seen())
    index = log.append([draft])
    quick.delete(NAME, "v1")
    assert quick.list(NAME, "", 10) == []
    log.apply(Pending(index, (NAME, "v1"), FIRST, time.time()), absent=True)
    with pytest.raises(Missing):
        quick.resolve(NAME, "v1")
    assert held(these) == {}
    quick.point(NAME, "v1", SECOND)
    log.apply(Pending(index, (NAME, "v1"), FIRST, time.time()), absent=True)
    assert quick.resolve(NAME, "v1") == SECOND


def test_the_next_writer_of_a_tag_finishes_what_another_began(these: Logged) -> None:
    """Also one who does not know yet that something was begun; an entry never says wrongly what was before."""
    dead, living, stale = these.tags(), these.tags(), these.tags()
    living.point(NAME, "v1", FIRST)
    stale._journal.read()
    seen = dead._look(NAME, "v1").seen
    dead._journal.append([Draft(dead._entry("tag", NAME, SECOND, "v1", FIRST), seen)])
    assert living.resolve(NAME, "v1") == FIRST, "in the log, and not yet visible"
    before: list[Digest | None] = []
    assert stale.point(NAME, "v1", THIRD, before.append) == SECOND
    assert before[-1] == SECOND
    assert held(these) == {"v1": THIRD}
    with pytest.raises(Stale):
        dead._journal.append([Draft(dead._entry("tag", NAME, SECOND, "v1", FIRST), seen)])


def test_a_move_begun_by_a_dead_process_is_finished_by_any(folder: Logged, registry_server: StartRegistry) -> None:
    """Here by a server that starts."""
    folder.start = registry_server
    dead = folder.tags()
    dead.point(NAME, "v1", FIRST)
    dead._journal.append([Draft(dead._entry("tag", NAME, SECOND, "v1", FIRST), dead._look(NAME, "v1").seen)])
    server = folder.serve()
    assert folder.tags().resolve(NAME, "v1") == SECOND
    assert folder.state().pending == ()
    server.stop()


def test_a_process_that_watches_finishes_what_others_left(folder: Logged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registry.log.sequencer._TICK", 0.01)
    monkeypatch.setattr("registry.log.sequencer.ABANDONED", 0.0)
    dead, living = folder.tags(), folder.tags()
    with living._journal.watching():
        dead._journal.append([Draft(dead._entry("tag", NAME, FIRST, "v1"), dead._look(NAME, "v1").seen)])
        while living.list(NAME, "", 10) != ["v1"]:  # the suite's timeout ends this
            time.sleep(0.01)
    assert folder.state().pending == ()


def test_removed_tags_are_taken_away_by_the_collector(folder: Logged) -> None:
    """A day later, and not before; a tag that came back stays."""
    tags, store = folder.tags(), folder.backend.open()
    for tag in ("gone", "back"):
        tags.point(NAME, tag, FIRST)
        tags.delete(NAME, tag)
    Collector(store, grace=0).run()
    assert len(store.list(keys.tags(NAME))) == 2
    tags.point(NAME, "back", SECOND)
    Collector(store, grace=0, clock=lambda: time.time() + LIFETIME + 60).run()
    assert [entry.key for entry in store.list(keys.tags(NAME))] == [keys.tag(NAME, "back")]
    tags.point(NAME, "gone", THIRD)
    assert visible(store, tags) == held(folder) == {"back": SECOND, "gone": THIRD}
    assert store.list("log/") != []


# Many at once.


def test_many_threads_of_many_processes(these: Logged) -> None:
    """Moves of few tags by many: each is in the log once, in the order in which they came to be; one log."""
    pushed: list[tuple[str, Digest]] = []
    heads: list[Checkpoint] = []
    failures: list[BaseException] = []

    def work(number: int) -> None:
        tags = processes[number % len(processes)]
        choice = random.Random(number)
        try:
            for turn in range(8):
                tag, digest = choice.choice("abc"), Digest.of(f"{number} {turn}".encode())
                if choice.random() < 0.2:
                    with suppress(Missing):
                        tags.delete(NAME, tag)
                else:
                    tags.point(NAME, tag, digest, pushed=True)
                    pushed.append((tag, digest))
                heads.append(tags._journal.read().checkpoint)
        except BaseException as error:
            failures.append(error)

    processes = [these.tags() for _ in range(3)]
    threads = [threading.Thread(target=work, args=(number,)) for number in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    tags = [(entry.tag, entry.digest) for entry in these.entries() if entry.action == "tag"]
    assert sorted(tags, key=str) == sorted(pushed, key=str)
    assert visible(these.backend.open(), processes[0]) == held(these)
    one_log(these, heads)


def test_a_store_that_restores_an_old_state(folder: Logged) -> None:
    """A running process does not go back with it."""
    tags, store = folder.tags(), folder.backend.open()
    tags.point(NAME, "v1", FIRST)
    old = store.get(STATE).data
    tags.point(NAME, "v1", SECOND)
    store.put(STATE, old)
    with pytest.raises(StoreUnavailable):
        tags.point(NAME, "v2", THIRD)
    assert TagRecord.parse(store.get(keys.tag(NAME, "v1")).data).digest == SECOND
    assert sha256(b"third") not in [str(entry.digest) for entry in folder.entries()]
