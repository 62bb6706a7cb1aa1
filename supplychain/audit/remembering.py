"""A repository that asks only for what can have changed."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import DigestMismatch, Malformed, NotFound
from artifact.manifest import MAX_BYTES, Manifest
from artifact.mediatypes import IMAGE_MANIFEST
from artifact.progress import Progress
from artifact.reference import referrers_tag
from artifact.repository import Repository
from artifact.source import Reader, Source
from supplychain.audit.state import Kind, State


@dataclass
class Traffic:
    """What had to be fetched, and what was known from an earlier run: manifests and blobs by digest."""

    fetched: int = 0
    known: int = 0

    @property
    def reused(self) -> bool:
        """Whether nothing but the question whether anything changed was asked."""
        return self.known > 0 and self.fetched == 0


class RememberingRepository:
    """`inner`, through what `state` holds. `present` are the tags it has; None if that is not known.

    Reading by digest is answered from the state. A tag that is not among those present is not asked for. One object
    serves one thread, and counts in `traffic`.
    """

    def __init__(self, inner: Repository, state: State, present: frozenset[str] | None = None) -> None:
        self._inner = inner
        self._state = state
        self._present = present
        self.traffic = Traffic()

    @property
    def place(self) -> str:
        return self._inner.place

    def resolve(self, reference: str | Digest) -> Descriptor:
        if isinstance(reference, Digest):
            kept = self._kept(Kind.MANIFEST, reference)
            return Descriptor(kept[0], reference, len(kept[1])) if kept else self._inner.resolve(reference)
        seen = self._seen(reference)
        if seen is not None and seen[1]:
            return seen[0]
        descriptor = self._inner.resolve(reference)
        self._state.saw_tag(self.place, reference, descriptor)
        return descriptor

    def manifest(self, reference: str | Digest) -> tuple[Descriptor, bytes]:
        if isinstance(reference, Digest):
            kept = self._kept(Kind.MANIFEST, reference)
            return (Descriptor(kept[0], reference, len(kept[1])), kept[1]) if kept else self._fetched(reference)
        if self._seen(reference) is None:
            descriptor, raw = self._fetched(reference)
            self._state.saw_tag(self.place, reference, descriptor)
            return descriptor, raw
        return self.manifest(self.resolve(reference).digest)

    def referrers(self, subject: Digest, artifact_type: str | None = None) -> list[Descriptor]:
        listing = self._state.referrers(self.place, subject)
        if listing is None:
            listing = self._inner.referrers(subject)
            self._state.saw_referrers(self.place, subject, listing)
        return [item for item in listing if artifact_type in (None, item.artifact_type)]

    def blob_size(self, digest: Digest) -> int | None:
        return self._inner.blob_size(digest)

    def read_blob(self, descriptor: Descriptor, limit: int = MAX_BYTES) -> bytes:
        if descriptor.size > limit:
            raise Malformed(f"{descriptor.digest.short} is larger than {limit} bytes")
        kept = self._kept(Kind.BLOB, descriptor.digest)
        if kept is None:
            data = self._inner.read_blob(descriptor, limit)
            self.traffic.fetched += 1
            self._state.keep(self.place, Kind.BLOB, descriptor, data)
            return data
        if len(kept[1]) != descriptor.size:
            raise DigestMismatch(f"{self.place}: {descriptor.digest} is of another size than its descriptor says")
        return kept[1]

    def push_manifest(self, raw: bytes, media_type: str, tag: str | None = None) -> Descriptor:
        descriptor = self._inner.push_manifest(raw, media_type, tag)
        subject = Manifest.parse(raw, media_type).subject if media_type == IMAGE_MANIFEST else None
        if subject is not None:
            fallback = referrers_tag(subject.digest)
            self._state.forget(self.place, subject.digest, fallback)
            self._present = None if self._present is None else self._present | {fallback}
        return descriptor

    def tags(self) -> list[str]:
        return self._inner.tags()

    def has_blob(self, digest: Digest) -> bool:
        return self._inner.has_blob(digest)

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> AbstractContextManager[Reader]:
        return self._inner.open_blob(descriptor, offset)

    def blob_source(self, descriptor: Descriptor) -> Source:
        return self._inner.blob_source(descriptor)

    def push_blob(self, descriptor: Descriptor, source: Source, progress: Progress) -> bool:
        return self._inner.push_blob(descriptor, source, progress)

    def mount_blob(self, digest: Digest, origin: Repository) -> bool:
        return self._inner.mount_blob(digest, origin)

    def delete_tag(self, tag: str) -> None:
        self._inner.delete_tag(tag)

    def _seen(self, tag: str) -> tuple[Descriptor, bool] | None:
        if self._present is not None and tag not in self._present:
            raise NotFound(f"{self.place} has no tag {tag}")
        return self._state.tag(self.place, tag)

    def _kept(self, kind: Kind, digest: Digest) -> tuple[str, bytes] | None:
        found = self._state.content(self.place, kind, digest)
        if found is None:
            return None
        self.traffic.known += found[2]
        return found[0], found[1]

    def _fetched(self, reference: str | Digest) -> tuple[Descriptor, bytes]:
        descriptor, raw = self._inner.manifest(reference)
        self.traffic.fetched += 1
        self._state.keep(self.place, Kind.MANIFEST, descriptor, raw)
        return descriptor, raw
