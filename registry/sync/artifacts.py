"""Bringing artifacts into one repository: what is there is found by asking, not by sending.

A manifest that the target has needs nothing more: no registry takes one whose parts are missing. So a run that was
broken off goes on where it stopped, and one that finds everything in place sends nothing.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import Malformed, NotFound
from artifact.manifest import Index, Manifest
from artifact.parallel import run_all, stoppable
from artifact.progress import Progress
from artifact.reference import referrers_tag
from artifact.remote import RemoteRepository
from artifact.repository import Repository
from artifact.transfer import MAX_REFERRERS
from registry.sync.places import Pair
from registry.sync.report import RepositoryReport

_MAX_DEPTH = 6
_INDEXES = (mediatypes.IMAGE_INDEX, mediatypes.DOCKER_MANIFEST_LIST)
_ELSEWHERE = (".nondistributable.", ".foreign.")  # layers that by their type are never pushed


class SharedBlobs:
    """What one run knows of the blobs at the target: two artifacts that share one do not send it twice, and a second
    repository of the same registry mounts it."""

    def __init__(self) -> None:
        self._locks: defaultdict[Digest, threading.Lock] = defaultdict(threading.Lock)
        self._places: dict[Digest, Repository] = {}
        self._guard = threading.Lock()

    def lock(self, digest: Digest) -> threading.Lock:
        """Held while somebody brings the blob."""
        with self._guard:
            return self._locks[digest]

    def at(self, digest: Digest, repository: Repository) -> None:
        """The blob is in a repository of the target."""
        self._places.setdefault(digest, repository)

    def place(self, digest: Digest) -> Repository | None:
        """A repository of the target that has the blob."""
        return self._places.get(digest)


class Artifacts:
    """The artifacts of one repository. With `dry` nothing is sent, and what would be is counted. Safe for several
    threads."""

    def __init__(
        self,
        pair: Pair,
        report: RepositoryReport,
        shared: SharedBlobs,
        progress: Progress,
        concurrency: int,
        dry: bool = False,
    ) -> None:
        self._source, self._target = pair.source, pair.target
        self._report, self._shared = report, shared
        self._progress, self._concurrency, self._dry = progress, concurrency, dry
        self._locks: defaultdict[tuple[Digest, str], threading.Lock] = defaultdict(threading.Lock)
        self._guard = threading.Lock()
        self._there: set[Digest] = set()

    def bring(self, digest: Digest, depth: int = 0) -> None:
        """Make the target have a manifest with all it needs."""
        if depth > _MAX_DEPTH:
            raise self._too_deep()
        with self._lock(digest, "manifest"):
            if digest in self._there or self._has(digest):
                return
            descriptor, raw = self._source.manifest(digest)
            self._bring_parts(descriptor, raw, depth)
            if not self._dry:
                self._target.push_manifest(raw, descriptor.media_type)
            self._there.add(digest)

    def _lock(self, digest: Digest, what: str) -> threading.Lock:
        with self._guard:
            return self._locks[digest, what]

    def _too_deep(self) -> Malformed:
        return Malformed(f"{self._source.place}: manifests refer to one another more than {_MAX_DEPTH} levels deep")

    def members(self, digest: Digest) -> list[Digest]:
        """The manifests that a manifest of the source lists, at any depth, each once; they have referrers of their own.
        Raises `Malformed` where they are listed too deep down."""
        found: dict[Digest, None] = {}
        level = [digest]
        for _ in range(_MAX_DEPTH + 1):
            listed = dict.fromkeys(item for index in level for item in self._listed(index))
            level = [item for item in listed if item not in found]
            found.update(dict.fromkeys(level))
        if level:
            raise self._too_deep()
        return list(found)

    def _listed(self, digest: Digest) -> list[Digest]:
        with suppress(NotFound):
            descriptor, raw = self._source.manifest(digest)
            if descriptor.media_type in _INDEXES:
                return [item.digest for item in Index.parse(raw, descriptor.media_type).manifests]
        return []

    def _has(self, digest: Digest) -> bool:
        with suppress(NotFound):
            self._target.resolve(digest)
            self._there.add(digest)
            return True
        return False

    def _bring_parts(self, descriptor: Descriptor, raw: bytes, depth: int) -> None:
        if descriptor.media_type in _INDEXES:
            for member in Index.parse(raw, descriptor.media_type).manifests:
                self.bring(member.digest, depth + 1)
            return
        blobs = Manifest.parse(raw, descriptor.media_type).blobs
        wanted = [blob for blob in blobs if not any(word in blob.media_type for word in _ELSEWHERE)]
        work: list[Callable[[threading.Event], None]] = [
            partial(self._blob, blob) for blob in sorted(wanted, key=lambda blob: blob.size)
        ]
        run_all(work, self._concurrency)

    def _blob(self, blob: Descriptor, stop: threading.Event) -> None:
        name = str(blob.digest)
        with self._shared.lock(blob.digest):
            if self._target.has_blob(blob.digest):
                self._progress.finish(name, "exists")
            elif self._mounted(blob.digest):
                self._progress.finish(name, "mounted")
            else:
                if not self._dry:
                    self._target.push_blob(blob, stoppable(self._source.blob_source(blob), stop), self._progress)
                self._report.sent(blob.size)
            self._shared.at(blob.digest, self._target)

    def _mounted(self, digest: Digest) -> bool:
        origins = (self._source, self._shared.place(digest))
        if self._dry:
            return any(_same_registry(origin, self._target) for origin in origins)
        return any(origin is not None and self._target.mount_blob(digest, origin) for origin in origins)

    def tag(self, digest: Digest, tag: str) -> None:
        """Point a tag of the target at a manifest that has been brought."""
        if not self._dry:
            descriptor, raw = self._source.manifest(digest)
            self._target.push_manifest(raw, descriptor.media_type, tag)

    def bring_referrers(self, subject: Digest, listed: bool = False, depth: int = 1) -> list[Descriptor]:
        """Make the target list whatever refers to `subject`, and what refers to that. With `listed`, under the
        fallback tag as well. Returns what refers to it at the source.

        Anyone who can push can add referrers, so they are bounded. Raises `Malformed` above `MAX_REFERRERS`.
        """
        with self._lock(subject, "referrers"):  # a fallback tag is read and written again
            return self._bring_referrers(subject, listed, depth)

    def _bring_referrers(self, subject: Digest, listed: bool, depth: int) -> list[Descriptor]:
        items = self._source.referrers(subject)
        if len(items) > MAX_REFERRERS:
            raise Malformed(f"{self._source.place}: more than {MAX_REFERRERS} manifests refer to {subject.short}")
        known = {item.digest for item in self._referrers_there(subject)} if items else set()
        for item in items:
            if item.digest not in known:
                self._bring_referrer(item.digest, depth)
                with self._report.lock:
                    self._report.referrers += 1
            if depth < _MAX_DEPTH:
                self.bring_referrers(item.digest, listed, depth + 1)
        if items and listed:
            self._list_under_tag(subject, items)
        return items

    def _referrers_there(self, subject: Digest) -> list[Descriptor]:
        with suppress(NotFound):
            return self._target.referrers(subject)
        return []

    def _bring_referrer(self, digest: Digest, depth: int) -> None:
        descriptor, raw = self._source.manifest(digest)
        self._bring_parts(descriptor, raw, depth)
        if not self._dry:  # also where the manifest is there: it may have been broken off before it was listed
            self._target.push_manifest(raw, descriptor.media_type)

    def _list_under_tag(self, subject: Digest, items: list[Descriptor]) -> None:
        """Write the fallback tag, with what the target lists besides. Source: distribution-spec, "Referrers Tag
        Schema"."""
        if self._dry:
            return
        all_items = {item.digest: item for item in [*self._referrers_there(subject), *items]}
        raw = Index(sorted(all_items.values(), key=lambda item: item.digest)).to_bytes()
        tag = referrers_tag(subject)
        with suppress(NotFound):
            if self._target.resolve(tag).digest == Digest.of(raw):
                return
        self._target.push_manifest(raw, mediatypes.IMAGE_INDEX, tag)


def _same_registry(origin: Repository | None, target: Repository) -> bool:
    return isinstance(origin, RemoteRepository) and isinstance(target, RemoteRepository) and origin.host == target.host
