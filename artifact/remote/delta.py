"""Which blobs of an artifact a registry can make of blobs that it has: those of an earlier version there."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from typing import NamedTuple

from artifact.digest import Digest
from artifact.errors import DigestMismatch, InvalidInput, Malformed, NotFound, ServerError
from artifact.manifest import Manifest
from artifact.remote.composition import Composition, Held
from artifact.remote.repository import RemoteRepository
from artifact.repository import Repository
from artifact.tensorindex.attach import read_index

LEAST = 4 * 1024 * 1024
"""Blobs smaller than this are sent whole."""


class Base(NamedTuple):
    """An earlier version of an artifact, by tag or digest, in the registry that the new one goes to."""

    repository: RemoteRepository
    reference: str | Digest


def base_of(target: Repository, tag: str | None, stated: Base | None) -> Base | None:
    """What a push to `tag` can rest on: what was `stated`, or else what the tag points at. None if the target is no
    registry. Raises `InvalidInput` if something was stated that lies elsewhere."""
    if not isinstance(target, RemoteRepository):
        if stated is not None:
            raise InvalidInput(f"{target.place} is no registry: only to a registry a part of an artifact can be pushed")
        return None
    if stated is not None and stated.repository.host != target.host:
        raise InvalidInput(
            f"{stated.repository.place} is not in the registry {target.host}: name an artifact that the target has"
        )
    return stated or (Base(target, tag) if tag is not None else None)


class Delta:
    """The blobs of the artifact `manifest` in `source` that `target` can make, if in part, of what it has in `base`.

    An artifact or a base without a tensor index, or with one that is damaged, makes nothing possible and is no error.
    """

    def __init__(self, source: Repository, target: RemoteRepository, manifest: Manifest, base: Base) -> None:
        self._source, self._target, self._manifest, self._base = source, target, manifest, base
        self._lock = threading.Lock()

    def composition(self, digest: Digest) -> Composition | None:
        """The way to make a blob; None if it has to be sent whole. Raises what the network raises."""
        with self._lock:
            return self._compositions.get(digest)

    @cached_property
    def _compositions(self) -> Mapping[Digest, Composition]:
        with suppress(NotFound, Malformed, DigestMismatch, ServerError):
            held = self._held()
            found = read_index(self._source, self._manifest)
            if held is not None and found is not None:
                ways = {file.digest: Composition.of(file, held) for file in found[0].files if file.size >= LEAST}
                return {digest: way for digest, way in ways.items() if way is not None}
        return {}

    def _held(self) -> Held | None:
        base = self._base
        descriptor, raw = base.repository.manifest(base.reference)
        found = read_index(base.repository, Manifest.parse(raw, descriptor.media_type))
        if found is None:
            return None
        held = Held()
        held.add(found[0], None if base.repository.name == self._target.name else base.repository.name)
        return held
