"""Appending to the log: many requests at a time, by one conditional write.

Everything that changes the log replaces `STATE` on the condition that it is the one that was read. Entries about a tag
are made from the tag's record as it was read after a state that had been decided; they go in only if nothing in the log
since, and no move in progress, is about that tag. So what an entry says was before is what was, and the order of the
log is the order of the moves.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from artifact.errors import StowageError
from registry import keys
from registry.log.key import LogKey
from registry.log.state import PREFIX, STATE, LogDamaged, Pending, State
from registry.store.protocol import Conflict, Missing, ObjectStore, StoreUnavailable
from registry.tagrecord import TagRecord, TagSeals
from supplychain.tlog.entry import Entry, TagName
from supplychain.tlog.tiles import WIDTH, Tile, entries_of

_BATCH = 256  # entries that go in at once; one request may bring more
_ATTEMPTS = 100
_LONGEST_PAUSE = 0.1  # seconds
_CONTENDED = 1.0  # seconds for which a process lets others go first, after one of them did
_TICK = 5.0  # seconds between two looks for moves that a dead process has left
ABANDONED = 10.0
"""Seconds after which a move in progress is finished by any process that sees it."""

_log = logging.getLogger("registry.transparency")


class Stale(Exception):
    """What a tag was when it was looked at is no longer so: look again."""


class NoLog(StoreUnavailable):
    """The storage has no log yet."""

    code = "no-log"


@dataclass(frozen=True)
class Seen:
    """How far the log was when a tag was looked at, and which moves were in progress."""

    size: int
    pending: dict[TagName, Pending]


@dataclass(frozen=True)
class Draft:
    """An entry on its way into the log. One about a tag has what had been `seen` before the tag's record was read."""

    entry: Entry
    seen: Seen | None = None

    @property
    def name(self) -> TagName | None:
        """The tag it is about."""
        return (self.entry.repository, self.entry.tag) if self.entry.tag is not None else None


@dataclass
class _Waiting:
    """The drafts of one request: all go in, next to each other, or none."""

    drafts: Sequence[Draft]
    done: bool = False
    first: int = 0
    error: BaseException | None = None
    raw: list[bytes] = field(default_factory=list)

    def end(self, error: BaseException | None = None) -> None:
        self.error, self.done = error, True


