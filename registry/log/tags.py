"""Tags whose every move is in the log before anybody sees it."""

from __future__ import annotations

import logging
import secrets
import time
from dataclasses import dataclass

from artifact.digest import Digest
from registry import keys
from registry.log.sequencer import Draft, Seen, Sequencer, Stale
from registry.log.state import Pending
from registry.store.protocol import Missing, StoreUnavailable
from registry.tagrecord import TagRecord, is_tag_there
from registry.tags import Before, Tags
from supplychain.tlog.entry import Entry, moment

_log = logging.getLogger("registry.transparency")
_UNLOGGED = "%s:%s is not served: the transparency log has no entry for it (registry transparency adopt)"


@dataclass(frozen=True)
class _Look:
    """A tag's object, as it was after the log had been `seen`. `logged` is what the log says the tag points at,
    `stated` what the object says, whoever wrote it."""

    seen: Seen
    etag: str | None = None
    logged: Digest | None = None
    stated: Digest | None = None


class LoggedTags(Tags):
    """The tags of every repository, by a log. `principals` is whether entries say who did it."""

    def __init__(self, log: Sequencer, principals: bool = False) -> None:
        super().__init__(log.store)
        self._journal = log
        self._principals = principals

    def resolve(self, name: str, tag: str) -> Digest:
        """The digest a tag points at; a tag that the log does not hold is not there. Raises `Missing`."""
        record = TagRecord.parse(self._store.get(keys.tag(name, tag)).data)
        if not self._journal.seals.holds(name, tag, record):
            _log.error(_UNLOGGED, name, tag)
            raise Missing(f"tag {tag} is not in the transparency log")
        if record.digest is None:
            raise Missing(f"no tag {tag}")
        return record.digest

    def point(
        self,
        name: str,
        tag: str,
        digest: Digest,
        before: Before | None = None,
        by: str = "",
        pushed: bool = False,
    ) -> Digest | None:
        while True:
            look = self._look(name, tag)
            push = [Draft(self._entry("push", name, digest, by=by))] if pushed else []
            if look.logged == digest:
                if push:
                    self._journal.append(push)
                return digest
            if before is not None:
                before(look.stated)
            entry = self._entry("tag", name, digest, tag, look.logged, by)
            try:
                first = self._journal.append([*push, Draft(entry, look.seen)])
            except Stale:
                continue
            self._apply(name, tag, digest, first + len(push), look)
            return look.logged

    def note_push(self, name: str, digest: Digest, by: str = "") -> None:
        self._journal.append([Draft(self._entry("push", name, digest, by=by))])

    def delete(self, name: str, tag: str, by: str = "") -> None:
        while True:
            look = self._look(name, tag)
            if look.logged is None:
                raise Missing(f"no tag {tag}")
            entry = self._entry("untag", name, None, tag, look.logged, by)
            try:
                first = self._journal.append([Draft(entry, look.seen)])
            except Stale:
                continue
            self._apply(name, tag, None, first, look)
            return

    def delete_pointing_at(self, name: str, digest: Digest, by: str = "") -> None:
        while True:
            looks = self._pointing_at(name, digest)
            drafts = [
                Draft(self._entry("untag", name, None, tag, digest, by), look.seen) for tag, look in looks.items()
            ]
            try:
                first = self._journal.append([*drafts, Draft(self._entry("delete", name, digest, by=by))])
            except Stale:
                continue
            for number, (tag, look) in enumerate(looks.items(), first):
                self._apply(name, tag, None, number, look)
            return

    def _is_there(self, size: int) -> bool:
        return is_tag_there(size, logged=True)

    def _pointing_at(self, name: str, digest: Digest) -> dict[str, _Look]:
        found: dict[str, _Look] = {}
        last = ""
        while page := self.list(name, last, 1000):
            for tag in page:
                look = self._look(name, tag)
                if look.logged == digest:
                    found[tag] = look
            last = page[-1]
        return found

    def _look(self, name: str, tag: str) -> _Look:
        """A tag as it is, once every move of it that is in the log has been made visible."""
        while (item := (seen := self._journal.seen()).pending.get((name, tag))) is not None:
            self._journal.apply(item)
        try:
            found = self._store.get(keys.tag(name, tag))
        except Missing:
            return _Look(seen)
        try:
            record = TagRecord.parse(found.data)
        except StoreUnavailable:
            return _Look(seen, found.etag)
        logged = record.digest if self._journal.seals.holds(name, tag, record) else None
        return _Look(seen, found.etag, logged, record.digest)

    def _apply(self, name: str, tag: str, digest: Digest | None, index: int, look: _Look) -> None:
        item = Pending(index, (name, tag), digest, time.time())
        self._journal.apply(item, look.etag, absent=look.etag is None)

    def _entry(
        self,
        action: str,
        name: str,
        digest: Digest | None,
        tag: str | None = None,
        previous: Digest | None = None,
        by: str = "",
    ) -> Entry:
        return Entry(
            action=action,
            repository=name,
            time=moment(time.time()),
            id=secrets.token_hex(16),
            digest=digest,
            tag=tag,
            previous=previous,
            principal=by if self._principals and by else None,
        )
