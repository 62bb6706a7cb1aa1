"""What pushes leave behind: expired uploads, writes that never ended, bytes that no record speaks of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress

from registry import keys
from registry.blobs import PRESIGNED_SECONDS, Blobs
from registry.gc.report import Report
from registry.gc.survey import Survey
from registry.store.protocol import Conflict, Entry, Missing, ObjectStore, Unfinished
from registry.tagrecord import TagRecord
from registry.uploads import LIFETIME, Uploads

ORPHANS = "gc/data/"
"""Prefix of the marks on data objects that no record speaks of: data has no room for a mark of its own."""

_PROBES = "probe/"
_SLACK = 60  # seconds that clocks may differ by, where a URL's end is waited for


class Leavings:
    """The part of a cycle that is not about blobs and manifests."""

    def __init__(self, store: ObjectStore, survey: Survey, grace: float, report: Report, dry_run: bool) -> None:
        self._store = store
        self._survey = survey
        self._grace = grace
        self._report = report
        self._dry_run = dry_run
        self._uploads = Uploads(store, Blobs(store), lambda: survey.started)
        self._released: set[str] = set()
        # Where clients read blobs from the store itself, a URL made before the mark must have ended.
        self._urls = 0 if store.presign(f"{keys.DATA}x", 1) is None else PRESIGNED_SECONDS + _SLACK
        self._sizes = {entry.key: entry.size for entry in survey.data}

    def release(self, data: str, since: float) -> None:
        """Remove the bytes of a record that was condemned at `since` and is gone."""
        self._released.add(data)
        if self._survey.started - since >= self._urls:
            self._drop(data)
        elif not self._dry_run:
            self._store.put(_mark(data), json.dumps({"since": since}).encode())

    def _drop(self, data: str) -> None:
        self._report.deleted_data += 1
        self._report.deleted_bytes += self._sizes.get(data, 0)
        if not self._dry_run:
            self._store.delete(data)
            self._store.delete(_mark(data))

    def steps(self) -> Iterator[str]:
        """Remove what is left, pausing before each change."""
        alive: set[str] = set()
        for id_, entries in self._survey.uploads.items():
            yield from self._upload(id_, entries, alive)
        yield from self._data(alive)
        yield from self._unfinished(alive)
        yield from self._removed_tags()
        for entry in self._store.list(_PROBES):
            if self._old(entry.modified) and not self._dry_run:
                self._store.delete(entry.key)

    def _old(self, modified: float, most: float = 0) -> bool:
        return self._survey.started - modified >= max(self._grace, most)

    def _upload(self, id_: str, entries: list[Entry], alive: set[str]) -> Iterator[str]:
        """Remove an upload that has expired, or that has lost its session. `alive` receives the others' data."""
        try:
            session = self._uploads.load(id_)
        except Missing:
            if all(self._old(entry.modified, LIFETIME) for entry in entries):
                yield "delete remains of an upload"
                self._report.expired_uploads += 1
                for entry in entries:
                    if not self._dry_run:
                        self._store.delete(entry.key)
            else:
                alive.add(keys.data(id_))
            return
        if session.expires >= self._survey.started:
            alive.add(keys.data(id_))
            return
        yield "expire upload"
        self._report.expired_uploads += 1
        if not self._dry_run:
            try:
                self._uploads.expire(session)
            except Conflict:
                alive.add(keys.data(id_))

    def _data(self, alive: set[str]) -> Iterator[str]:
        """Condemn data that no record speaks of, and remove it a grace period later."""
        known = alive | self._released | {item.record.data for item in self._survey.records}
        marks = self._marks()
        for entry in self._survey.data:
            since = marks.pop(entry.key, None)
            if entry.key in known:
                if since is not None and entry.key not in self._released and not self._dry_run:
                    self._store.delete(_mark(entry.key))
            elif since is None:
                if self._old(entry.modified):
                    yield "condemn data"
                    self._report.condemned += 1
                    if not self._dry_run:
                        self._store.put(_mark(entry.key), json.dumps({"since": self._survey.started}).encode())
            elif self._survey.started - since >= max(self._grace, self._urls):
                yield "delete data"
                self._drop(entry.key)
        for data in marks:  # of data that is gone
            if not self._dry_run and data not in self._released:
                self._store.delete(_mark(data))

    def _marks(self) -> dict[str, float]:
        """When each marked data object was condemned; one whose mark is damaged, just now."""
        found, last = {}, ""
        while page := self._store.list(ORPHANS, start_after=last):
            for entry in page:
                try:
                    since = float(json.loads(self._store.get(entry.key).data)["since"])
                except Missing:
                    continue
                except (ValueError, KeyError, TypeError):
                    since = self._survey.started
                found[keys.DATA + entry.key.removeprefix(ORPHANS)] = since
            last = page[-1].key
        return found

    def _removed_tags(self) -> Iterator[str]:
        """Remove the places of tags that were removed, when no process can still be about to write what they were."""
        for key in self._survey.removed_tags:
            try:
                found, entry = self._store.get(key), self._store.head(key)
            except Missing:
                continue
            if TagRecord.parse(found.data).digest is not None or not self._old(entry.modified, LIFETIME):
                continue
            yield "delete the place of a removed tag"
            if not self._dry_run:
                with suppress(Conflict):
                    self._store.delete(key, if_match=found.etag)

    def _unfinished(self, alive: set[str]) -> Iterator[str]:
        """Remove what writes have left that died: nothing continues them, and a live one is younger than an upload's
        lifetime or has a session."""
        for item in self._store.unfinished():
            if item.key in alive or not self._old(item.begun, LIFETIME):
                continue
            yield "drop unfinished write"
            self._drop_unfinished(item)

    def _drop_unfinished(self, item: Unfinished) -> None:
        self._report.unfinished_writes += 1
        if not self._dry_run:
            self._store.drop_unfinished(item)


def _mark(data: str) -> str:
    return ORPHANS + data.removeprefix(keys.DATA)
