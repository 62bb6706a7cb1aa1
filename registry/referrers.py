"""Referrers: for each subject, one small object for each manifest that refers to it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import Malformed
from artifact.manifest import Index
from registry import keys
from registry.manifests import Manifests, StoredManifest
from registry.store.protocol import Missing, ObjectStore

_FETCH = ThreadPoolExecutor(max_workers=16, thread_name_prefix="referrers")


class Referrers:
    """The referrers of every subject."""

    def __init__(self, store: ObjectStore, manifests: Manifests) -> None:
        self._store = store
        self._manifests = manifests

    def add(self, name: str, manifest: StoredManifest) -> None:
        """List a manifest among the referrers of its subject, if it has one."""
        if manifest.subject is not None:
            descriptor = json.dumps(manifest.descriptor.to_json(), separators=(",", ":")).encode()
            self._store.put(keys.referrer(name, manifest.subject, manifest.digest), descriptor)

    def remove(self, name: str, manifest: StoredManifest) -> None:
        """Take a manifest out of the list."""
        if manifest.subject is not None:
            self._store.delete(keys.referrer(name, manifest.subject, manifest.digest))

    def of(self, name: str, subject: Digest, artifact_type: str | None = None) -> list[dict[str, Any]]:
        """Descriptors of the manifests that refer to a subject, by digest, with those that a client listed under the
        fallback tag (distribution-spec, "Enabling the Referrers API")."""
        found = {str(item.digest): item for item in self._fallback(name, subject)}
        prefix, last = keys.referrers(name, subject), ""
        while page := self._store.list(prefix, start_after=last):
            for item in _FETCH.map(self._read, [entry.key for entry in page]):
                if item is not None:
                    found[str(item.digest)] = item
            last = page[-1].key
        return [
            item.to_json()
            for _, item in sorted(found.items())
            if artifact_type is None or item.artifact_type == artifact_type
        ]

    def _read(self, key: str) -> Descriptor | None:
        try:
            return Descriptor.from_json(json.loads(self._store.get(key).data))
        except (Missing, Malformed, ValueError):
            return None  # deleted since the listing, or damaged: fsck reports it

    def _fallback(self, name: str, subject: Digest) -> list[Descriptor]:
        try:
            index = self._manifests.find(name, f"{subject.algorithm}-{subject.hex[:64]}")
            if index.media_type != mediatypes.IMAGE_INDEX:
                return []
            listed = Index.parse(index.raw).manifests
        except (Missing, Malformed):
            return []
        known = []
        for item in listed:
            try:
                manifest = self._manifests.by_digest(name, item.digest)
            except (Missing, Malformed):
                continue
            if manifest.subject == subject:
                known.append(manifest.descriptor)
        return known
