"""One interface over the two places an artifact can be: a registry and an OCI image layout.

`RemoteRepository` and `LayoutRepository` implement `Repository`; `open_repository` picks one by the reference.
Everything above (signing, pulling, packing) is written against this protocol and works on both.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.progress import Progress
from artifact.source import Reader, Source


class Repository(Protocol):
    """Manifests, blobs, tags and referrers of one repository."""

    @property
    def place(self) -> str:
        """The repository as a user writes it: ``HOST/NAME``, ``NAME`` or ``oci:PATH``."""

    def resolve(self, reference: str | Digest) -> Descriptor:
        """The descriptor of the manifest a tag or digest names. Raises `NotFound`."""

    def manifest(self, reference: str | Digest) -> tuple[Descriptor, bytes]:
        """A manifest's descriptor and bytes; the bytes have been checked against the digest. Raises `NotFound`."""

    def push_manifest(self, raw: bytes, media_type: str, tag: str | None = None) -> Descriptor:
        """Store a manifest, and point `tag` at it. Blobs it refers to must be there. If it has a subject, it is
        listed among the subject's referrers afterwards."""

    def tags(self) -> list[str]:
        """All tags, sorted."""

    def referrers(self, subject: Digest, artifact_type: str | None = None) -> list[Descriptor]:
        """Descriptors of the manifests whose subject is `subject`; empty if there are none."""

    def has_blob(self, digest: Digest) -> bool:
        """Whether the blob can be read here."""

    def blob_size(self, digest: Digest) -> int | None:
        """The size in bytes of a blob that can be read here; None if it is not there, or the place does not say."""

    def read_blob(self, descriptor: Descriptor, limit: int = ...) -> bytes:
        """A small blob, checked against its descriptor. Raises `NotFound`, `DigestMismatch`, or `Malformed` if it is
        larger than `limit` bytes."""

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> AbstractContextManager[Reader]:
        """A stream of a blob's bytes from `offset`. The bytes are NOT checked: whoever stores them checks them."""

    def blob_source(self, descriptor: Descriptor) -> Source:
        """What `open_blob` opens, as something to be opened again and, from a registry, in ranges."""

    def push_blob(self, descriptor: Descriptor, source: Source, progress: Progress) -> bool:
        """Store a blob, checked against its descriptor on arrival. False if it was there already. Raises
        `DigestMismatch` if the source's bytes are other bytes."""

    def mount_blob(self, digest: Digest, origin: Repository) -> bool:
        """Make a blob that `origin` has appear here without moving its bytes. False if that is not possible."""

    def delete_tag(self, tag: str) -> None:
        """Remove a tag. Raises `NotFound`."""
