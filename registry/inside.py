"""A repository of this registry as everything above the artifact knows repositories, without HTTP in between."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import DigestMismatch, Malformed, StowageError
from artifact.progress import Progress
from artifact.reference import referrers_tag
from artifact.repository import Repository
from artifact.source import Reader, Source
from registry import keys
from registry.blobs import Blobs
from registry.manifests import Manifests
from registry.referrers import Referrers
from registry.store.protocol import Missing, ObjectStore, Stream
from registry.tags import Tags
from supplychain.evidence import signature_tag

_MAX_BLOB = 4 * 1024 * 1024
_PAGE = 1000


class ReadOnly(StowageError):
    """The repository is looked at, not changed."""


class StoredRepository:
    """One repository, read from the object store. It is not written to."""

    def __init__(
        self, store: ObjectStore, blobs: Blobs, manifests: Manifests, tags: Tags, referrers: Referrers, name: str
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._manifests = manifests
        self._tags = tags
        self._referrers = referrers
        self._name = name

    @property
    def place(self) -> str:
        return self._name

    def resolve(self, reference: str | Digest) -> Descriptor:
        return self.manifest(reference)[0]

    def manifest(self, reference: str | Digest) -> tuple[Descriptor, bytes]:
        found = self._manifests.find(self._name, str(reference))
        if not found.digest.matches(found.raw):
            raise DigestMismatch(f"the stored manifest is not {found.digest}: run registry fsck")
        return Descriptor(found.media_type, found.digest, len(found.raw)), found.raw

    def tags(self) -> list[str]:
        found: list[str] = []
        while page := self._tags.list(self._name, found[-1] if found else "", _PAGE):
            found += page
        return found

    def referrers(self, subject: Digest, artifact_type: str | None = None) -> list[Descriptor]:
        return list(self._referrers.of(self._name, subject, artifact_type))

    def evidence(self, subject: Digest) -> tuple[str, ...]:
        """What there is in favour of a digest, by name alone: it changes when a signature comes, goes or is replaced,
        and costs a listing and a few small reads."""
        found: list[str] = []
        prefix, last = keys.referrers(self._name, subject), ""
        while page := self._store.list(prefix, start_after=last):
            found += [entry.key.removeprefix(prefix) for entry in page]
            last = page[-1].key
        for tag in (referrers_tag(subject), signature_tag(subject)):
            with suppress(Missing):
                found.append(f"{tag} {self._tags.resolve(self._name, tag)}")
        return tuple(found)

    def has_blob(self, digest: Digest) -> bool:
        try:
            self._blobs.find(self._name, digest)
        except Missing:
            return False
        return True

    def blob_size(self, digest: Digest) -> int | None:
        try:
            return self._blobs.find(self._name, digest).size
        except Missing:
            return None

    def read_blob(self, descriptor: Descriptor, limit: int = _MAX_BLOB) -> bytes:
        record = self._blobs.find(self._name, descriptor.digest)
        if max(descriptor.size, record.size) > limit:
            raise Malformed(f"blob {descriptor.digest.short} is larger than {limit} bytes")
        data = self._blobs.read(record, limit)
        if len(data) != descriptor.size or not descriptor.digest.matches(data):
            raise DigestMismatch(f"blob {descriptor.digest.short} is not what its descriptor says")
        return data

    @contextmanager
    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> Iterator[Reader]:
        record = self._blobs.find(self._name, descriptor.digest)
        stream = self._store.read(record.data, offset, max(record.size - offset, 0))
        try:
            yield _Reader(stream)
        finally:
            stream.close()

    def blob_source(self, descriptor: Descriptor) -> Source:
        return partial(self.open_blob, descriptor)

    def push_manifest(self, raw: bytes, media_type: str, tag: str | None = None) -> Descriptor:
        raise ReadOnly(f"{self._name} is only read here")

    def push_blob(self, descriptor: Descriptor, source: Source, progress: Progress) -> bool:
        raise ReadOnly(f"{self._name} is only read here")

    def mount_blob(self, digest: Digest, origin: Repository) -> bool:
        raise ReadOnly(f"{self._name} is only read here")

    def delete_tag(self, tag: str) -> None:
        raise ReadOnly(f"{self._name} is only read here")


class _Reader:
    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def readinto(self, buffer: memoryview) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
