"""Counting what an audit finds, in space that does not grow with it."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from supplychain.audit.record import Record, Status

_MAX_REPOSITORIES = 1000


@dataclass
class Tally:
    """The counts of one run. `complete` says whether everything could be looked at, `missed` what of it could not,
    for the first such record.

    `statuses` are by registry and status, `verdicts` by registry, verdict (``allowed``, ``warned``, ``refused``,
    ``none``) and code. `refused` is by registry and repository, for the first thousand that have something refused.
    """

    began: float = field(default_factory=time.time)
    ended: float = 0.0
    artifacts: int = 0
    reused: int = 0
    repositories: int = 0
    requests: int = 0
    complete: bool = True
    missed: str = ""
    statuses: Counter[tuple[str, Status]] = field(default_factory=Counter)
    verdicts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, record: Record) -> None:
        """Count a record."""
        subject = record.subject
        self.artifacts += 1
        self.reused += record.reused
        if record.incomplete:
            self.complete, self.missed = False, self.missed or record.reason
        self.statuses[subject.registry, record.status] += 1
        self.verdicts[subject.registry, verdict(record), record.code] += 1
        place = (subject.registry, subject.repository)
        if verdict(record) == "refused" and (place in self.refused or len(self.refused) < _MAX_REPOSITORIES):
            self.refused[place] += 1

    def count(self, status: Status) -> int:
        """How many have `status`, in all registries."""
        return sum(count for (_, known), count in self.statuses.items() if known is status)

    def judged(self, wanted: str) -> int:
        """How many have the verdict `wanted`, in all registries."""
        return sum(count for (_, known, _), count in self.verdicts.items() if known == wanted)

    @property
    def seconds(self) -> float:
        """How long the run took."""
        return max(0.0, self.ended - self.began)

    def __str__(self) -> str:
        counted = ", ".join(f"{self.count(status)} {status}" for status in Status if self.count(status))
        return (
            f"{self.artifacts} artifacts in {self.repositories} repositories: {counted or 'nothing'}; "
            f"{self.judged('refused')} refused, {self.judged('warned')} allowed with a warning; "
            f"{self.reused} unchanged; {self.requests} requests, {self.seconds:.1f} s"
        )


def verdict(record: Record) -> str:
    """What the policy says of a record, in a word."""
    if record.decision is None:
        return "none"
    return "warned" if record.warned else "allowed" if record.allowed else "refused"
