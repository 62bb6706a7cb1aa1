"""The tensor index beside its model: its digest in an annotation of the model's manifest, its blob in the same
repository, and a referrer that keeps the blob alive there and makes it travel with copies.

In order: `push_index` before the model's manifest, whose annotations are `annotated`, and `push_referrer` after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import InvalidInput, Malformed, NotFound
from artifact.manifest import EMPTY_CONFIG, Manifest
from artifact.progress import Progress, Quiet
from artifact.repository import Repository
from artifact.source import Source, bytes_source
from artifact.tensorindex.format import MAX_BYTES, TensorIndex


class Target(Protocol):
    """The part of a repository that an index is put into."""

    def push_blob(self, descriptor: Descriptor, source: Source, progress: Progress) -> bool:
        """Store a blob, checked."""

    def push_manifest(self, raw: bytes, media_type: str, tag: str | None = None) -> Descriptor:
        """Store a manifest."""


def annotated(annotations: Mapping[str, str], raw: bytes) -> dict[str, str]:
    """The annotations of a model's manifest with the digest of its index, whose bytes are `raw`."""
    return {**annotations, mediatypes.INDEX: str(Digest.of(raw))}


def push_index(target: Target, raw: bytes) -> Descriptor:
    """Store an index; its descriptor."""
    descriptor = Descriptor.of(raw, mediatypes.TENSOR_INDEX)
    target.push_blob(descriptor, bytes_source(raw), Quiet())
    return descriptor


def push_referrer(target: Target, subject: Descriptor, index: Descriptor) -> Descriptor:
    """Store the manifest that refers from an index to the model's manifest `subject`; both must be there."""
    empty = Descriptor.of(EMPTY_CONFIG, mediatypes.EMPTY)
    target.push_blob(empty, bytes_source(EMPTY_CONFIG), Quiet())
    return target.push_manifest(referrer(subject, index).to_bytes(), mediatypes.IMAGE_MANIFEST)


def referrer(subject: Descriptor, index: Descriptor) -> Manifest:
    """The manifest that refers from an index to the model's manifest: the same for the same two."""
    return Manifest(
        Descriptor.of(EMPTY_CONFIG, mediatypes.EMPTY),
        (Descriptor(mediatypes.TENSOR_INDEX, index.digest, index.size),),
        artifact_type=mediatypes.TENSOR_INDEX,
        subject=Descriptor(subject.media_type, subject.digest, subject.size),
    )


def index_digest(manifest: Manifest) -> Digest | None:
    """The digest of a model's index, as its manifest states it; None if it states none. Raises `Malformed`."""
    stated = manifest.annotations.get(mediatypes.INDEX)
    if stated is None:
        return None
    try:
        return Digest.parse(stated)
    except InvalidInput as error:
        raise Malformed(f"annotation {mediatypes.INDEX}: {error}") from None


def read_index(repository: Repository, manifest: Manifest) -> tuple[TensorIndex, Descriptor] | None:
    """The index of a model, and its descriptor; None if its manifest states none.

    Raises `NotFound` if the repository does not have it (a replicator may drop it), `DigestMismatch`, `Malformed` also
    if it speaks of a file that the model has otherwise, and what the network raises.
    """
    digest = index_digest(manifest)
    if digest is None:
        return None
    size = repository.blob_size(digest)
    if size is None:
        raise NotFound(f"{repository.place} does not have the tensor index {digest.short}")
    descriptor = Descriptor(mediatypes.TENSOR_INDEX, digest, size)
    index = TensorIndex.parse(repository.read_blob(descriptor, MAX_BYTES))
    layers = {layer.digest: layer.size for layer in manifest.layers}
    for file in index.files:
        if layers.get(file.digest) != file.size:
            raise Malformed(f"the tensor index {digest.short} speaks of {file.path}, which is not a file of the model")
    return index, descriptor
