"""Manifests: read and checked when they are pushed, stored byte for byte."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import cached_property

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import DigestMismatch, Malformed, NotFound
from artifact.manifest import Index, Manifest
from artifact.reference import is_tag
from registry import keys
from registry.blobs import Blobs
from registry.condemned import Condemned
from registry.store.protocol import Conflict, Missing, ObjectStore
from registry.tags import Tags

_INDEXES = (mediatypes.IMAGE_INDEX, mediatypes.DOCKER_MANIFEST_LIST)
_CHECK = ThreadPoolExecutor(max_workers=16, thread_name_prefix="manifest-check")


class ReferenceUnknown(NotFound):
    """A manifest refers to a blob or manifest that the repository does not have."""


@dataclass(frozen=True)
class StoredManifest:
    """A manifest's bytes, with the digest and media type they were pushed under, and the garbage collector's mark."""

    digest: Digest
    media_type: str
    raw: bytes
    condemned: Condemned | None = None

    @classmethod
    def from_object(cls, digest: Digest, data: bytes) -> StoredManifest:
        """Read what `to_object` wrote. Raises `Malformed` if the head is damaged; the bytes are not checked."""
        head, _, raw = data.partition(b"\n")
        media_type, _, mark = head.decode("ascii", "replace").partition(" ")
        try:
            return cls(digest, media_type, raw, Condemned.from_text(mark))
        except ValueError:
            raise Malformed(f"the stored manifest {digest} has a damaged head: run registry fsck") from None

    def to_object(self) -> bytes:
        """As it lies in the store: media type, mark if there is one, newline, bytes."""
        mark = f" {self.condemned.to_text()}" if self.condemned else ""
        return f"{self.media_type}{mark}\n".encode("ascii") + self.raw

    @cached_property
    def document(self) -> Manifest | Index:
        """The parsed document. Raises `Malformed`."""
        if self.media_type in _INDEXES:
            return Index.parse(self.raw, self.media_type)
        return Manifest.parse(self.raw, self.media_type)

    @property
    def subject(self) -> Digest | None:
        """The digest of the manifest this one refers to."""
        return self.document.subject.digest if self.document.subject else None

    @property
    def descriptor(self) -> Descriptor:
        """What a referrers listing says of it."""
        document = self.document
        kind = document.referrer_type if isinstance(document, Manifest) else document.artifact_type
        return Descriptor(self.media_type, self.digest, len(self.raw), document.annotations, kind)


class Manifests:
    """The manifests of every repository."""

    def __init__(self, store: ObjectStore, blobs: Blobs, tags: Tags) -> None:
        self._store = store
        self._blobs = blobs
        self._tags = tags

    def find(self, name: str, reference: str, claim: bool = False) -> StoredManifest:
        """The manifest a tag or digest names. Raises `Missing`, and `InvalidInput` on a malformed digest. With `claim`
        as `claim` does."""
        if ":" in reference:
            digest = Digest.parse(reference)
            return self.claim(name, digest) if claim else self.by_digest(name, digest)
        if not is_tag(reference):
            raise Missing("no such tag")
        return self.by_digest(name, self._tags.resolve(name, reference))

    def by_digest(self, name: str, digest: Digest) -> StoredManifest:
        """A manifest of a repository. Raises `Missing`."""
        return StoredManifest.from_object(digest, self._store.get(keys.manifest(name, digest)).data)

    def claim(self, name: str, digest: Digest) -> StoredManifest:
        """As `by_digest`, for a caller that relies on the manifest's staying: a mark of the garbage collector is taken
        off."""
        key = keys.manifest(name, digest)
        while True:
            found = self._store.get(key)
            manifest = StoredManifest.from_object(digest, found.data)
            if manifest.condemned is None:
                return manifest
            manifest = replace(manifest, condemned=None)
            try:
                self._store.put(key, manifest.to_object(), if_match=found.etag)
                return manifest
            except Conflict:
                continue

    def check(self, name: str, manifest: StoredManifest) -> None:
        """That a manifest is one, and that the repository has everything it refers to; its subject may come later.
        Raises `Malformed` and `ReferenceUnknown`."""
        document = manifest.document
        if isinstance(document, Index):
            _each(lambda item: self._require_manifest(name, item), _once(document.manifests))
        else:
            blobs = [item for item in (document.config, *document.layers) if not kept_elsewhere(item)]
            _each(lambda item: self._require_blob(name, item), _once(blobs))

    def _require_manifest(self, name: str, item: Descriptor) -> None:
        try:
            self.claim(name, item.digest)
        except Missing:
            raise ReferenceUnknown(f"manifest {item.digest} is not in {name}: push it first") from None

    def _require_blob(self, name: str, item: Descriptor) -> None:
        try:
            record = self._blobs.claim(name, item.digest)
        except Missing:
            raise ReferenceUnknown(f"blob {item.digest} is not in {name}: push it first") from None
        if record.size != item.size:
            raise Malformed(f"blob {item.digest} has {record.size} bytes, the manifest says {item.size}")

    def put(self, name: str, manifest: StoredManifest) -> None:
        """Store a manifest that has been checked."""
        self._store.put(keys.manifest(name, manifest.digest), manifest.to_object())

    def delete(self, name: str, digest: Digest, by: str = "") -> StoredManifest:
        """Remove a manifest and the tags that point at it, as `by` asks; returns it. Raises `Missing`."""
        manifest = self.by_digest(name, digest)
        self._tags.delete_pointing_at(name, digest, by)
        self._store.delete(keys.manifest(name, digest))
        return manifest


def read_manifest(raw: bytes, content_type: str, digest: Digest | None) -> StoredManifest:
    """What was pushed, as `digest` or else as its sha256. Raises `Malformed` for a type that is no manifest, and
    `DigestMismatch` if the bytes are not those the digest names."""
    if content_type not in mediatypes.MANIFESTS:
        raise Malformed(f"not a manifest type this registry takes: {content_type[:100]!r}")
    if digest is None:
        digest = Digest("sha256", hashlib.sha256(raw).hexdigest())
    elif not digest.matches(raw):
        raise DigestMismatch(f"the manifest received is not {digest}")
    return StoredManifest(digest, content_type, raw)


def kept_elsewhere(item: Descriptor) -> bool:
    """Layers that by their type are never pushed (image-spec, "Non-Distributable Layers")."""
    return ".nondistributable." in item.media_type or ".foreign." in item.media_type


def _once(items: Iterable[Descriptor]) -> Iterable[Descriptor]:
    """What is listed, without repetitions; what is listed with two sizes stays twice."""
    return {(item.digest, item.size): item for item in items}.values()


def _each(check: Callable[[Descriptor], None], items: Iterable[Descriptor]) -> None:
    """Check all of them side by side. Where one fails, the others have ended too: marks of the garbage collector are
    not taken off by a request that is over."""
    checks = [_CHECK.submit(check, item) for item in items]
    try:
        for one in checks:
            one.result()
    finally:
        for one in checks:
            one.cancel()
        wait(checks)
