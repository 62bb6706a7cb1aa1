"""The walk through registries: every repository, every tag, and what can be found without a tag, side by side.

What is waiting is kept small: repositories come from the catalog as they are needed, and records go out as they are
made, in no particular order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

from artifact.digest import Digest
from artifact.errors import StowageError
from supplychain.audit.crew import Crew
from supplychain.audit.examine import Examiner, Found
from supplychain.audit.place import Place
from supplychain.audit.record import Record

MAX_LOOSE = 10_000
"""Most manifests without a tag that are looked at in one repository."""

_MAX_DEPTH = 4
_BATCH = 64

_Work = Callable[[], Found]
_Task = tuple["_Visit", _Work]


class Lost(StowageError):
    """The registry stopped answering. What was done is kept."""

    code = "unreachable"


class Walk:
    """Takes an `examiner` through `places`, with `concurrency` requests at a time.

    `repositories` is how many have been looked at, `waiting` how many tags are known of and not looked at yet.
    """

    def __init__(self, examiner: Examiner, places: Iterator[Place], concurrency: int) -> None:
        self.repositories = 0
        self.waiting = 0
        self._examiner = examiner
        self._places = places
        self._crew: Crew[tuple[_Visit | None, Found | list[Place]]] = Crew(concurrency)
        self._visits: deque[tuple[_Visit, Iterator[_Work]]] = deque()
        self._unreached = 0
        self._ended = False
        self._listing = False

    def records(self) -> Iterator[Record]:
        """A record for every artifact, and for everything that cannot be read. Raises `Lost` if the registry does not
        answer any more, and what asking for the catalog raises."""
        try:
            while True:
                self._hand_out()
                if not self._crew.busy:
                    return
                visit, done = self._crew.next()
                if visit is None:
                    assert isinstance(done, list)
                    self._begin(done)
                    continue
                assert isinstance(done, Found)
                visit.took(done)
                if done.record is not None:
                    yield done.record
                self._check_reached(done)
                if visit.idle:
                    self._go_on(visit)
        finally:
            self._crew.dismiss()

    def _hand_out(self) -> None:
        while self._crew.busy < self._crew.size:
            if not self._listing and not self._ended and len(self._visits) < self._crew.size:
                self._listing = True
                self._crew.give(lambda: (None, list(islice(self._places, _BATCH))))
                continue
            if not self._visits:
                return
            visit, works = self._visits[0]
            work = next(works, None)
            if work is None:
                self._visits.popleft()
                visit.handed_out = True
                if visit.idle:
                    self._go_on(visit)
                continue
            visit.out += 1
            self.waiting = max(0, self.waiting - 1)
            self._crew.give(partial(_done, visit, work))

    def _begin(self, places: list[Place]) -> None:
        self._listing, self._ended = False, len(places) < _BATCH
        for place in places:
            self._go_on(_Visit(self._examiner, place))

    def _go_on(self, visit: _Visit) -> None:
        works = visit.next_phase()
        if works is None:
            self.repositories += 1
            return
        self.waiting += visit.expected
        # One that is begun goes on before another is begun: no more lists of tags are held than there are threads.
        (self._visits.append if visit.fresh else self._visits.appendleft)((visit, works))

    def _check_reached(self, found: Found) -> None:
        self._unreached = self._unreached + 1 if found.unreached else 0
        if self._unreached > self._crew.size and found.record is not None:
            raise Lost(f"{found.record.reason}: given up after {self._unreached} failures in a row")


def _done(visit: _Visit, work: _Work) -> tuple[_Visit, Found]:
    return visit, work()


class _Visit:
    """One repository, in phases: its list of tags, the tags, those that hold signatures, what has no tag."""

    def __init__(self, examiner: Examiner, place: Place) -> None:
        self.out = 0
        self.expected = 0
        self.handed_out = False
        self._examiner = examiner
        self._place = place
        self._phase = 0
        self._tags: list[str] = []
        self._services: list[str] = []
        self._present: frozenset[str] = frozenset()
        self._seen: set[Digest] = set()
        self._led_to: dict[Digest, None] = {}
        self._loose = 0
        self._cut = False

    @property
    def fresh(self) -> bool:
        """Whether nothing of it has been looked at yet."""
        return self._phase == 1

    @property
    def idle(self) -> bool:
        """Whether all work of the phase is done."""
        return self.handed_out and self.out == 0

    def took(self, found: Found) -> None:
        """Take in what came of one piece of work."""
        self.out -= 1
        if self._phase == 1:
            self._tags, self._services = list(found.tags), list(found.services)
        if found.digest is not None:
            self._seen.add(found.digest)
        self._led_to.update(dict.fromkeys(found.members))

    def next_phase(self) -> Iterator[_Work] | None:
        """The work of the next phase; None if there is none."""
        self._phase += 1
        self.handed_out = False
        look, place = self._examiner, self._place
        if self._phase == 1:
            self.expected = 1
            return iter((partial(look.tags, place),))
        if self._phase == 2:
            self._present = frozenset((*self._tags, *self._services))
            tags, self._tags, self.expected = self._tags, [], len(self._tags)
            return (partial(look.artifact, place, self._present, tag) for tag in tags)
        if self._phase == 3:
            self.expected = len(self._services)
            return (partial(look.service, place, self._present, tag) for tag in self._services)
        return self._without_tags()

    def _without_tags(self) -> Iterator[_Work] | None:
        wanted = [digest for digest in self._led_to if digest not in self._seen]
        if not wanted or self._cut:
            return None
        taken = wanted[: MAX_LOOSE - self._loose] if self._phase <= 3 + _MAX_DEPTH else []
        self._led_to = {}
        self._seen.update(taken)
        self._loose += len(taken)
        works: list[_Work] = [partial(self._examiner.loose, self._place, self._present, digest) for digest in taken]
        if len(taken) < len(wanted):
            self._cut = True
            why = f"not looked at: {len(wanted) - len(taken)} without a tag, and what they lead to"
            works.append(partial(self._examiner.passed_over, self._place, why))
        self.expected = len(works)
        return iter(works)