class Sequencer:
    """The log of one store, as one process sees it. Safe for several threads."""

    def __init__(self, store: ObjectStore, key: LogKey) -> None:
        self.store = store
        self.key = key
        self.seals = TagSeals(key.tag_seal)
        self._queue: list[_Waiting] = []
        self._mutex = threading.Lock()  # of the queue, of what is known, and of what has been applied
        self._turn = threading.Lock()  # held by the one that writes for all
        self._known: tuple[State, str] | None = None  # a state that was decided, with its ETag
        self._applied: set[int] = set()
        self._largest = 0
        self._pace = 0.0  # seconds that the last replacement of the state took
        self._polite = 0.0  # until when others write too, by the monotonic clock
        self._ending = threading.Event()

    # What the log is.

    def read(self) -> State:
        """The log as it is now. Raises `NoLog`, and `StoreUnavailable` if it is damaged or has gone back."""
        return self._load()[0]

    def create(self) -> None:
        """Begin a log without entries; one that is there is left alone."""
        state = State(self.key.origin)
        with suppress(Conflict):
            self.store.put(STATE, state.to_bytes(self.key.state_seal), if_none_match=True)

    def checkpoint(self) -> str:
        """The log's head, signed. Only what has been decided is ever signed, so no two heads contradict."""
        return self.key.signer.sign(self.read().checkpoint.text)

    def seen(self) -> Seen:
        """How far the log is known to be, for a tag that is looked at afterwards."""
        with self._mutex:
            known = self._known
        state = known[0] if known is not None else self._load()[0]
        with self._mutex:
            return Seen(state.size, {item.name: item for item in state.pending if item.index not in self._applied})

    def _load(self) -> tuple[State, str]:
        with self._mutex:
            least = self._largest
        try:
            found = self.store.get(STATE)
        except Missing:
            raise NoLog(
                f"there is no transparency log in {self.store.place}: begin one with registry transparency adopt"
            ) from None
        state = State.from_bytes(found.data, self.key.state_seal)
        if state.origin != self.key.origin:
            raise LogDamaged(f"the log in {self.store.place} is {state.origin}, not {self.key.origin}")
        if state.size < least:
            raise LogDamaged(f"the log in the store went back from {least} entries to {state.size}")
        with self._mutex:
            self._learn(state, found.etag)
        return state, found.etag

    def _learn(self, state: State, etag: str) -> None:
        """Know a state; called with the mutex. What another thread learned may be newer."""
        if state.size >= self._largest:
            self._known = state, etag
            self._largest = state.size
            self._applied &= {item.index for item in state.pending}

    # Appending.

    def append(self, drafts: Sequence[Draft]) -> int:
        """Put entries into the log, in this order and next to each other; returns the number of the first. Raises
        `Stale` if one of them is about a tag that has moved since, and `StoreUnavailable`: then they may be in the log
        or not."""
        waiting = _Waiting(drafts)
        with self._mutex:
            self._queue.append(waiting)
        while not waiting.done:
            with self._turn:
                if not waiting.done:
                    self._write_for_all()
        if waiting.error is not None:
            raise waiting.error
        return waiting.first

    def _write_for_all(self) -> None:
        if time.monotonic() < self._polite:
            # Who has just written knows the state, and would always be faster than those who have to read it.
            time.sleep(random.uniform(0, self._pace))  # noqa: S311
        with self._mutex:
            batch, count = list[_Waiting](), 0
            while self._queue and (not batch or count + len(self._queue[0].drafts) <= _BATCH):
                batch.append(self._queue.pop(0))
                count += len(batch[-1].drafts)
        try:
            for item in batch:
                item.raw = [draft.entry.to_bytes() for draft in item.drafts]
            self._commit(batch)
        except Exception as error:  # each request raises it
            with self._mutex:
                self._known = None
            for item in batch:
                if not item.done:
                    item.end(error)

    def _commit(self, batch: list[_Waiting]) -> None:
        with self._mutex:
            known = self._known
        state, etag = known if known is not None else self._load()
        for _ in range(_ATTEMPTS):
            live = self._fresh(batch, state)
            if not live:
                return
            after = self._after(state, live)
            try:
                began = time.monotonic()
                etag = self.store.put(STATE, after.to_bytes(self.key.state_seal), if_match=etag)
                self._pace = min(time.monotonic() - began, _LONGEST_PAUSE)
                with self._mutex:
                    self._learn(after, etag)
            except (Conflict, StoreUnavailable):
                self._polite = time.monotonic() + _CONTENDED
                state, etag, before = *self._load(), state.size
                if not self._holds(state, before, live[0].raw[0]):
                    continue
            for item in live:
                item.end()
            return
        raise StoreUnavailable("other processes write to the log all the time: try again")

    def _after(self, state: State, live: list[_Waiting]) -> State:
        """The state with what is to go in, once the whole tiles of `state` have been written."""
        settled, objects = state.settle()
        for tile, data in objects.items():
            self._write_once(PREFIX + tile.path, data)
        with self._mutex:
            pending = [item for item in state.pending if item.index not in self._applied]
        raw: list[bytes] = []
        now = time.time()
        for item in live:
            item.first = state.size + len(raw)
            for number, draft in enumerate(item.drafts, item.first):
                if draft.name is not None:
                    pending.append(Pending(number, draft.name, draft.entry.digest, now))
            raw += item.raw
        return settled.appended(raw, pending)

    def _write_once(self, key: str, data: bytes) -> None:
        try:
            self.store.put(key, data, if_none_match=True)
        except Conflict:
            if self.store.get(key).data != data:
                raise LogDamaged(f"{key} is not what the log says: run registry fsck") from None

    def _fresh(self, batch: list[_Waiting], state: State) -> list[_Waiting]:
        """Those of a batch that may go in after `state`; the others are told to look again."""
        waiting = [item for item in batch if not item.done]
        with self._mutex:
            busy = {item.name for item in state.pending if item.index not in self._applied}
        moved = self._moved(waiting, state)
        live: list[_Waiting] = []
        for item in waiting:
            about = [(draft.name, draft.seen.size) for draft in item.drafts if draft.name and draft.seen]
            if any(name in busy or size < state.settled or moved.get(name, -1) >= size for name, size in about):
                item.end(Stale())
            else:
                busy.update(name for name, _ in about)
                live.append(item)
        return live

    @staticmethod
    def _moved(waiting: list[_Waiting], state: State) -> dict[TagName, int]:
        """The last entry about each tag, of those that came since the first of these requests looked at its tag."""
        seen = [draft.seen.size for item in waiting for draft in item.drafts if draft.seen is not None]
        moved: dict[TagName, int] = {}
        for index in range(max(min(seen, default=state.size), state.settled), state.size):
            entry = Entry.parse(state.tail[index - state.settled])
            if entry.tag is not None:
                moved[entry.repository, entry.tag] = index
        return moved

    def _holds(self, state: State, index: int, raw: bytes) -> bool:
        """Whether an entry stands at a place of the log: whether what was thought to have failed has not."""
        if state.size <= index:
            return False
        if index >= state.settled:
            return state.tail[index - state.settled] == raw
        bundle = self.store.get(PREFIX + Tile(None, index // WIDTH).path).data
        return entries_of(bundle, WIDTH)[index % WIDTH] == raw

    # Making visible what the log says.

    def apply(self, item: Pending, etag: str | None = None, *, absent: bool = False) -> None:
        """Write what a move that is in the log makes of its tag, unless a later one has done so. `etag` is that of the
        tag's object as it was before the move, or it was `absent`: that saves a read. Any process may do this, any
        number of times."""
        key = keys.tag(*item.name)
        data = self.seals.sealed(*item.name, item.digest, item.index).to_bytes()
        known = etag is not None or absent
        while True:
            try:
                if not known:
                    found = self.store.get(key)
                    if self._index_in(item.name, found.data) >= item.index:
                        break
                    etag, absent = found.etag, False
                self.store.put(key, data, if_match=etag, if_none_match=absent)
                break
            except Missing:
                if item.digest is None:
                    break  # the garbage collector has taken the place of the removed tag away
                etag, absent, known = None, True, True
            except Conflict:
                known = False
        with self._mutex:
            self._applied.add(item.index)

    def _index_in(self, name: TagName, raw: bytes) -> int:
        """The number of the entry that a tag's object was written for; -1 if it is not the registry's own."""
        try:
            record = TagRecord.parse(raw)
        except StoreUnavailable:
            return -1
        return record.index if record.index is not None and self.seals.holds(*name, record) else -1

    def finish(self, older: float = 0.0) -> None:
        """Make visible every move that has been in progress for `older` seconds, and note that it is. What others
        write meanwhile goes first."""
        state, etag = self._load()
        for item in state.pending:
            if item.index not in self._applied and time.time() - item.since >= older:
                self.apply(item)
        with self._turn:
            with self._mutex:
                rest = tuple(item for item in state.pending if item.index not in self._applied)
            if len(rest) == len(state.pending):
                return
            after = state.appended((), rest)
            with suppress(Conflict):
                etag = self.store.put(STATE, after.to_bytes(self.key.state_seal), if_match=etag)
                with self._mutex:
                    self._learn(after, etag)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While a thread finishes what processes that have died have left."""
        thread = threading.Thread(target=self._watch, name="transparency", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ending.set()
            thread.join()
            with suppress(StowageError, OSError):
                self.finish(ABANDONED)

    def _watch(self) -> None:
        while not self._ending.wait(_TICK * random.uniform(0.75, 1.25)):  # noqa: S311
            try:
                self.finish(ABANDONED)
            except (StowageError, OSError) as error:
                _log.error("moves in progress cannot be finished: %s", error)
