"""One cycle of the collector: survey, condemn, remove."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from artifact.digest import Digest
from registry import keys
from registry.blobs import link_bytes, link_mark
from registry.condemned import Condemned
from registry.gc.lease import Lease
from registry.gc.leavings import Leavings
from registry.gc.reach import leaders_first, leads_to, needed, staying
from registry.gc.report import Report
from registry.gc.survey import CannotCollect, Link, Node, Place, Record, Survey, Surveyor
from registry.referrers import listing_of
from registry.store.probe import deletes_are_conditional
from registry.store.protocol import Conflict, Missing, ObjectStore

DEFAULT_GRACE = 24 * 3600
"""Seconds that something unneeded is left alone before it is condemned, and again before it is removed."""


class Collector:
    """A cycle over a store. `grace` is in seconds; with `untagged`, manifests that no tag leads to are removed too.

    The result of every removal is a condition the store decides, so that a push at the same moment wins.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        grace: float = DEFAULT_GRACE,
        untagged: bool = False,
        dry_run: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._grace = grace
        self._untagged = untagged
        self._dry_run = dry_run
        self._clock = clock
        self._lease = Lease(store, clock)
        self.report = Report()

    def run(self) -> Report:
        """Collect. Raises `LeaseHeld`, `CannotCollect`, and what the store raises; where it stops, everything that
        is needed is there."""
        for _ in self.steps():
            pass
        return self.report

    def steps(self) -> Iterator[str]:
        """As `run`, pausing before each change with the name of what comes next."""
        if self._dry_run:
            yield from self._cycle()
            return
        self._lease.acquire()
        try:
            if not deletes_are_conditional(self._store):
                raise CannotCollect(
                    f"storage {self._store.place} does not honour If-Match on DELETE: collecting could lose a push "
                    "made at the same moment"
                )
            for step in self._cycle():
                self._lease.renew()
                yield step
        finally:
            self._lease.release()

    def _cycle(self) -> Iterator[str]:
        surveyor = Surveyor(self._store, self._clock)
        yield from surveyor.steps()
        survey = surveyor.survey
        self.report.manifests, self.report.blobs = len(survey.nodes), len(survey.records)
        led = leads_to(survey)
        reached = staying(survey, led, self._grace, self._untagged)
        gone: set[Place] = set()
        yield from self._manifests(survey, reached, led, gone)
        yield from self._referrers(survey, gone)
        yield from self._unlisted(survey, gone)
        wanted = needed(survey.nodes[place] for place in reached)
        # A manifest that can still be pulled holds its blobs, whether or not it is to go.
        held = needed(node for place, node in survey.nodes.items() if place not in gone)
        live: set[Digest] = {digest for _, digest in wanted}
        yield from self._links(survey, wanted, held, live)
        leavings = Leavings(self._store, survey, self._grace, self.report, self._dry_run)
        yield from self._records(survey, live, {digest for _, digest in held}, leavings)
        yield from leavings.steps()

    def _manifests(
        self, survey: Survey, reached: set[Place], led: dict[Place, set[Place]], gone: set[Place]
    ) -> Iterator[str]:
        """Condemn, revive and remove manifests; `gone` receives those removed. One that stays, because somebody asked
        for it at this moment, keeps what it leads to."""
        kept: set[Place] = set()
        for place in leaders_first(led):
            node = survey.nodes[place]
            mark = node.manifest.condemned
            if place in reached:
                if mark is not None:
                    yield "revive manifest"
                    self._mark_manifest(node, None)
            elif mark is None:
                yield "condemn manifest"
                self._mark_manifest(node, Condemned.at(self._clock()))
            elif self._due(survey, mark) and place not in kept:
                yield "delete manifest"
                if self._delete(keys.manifest(*place), node.etag):
                    gone.add(place)
                    self.report.deleted_manifests += 1
                    continue
            kept |= led[place]

    def _mark_manifest(self, node: Node, condemned: Condemned | None) -> None:
        data = replace(node.manifest, condemned=condemned).to_object()
        self._mark(keys.manifest(*node.place), data, node.etag, condemned)

    def _referrers(self, survey: Survey, gone: set[Place]) -> Iterator[str]:
        """Remove entries of referrers that are not there: of those just removed, and what a deletion that was cut
        short left behind."""
        for name, digest, entry in survey.referrers:
            place = (name, digest)
            left_over = place not in survey.nodes and survey.started - entry.modified >= self._grace
            if place not in gone and not left_over:
                continue
            yield "delete referrer"
            self.report.deleted_referrers += 1
            if self._dry_run:
                continue
            try:
                before = self._store.get(entry.key)
            except Missing:
                continue
            self._store.delete(entry.key)
            yield "look for the referrer again"
            # An entry has no state of its own to make a condition of. A push stores the manifest first: if there is
            # one now, it may have written the entry before this deletion.
            if self._is_there(place):
                self._store.put(entry.key, before.data)

    def _unlisted(self, survey: Survey, gone: set[Place]) -> Iterator[str]:
        """List referrers of which a push has died between storing and listing them: nobody would find a signature."""
        listed = {entry.key for _, _, entry in survey.referrers}
        for place, node in survey.nodes.items():
            listing = listing_of(node.name, node.manifest)
            if listing is None or listing[0] in listed or place in gone:
                continue
            yield "list referrer"
            self.report.listed_referrers += 1
            if self._dry_run:
                continue
            self._store.put(*listing)
            yield "look for the listed manifest"
            if self._is_there(place):
                continue
            self._store.delete(listing[0])  # it was removed since the survey
            yield "look for the listed manifest again"
            if self._is_there(place):  # and came back
                self._store.put(*listing)

    def _is_there(self, place: Place) -> bool:
        try:
            self._store.head(keys.manifest(*place))
        except Missing:
            return False
        return True

    # Blobs.

    def _links(self, survey: Survey, wanted: set[Place], held: set[Place], live: set[Digest]) -> Iterator[str]:
        """Condemn, revive and remove links. `live` receives the blobs that a repository was given lately."""
        for link in survey.links:
            place = (link.name, link.digest)
            if place in wanted:
                if link.marked:
                    yield "revive link"
                    self._mark_link(link, None)
            elif link.marked:
                yield "delete link"
                self._drop_link(survey, link, place in held)
            elif survey.started - link.modified < self._grace:
                live.add(link.digest)
            else:
                yield "condemn link"
                self._mark_link(link, Condemned.at(self._clock()))

    def _mark_link(self, link: Link, condemned: Condemned | None) -> None:
        key = keys.blob(link.name, link.digest)
        try:
            found = self._store.get(key)
        except Missing:
            return
        if (link_mark(found.data) is None) != (condemned is None):
            self._mark(key, link_bytes(condemned), found.etag, condemned)

    def _drop_link(self, survey: Survey, link: Link, held: bool) -> None:
        key = keys.blob(link.name, link.digest)
        try:
            found = self._store.get(key)
        except Missing:
            return
        mark = link_mark(found.data)
        if mark is not None and self._due(survey, mark) and not held and self._delete(key, found.etag):
            self.report.deleted_links += 1

    def _records(self, survey: Survey, live: set[Digest], held: set[Digest], leavings: Leavings) -> Iterator[str]:
        """Condemn, revive and remove records, and then the bytes."""
        for item in survey.records:
            mark = item.record.condemned
            if item.digest in live:
                if mark is not None:
                    yield "revive record"
                    self._mark_record(item, None)
            elif mark is None:
                if survey.started - item.modified >= self._grace:
                    yield "condemn record"
                    self._mark_record(item, Condemned.at(self._clock()))
            elif self._due(survey, mark) and item.digest not in held:
                yield "delete record"
                if self._delete(keys.record(item.digest), item.etag):
                    self.report.deleted_blobs += 1
                    yield "delete the record's data"
                    leavings.release(item.record.data, mark.since)

    def _mark_record(self, item: Record, condemned: Condemned | None) -> None:
        data = replace(item.record, condemned=condemned).to_bytes()
        self._mark(keys.record(item.digest), data, item.etag, condemned)

    # What every kind has in common.

    def _due(self, survey: Survey, mark: Condemned) -> bool:
        """Whether the second grace period was over when this cycle began to look."""
        return survey.started - mark.since >= self._grace

    def _mark(self, key: str, data: bytes, etag: str, condemned: Condemned | None) -> None:
        if not self._dry_run:
            try:
                self._store.put(key, data, if_match=etag)
            except Conflict:
                return  # written or removed since it was read: the next cycle looks again
        if condemned is None:
            self.report.revived += 1
        else:
            self.report.condemned += 1

    def _delete(self, key: str, etag: str) -> bool:
        """Remove an object if it is still the one that was read."""
        if not self._dry_run:
            try:
                self._store.delete(key, if_match=etag)
            except Conflict:
                return False
        return True
