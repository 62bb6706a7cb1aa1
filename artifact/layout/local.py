"""Chunks of weight files that are in local layouts already, found by the tensor indexes that lie there too."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import StowageError
from artifact.layout.index import ref_name
from artifact.layout.repository import LayoutRepository
from artifact.manifest import Manifest
from artifact.tensorindex.attach import index_digest
from artifact.tensorindex.format import MAX_BYTES, TensorIndex
from artifact.tensorindex.indexed import Place

MAX_INDEXES = 64
"""Most indexes that are looked into."""

MAX_INDEX_BYTES = 64 * 1024 * 1024
"""Most bytes of them together."""

_SHA256 = re.compile(rb'"([0-9a-f]{64})"')


def find_chunks(layouts: Sequence[LayoutRepository], wanted: Collection[bytes], first: str = "") -> dict[bytes, Place]:
    """Where in these layouts chunks with the digests `wanted` are; nothing for those that are nowhere.

    The models of the repository `first` are looked into before others, the ones stored last before those stored before.
    What an index says is believed; the bytes are not looked at.
    """
    found: dict[bytes, Place] = {}
    missing = {digest.hex().encode() for digest in wanted}
    left, seen = MAX_INDEX_BYTES, set[Digest]()
    for layout, manifest, digest in _indexed(layouts, first):
        size = layout.blob_size(digest)
        if not missing or len(seen) >= MAX_INDEXES:
            break
        if digest in seen or size is None or size > left:
            continue
        seen.add(digest)
        left -= size
        with suppress(StowageError):
            raw = layout.read_blob(Descriptor(mediatypes.TENSOR_INDEX, digest, size), MAX_BYTES)
            if not missing.isdisjoint(_SHA256.findall(raw)):  # before all of it is parsed
                found.update(_held(layout, manifest, TensorIndex.parse(raw), missing))
                missing.difference_update(item.hex().encode() for item in found)
    return found


def _indexed(layouts: Sequence[LayoutRepository], first: str) -> Iterator[tuple[LayoutRepository, Manifest, Digest]]:
    """The models that have an index, with its digest."""
    listed: list[tuple[LayoutRepository, Descriptor]] = []
    for layout in layouts:
        with suppress(StowageError):
            listed += [(layout, entry) for entry in reversed(layout.entries())]
    listed.sort(key=lambda item: not (ref_name(item[1]) or "").startswith(f"{first}:"))
    for layout, entry in listed:
        if mediatypes.SUBJECT not in entry.annotations:
            with suppress(StowageError):
                manifest = Manifest.parse(layout.manifest(entry.digest)[1])
                digest = index_digest(manifest)
                if digest is not None:
                    yield layout, manifest, digest


def _held(
    layout: LayoutRepository, manifest: Manifest, index: TensorIndex, missing: Collection[bytes]
) -> Iterator[tuple[bytes, Place]]:
    """The chunks among `missing` (in hexadecimal) that the files of a model hold, if they are there in full size."""
    sizes = {layer.digest: layer.size for layer in manifest.layers}
    for file in index.files:
        if sizes.get(file.digest) == file.size == layout.blob_size(file.digest):
            path = layout.blob_path(file.digest)
            for chunk in file.chunks:
                if chunk.digest.hex().encode() in missing:
                    yield chunk.digest, Place(path, chunk.offset)
