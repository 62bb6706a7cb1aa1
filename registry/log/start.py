"""Beginning a log, and taking up what came to be without it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass

from artifact.digest import Digest
from registry import catalog, keys
from registry.log.sequencer import Draft, NoLog, Sequencer, Stale
from registry.log.state import Pending
from registry.log.tiles import LogTiles
from registry.store.protocol import Missing
from registry.tagrecord import TagRecord
from supplychain.tlog.entry import Entry, Replay, TagName, moment

_PAGE = 1000


@dataclass(frozen=True)
class Adopted:
    """A tag about which the log was told something it had not known: where it points, or None that it is gone."""

    repository: str
    tag: str
    digest: Digest | None

    def to_json(self) -> dict[str, str | None]:
        digest = str(self.digest) if self.digest else None
        return {"repository": self.repository, "tag": self.tag, "digest": digest}


def ready(log: Sequencer) -> None:
    """Make sure that a registry can serve by its log: begin one over a storage without repositories, and finish what
    processes that died have left. Raises `NoLog` where there are tags already, and `StoreUnavailable`."""
    try:
        log.read()
    except NoLog:
        if catalog.repositories(log.store, "", 1):
            raise NoLog(
                f"there are repositories in {log.store.place}, and no transparency log: their tags would not be "
                "served; look at them, then run registry transparency adopt --config registry.toml"
            ) from None
        log.create()
    log.finish()


class Adoption:
    """Telling a log what the tags are, as somebody who has looked at them asks. Nobody should push meanwhile."""

    def __init__(self, log: Sequencer) -> None:
        self._log = log

    def run(self) -> Iterator[Adopted]:
        """Begin the log if there is none; then enter every tag that it does not hold as it is, and remove from it those
        that are gone. Raises `Malformed` for a log that cannot be read."""
        self._log.create()
        self._log.finish()
        replay = Replay()
        state = self._log.read()
        replay.take(LogTiles(self._log.store, self._log.read).entries(state))
        there: set[TagName] = set()
        for name, tag in self._tags():
            found = self._adopt(name, tag, replay)
            if found is not None:
                there.add((name, tag))
                if found.digest is not None:
                    yield found
        for gone in [name for name in replay.tags if name not in there]:
            yield self._forget(gone, replay)

    def _tags(self) -> Iterator[TagName]:
        last = ""
        while names := catalog.repositories(self._log.store, last, _PAGE):
            for name in names:
                prefix, after = keys.tags(name), ""
                while page := self._log.store.list(prefix, start_after=after, limit=_PAGE):
                    yield from ((name, entry.key.removeprefix(prefix)) for entry in page)
                    after = page[-1].key
            last = names[-1]

    def _adopt(self, name: str, tag: str, replay: Replay) -> Adopted | None:
        """Enter a tag unless the log holds it as it is. None if it is not there; without a digest if the log holds
        it."""
        while True:
            seen = self._log.seen()
            try:
                found = self._log.store.get(keys.tag(name, tag))
            except Missing:
                return None
            record = TagRecord.parse(found.data)
            if record.digest is None:
                return None
            known = replay.tags.get((name, tag))
            if self._log.seals.holds(name, tag, record) and known == (record.digest, record.index):
                return Adopted(name, tag, None)
            entry = _entry("tag", name, tag, record.digest, known[0] if known else None)
            try:
                index = self._log.append([Draft(entry, seen)])
            except Stale:
                continue
            self._log.apply(Pending(index, (name, tag), record.digest, time.time()), found.etag)
            return Adopted(name, tag, record.digest)

    def _forget(self, name: TagName, replay: Replay) -> Adopted:
        """Enter that a tag of the log is not there."""
        entry = _entry("untag", *name, None, replay.tags[name][0])
        while True:
            try:
                index = self._log.append([Draft(entry, self._log.seen())])
            except Stale:
                continue
            self._log.apply(Pending(index, name, None, time.time()))
            return Adopted(*name, None)


def _entry(action: str, name: str, tag: str, digest: Digest | None, previous: Digest | None) -> Entry:
    return Entry(action, name, moment(time.time()), secrets.token_hex(16), digest, tag, previous, adopted=True)
