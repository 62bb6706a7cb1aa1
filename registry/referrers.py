"""Referrers: for each subject, one small object for each manifest that refers to it."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import Malformed
from artifact.manifest import MAX_BYTES, Index, load_json
from registry import keys
from registry.manifests import Manifests, StoredManifest
from registry.store.protocol import Entry, Missing, ObjectStore

_FETCH = ThreadPoolExecutor(max_workers=16, thread_name_prefix="referrers")


class Referrers:
    """The referrers of every subject."""

    def __init__(self, store: ObjectStore, manifests: Manifests) -> None:
        self._store = store
        self._manifests = manifests

    def add(self, name: str, manifest: StoredManifest) -> None:
        """List a manifest among the referrers of its subject, if it has one."""
        listing = listing_of(name, manifest)
        if listing is not None:
            self._store.put(*listing)

    def remove(self, name: str, manifest: StoredManifest) -> None:
        """Take a manifest out of the list."""
        subject = subject_if_readable(manifest)
        if subject is not None:
            self._store.delete(keys.referrer(name, subject, manifest.digest))

    def of(
        self, name: str, subject: Digest, artifact_type: str | None = None, after: Digest | None = None
    ) -> Iterator[Descriptor]:
        """The manifests that refer to a subject, by the digits of their digests, from the first beyond those of
        `after`; with those that a client listed under the fallback tag (distribution-spec, "Enabling the Referrers
        API"). They are read as they are asked for: annotations can be large."""
        beyond, seen = after.hex if after else "", ""
        both = heapq.merge(self._listed(name, subject, beyond), self._fallback(name, subject, beyond), key=_digits)
        for item in both:
            if item.digest.hex != seen and (artifact_type is None or item.artifact_type == artifact_type):
                yield item
            seen = item.digest.hex

    def _listed(self, name: str, subject: Digest, beyond: str) -> Iterator[Descriptor]:
        prefix = keys.referrers(name, subject)
        last = prefix + beyond if beyond else ""
        while page := self._store.list(prefix, start_after=last):
            for batch in _batches(page):
                yield from (item for item in _FETCH.map(self._read, batch) if item is not None)
            last = page[-1].key

    def _read(self, key: str) -> Descriptor | None:
        try:
            return Descriptor.from_json(load_json(self._store.get(key).data, "referrer"))
        except (Missing, Malformed):
            return None  # deleted since the listing, or damaged: fsck reports it

    def _fallback(self, name: str, subject: Digest, beyond: str) -> Iterator[Descriptor]:
        try:
            index = self._manifests.find(name, f"{subject.algorithm}-{subject.hex[:64]}")
            if index.media_type != mediatypes.IMAGE_INDEX:
                return
            listed = Index.parse(index.raw).manifests
        except (Missing, Malformed):
            return
        for item in sorted({item.digest: item for item in listed}.values(), key=_digits):
            if item.digest.hex <= beyond:
                continue
            try:
                manifest = self._manifests.by_digest(name, item.digest)
                if manifest.subject == subject:
                    yield manifest.descriptor
            except (Missing, Malformed):
                continue


def listing_of(name: str, manifest: StoredManifest) -> tuple[str, bytes] | None:
    """The object that lists a manifest among the referrers of its subject: key and bytes. None without a subject."""
    if manifest.subject is None:
        return None
    descriptor = json.dumps(manifest.descriptor.to_json(), separators=(",", ":")).encode()
    return keys.referrer(name, manifest.subject, manifest.digest), descriptor


def subject_if_readable(manifest: StoredManifest) -> Digest | None:
    """The subject of a manifest that is stored: one that was taken by other rules than today's goes without."""
    try:
        return manifest.subject
    except Malformed:
        return None


def _digits(item: Descriptor) -> str:
    return item.digest.hex


def _batches(entries: Sequence[Entry]) -> Iterator[list[str]]:
    """Keys to read at once: no more than fit into one answer."""
    batch: list[str] = []
    size = 0
    for entry in entries:
        if batch and size + entry.size > MAX_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(entry.key)
        size += entry.size
    if batch:
        yield batch
