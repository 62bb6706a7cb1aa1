"""Whether a registry's log holds together, and whether its tags follow from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

from artifact import merkle
from artifact.digest import Digest
from artifact.errors import Malformed, NotFound, Unauthorized
from artifact.remote import RemoteRepository
from artifact.remote.catalog import listed
from artifact.remote.transport import Transport
from registry.log.remote import NotProven, RemoteLog
from supplychain.tlog.checkpoint import Checkpoint
from supplychain.tlog.entry import Replay, TagName
from supplychain.tlog.note import VerifierKey
from supplychain.tlog.tiles import WIDTH, Tile, bundles_of, tiles_of

PATIENCE = 30.0
"""Seconds for which a tag may lag behind the log: a process died between the two, and another has to finish."""

_READERS = 8
_PAUSE = 1.0


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. Kinds: ``checkpoint`` (the tree over the entries is not the signed one), ``tile``,
    ``entries``, ``entry`` (does not follow from those before it), ``tag`` (is not what the log says)."""

    kind: str
    subject: str
    message: str

    def to_json(self) -> dict[str, str]:
        return asdict(self)


@dataclass
class Report:
    """What was looked at. `tags` counts those that follow from the log, `unreadable` those that the login may not read
    or that are in quarantine."""

    checkpoint: Checkpoint
    tags: int = 0
    unreadable: int = 0
    findings: list[Finding] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report for people: a line for each finding, and a summary."""
        head, hidden = self.checkpoint, ""
        if self.unreadable:
            hidden = f", {self.unreadable} cannot be read with this login"
        return [
            *(f"{item.kind}  {item.subject}  {item.message}" for item in self.findings),
            f"{head.origin}: {head.size} entries, root {head.root.hex()}; {self.tags} tags follow from them{hidden}; "
            f"{len(self.findings)} findings",
        ]

    def to_json(self) -> dict[str, object]:
        return {
            "origin": self.checkpoint.origin,
            "size": self.checkpoint.size,
            "root": self.checkpoint.root.hex(),
            "tags": self.tags,
            "unreadable": self.unreadable,
            "findings": [item.to_json() for item in self.findings],
        }


class Verifier:
    """Verifies the log of one registry from its first entry, and then its tags."""

    def __init__(self, transport: Transport, key: VerifierKey, patience: float = PATIENCE) -> None:
        self._transport = transport
        self._log = RemoteLog(transport, key)
        self._patience = patience
        self._leaves: list[bytes] = []
        self._replay = Replay()

    def run(self) -> Report:
        """Look at everything. Raises `note.Unsigned`, and what the transport raises."""
        _, checkpoint = self._log.checkpoint()
        report = Report(checkpoint)
        with ThreadPoolExecutor(_READERS) as pool:
            report.findings += self._extended(checkpoint, pool)
            if report.findings:
                return report
            report.findings += self._tiles(checkpoint, pool)
            wrong, read, report.unreadable = self._compare(self._names(), pool)
            report.tags = read - len(wrong)
            deadline = time.monotonic() + self._patience
            while wrong and time.monotonic() < deadline:
                time.sleep(_PAUSE)
                _, later = self._log.checkpoint()
                problems = self._extended(later, pool)
                if problems:
                    report.findings += problems
                    return report
                report.checkpoint = later
                before, (wrong, _, _) = len(wrong), self._compare(wrong, pool)
                report.tags += before - len(wrong)
        report.findings += [Finding("entry", self._log.key.name, problem) for problem in self._replay.problems]
        report.findings += wrong.values()
        return report

    # The log.

    def _extended(self, checkpoint: Checkpoint, pool: ThreadPoolExecutor) -> list[Finding]:
        """Read the entries that came since the last time, and check that all of them make the checkpoint's root."""
        have = len(self._leaves)
        if checkpoint.size < have:
            return [Finding("checkpoint", checkpoint.origin, f"it went back from {have} entries to {checkpoint.size}")]
        wanted = [tile for tile in bundles_of(checkpoint.size) if tile.index >= have // WIDTH]
        try:
            for tile, entries in zip(wanted, pool.map(self._log.entries, wanted), strict=True):
                fresh = entries[max(have - tile.index * WIDTH, 0) :]
                self._replay.take(fresh)
                self._leaves += map(merkle.leaf_hash, fresh)
        except (Malformed, NotProven) as error:
            return [Finding("entries", checkpoint.origin, str(error))]
        if merkle.root_hash(self._leaves) != checkpoint.root:
            message = f"its {checkpoint.size} entries are not those whose root it signed: entries or history changed"
            return [Finding("checkpoint", checkpoint.origin, message)]
        return []

    def _tiles(self, checkpoint: Checkpoint, pool: ThreadPoolExecutor) -> Iterator[Finding]:
        """Check every tile against the entries, which are those that were signed."""
        levels = [self._leaves[: checkpoint.size]]
        while len(levels[-1]) >= WIDTH:
            below = levels[-1]
            whole = range(0, len(below) // WIDTH * WIDTH, WIDTH)
            levels.append([merkle.root_hash(below[at : at + WIDTH]) for at in whole])

        def check(tile: Tile) -> Finding | None:
            level = levels[tile.level or 0]
            expected = b"".join(level[tile.index * WIDTH : tile.index * WIDTH + tile.width])
            try:
                read = self._log.read(tile)[: len(expected)]
            except NotProven as error:
                return Finding("tile", tile.path, str(error))
            if read != expected:
                return Finding("tile", tile.path, "it has not the hashes of the entries that were signed")
            return None

        yield from (found for found in pool.map(check, tiles_of(checkpoint.size)) if found is not None)

    # The tags.

    def _names(self) -> Iterable[TagName]:
        """Every tag that the registry or the log has."""
        repositories = {name for name, _ in self._replay.tags} | set(listed(self._transport))
        names = set(self._replay.tags)
        for name in repositories:
            try:
                names.update((name, tag) for tag in self._repository(name).tags())
            except (NotFound, Unauthorized):
                continue
        return sorted(names)

    def _repository(self, name: str) -> RemoteRepository:
        return RemoteRepository(self._transport.host, name, transport=self._transport)

    def _compare(self, names: Iterable[TagName], pool: ThreadPoolExecutor) -> tuple[dict[TagName, Finding], int, int]:
        """Tags that are not what the log says; how many there are; and how many could not be read."""
        wrong: dict[TagName, Finding] = {}
        count = unreadable = 0
        names = list(names)
        for name, found in zip(names, pool.map(_quiet(self._served), names), strict=True):
            if isinstance(found, Unauthorized):
                unreadable += 1
                continue
            logged = self._replay.tags.get(name)
            count += 1
            if found != (logged[0] if logged else None):
                wrong[name] = Finding("tag", ":".join(name), _difference(found, logged, self._replay.gone.get(name)))
        return wrong, count, unreadable

    def _served(self, name: TagName) -> Digest | None:
        try:
            return self._repository(name[0]).resolve(name[1]).digest
        except NotFound:
            return None


def _quiet(read: Callable[[TagName], Digest | None]) -> Callable[[TagName], Digest | Unauthorized | None]:
    def tried(name: TagName) -> Digest | Unauthorized | None:
        try:
            return read(name)
        except Unauthorized as error:
            return error

    return tried


def _difference(found: Digest | None, logged: tuple[Digest, int] | None, gone: int | None) -> str:
    served = f"the registry serves {found}" if found else "the registry does not serve it"
    if logged is not None:
        return f"{served}; entry {logged[1]} of the log says {logged[0]}"
    return f"{served}; " + (f"entry {gone} of the log removed it" if gone is not None else "the log has no entry")
