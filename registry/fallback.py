"""Referrers listed under a tag too, for those who carry tags alone. Source: distribution-spec, "Referrers Tag Schema".

Replicators that follow the tag list drop whatever only the referrers API lists, signatures included. The fallback tag
of a subject is an index of its referrers: who copies it copies them.
"""

from __future__ import annotations

import logging

from artifact import mediatypes
from artifact.digest import Digest
from artifact.manifest import MAX_BYTES, Index
from artifact.reference import referrers_tag
from registry.manifests import Manifests, StoredManifest
from registry.referrers import Referrers, subject_if_readable
from registry.store.protocol import ObjectStore
from registry.tags import Tags

_log = logging.getLogger("registry")


class TaggedReferrers(Referrers):
    """`Referrers` whose fallback tags this registry keeps itself."""

    def __init__(self, store: ObjectStore, manifests: Manifests, tags: Tags) -> None:
        super().__init__(store, manifests)
        self._written, self._tags = manifests, tags

    def add(self, name: str, manifest: StoredManifest) -> None:
        super().add(name, manifest)
        if manifest.subject is not None:
            self._write(name, manifest.subject)

    def remove(self, name: str, manifest: StoredManifest) -> None:
        super().remove(name, manifest)
        subject = subject_if_readable(manifest)
        if subject is not None:
            self._write(name, subject)

    def _write(self, name: str, subject: Digest) -> None:
        """Point the tag at the listing as it is. Whoever writes looks again afterwards, so of several that write at
        once the last one is right."""
        raw = self._index(name, subject)
        while True:
            if len(raw) > MAX_BYTES:
                _log.warning("%s has more referrers of %s than fit under a tag", name, subject)
                return
            index = StoredManifest(Digest.of(raw), mediatypes.IMAGE_INDEX, raw)
            self._written.put(name, index)
            self._tags.point(name, referrers_tag(subject), index.digest)
            before, raw = raw, self._index(name, subject)
            if raw == before:
                return

    def _index(self, name: str, subject: Digest) -> bytes:
        return Index(list(self.of(name, subject))).to_bytes()
