"""Which tags may be moved or removed, and by whom."""

from __future__ import annotations

import re
from collections.abc import Iterable

from artifact.digest import Digest
from artifact.errors import Malformed, Refused
from artifact.weights.precision import is_precision_tag
from registry.access.rights import Caller, Right
from registry.admission import is_model
from registry.config.sections import Immutable, TagPattern
from registry.manifests import Manifests, StoredManifest
from registry.store.protocol import Missing
from registry.tags import Tags
from supplychain.glob import matches

_PAGE = 1000
_LISTING = re.compile(r"sha(?:256|512)-[0-9a-f]{64}(?:\.(?:sig|att|sbom))?")
"""The referrers tag schema (distribution-spec, "Referrers Tag Schema") and cosign's tags beside it."""


class TagRefused(Refused):
    """The tag, or what it points at, has to stay as it is."""

    code = "tag-refused"


class TagRules:
    """The rules of one registry."""

    def __init__(self, manifests: Manifests, tags: Tags, immutable: Immutable) -> None:
        self._manifests = manifests
        self._tags = tags
        self._immutable = immutable

    def is_immutable(self, name: str, tag: str, current: Digest) -> bool:
        """Whether a tag that points at `current` must go on doing so."""
        rules = self._immutable
        if covered(rules.exceptions, name, tag):
            return False
        if covered(rules.tags, name, tag):
            return True
        return rules.precision_tags and is_precision_tag(tag) and self._points_at_model(name, current)

    def _points_at_model(self, name: str, digest: Digest) -> bool:
        try:
            return is_model(self._manifests.by_digest(name, digest))
        except (Missing, Malformed):
            return False

    def check_move(self, caller: Caller, name: str, tag: str, current: Digest) -> None:
        """That a tag may point at something else than `current`, which it points at. Raises `TagRefused`."""
        if self.is_immutable(name, tag, current):
            raise TagRefused(
                f"tag {tag} is immutable and points at {current}: choose another tag, or push by digest without one"
            )
        if not caller.may(Right.OVERWRITE, name):
            raise TagRefused(f"{caller.principal.name} may not overwrite in {name}: tag {tag} points at {current}")

    def check_push(self, caller: Caller, name: str, manifest: StoredManifest, tags: Iterable[str]) -> None:
        """That a manifest may be pushed under some tags as they are now, and that no more than tags would change. What
        has been decided here is decided again when each tag is moved. Raises `TagRefused`."""
        try:
            known = self._manifests.by_digest(name, manifest.digest)
        except (Missing, Malformed):
            known = manifest
        if known.media_type != manifest.media_type and not caller.may(Right.OVERWRITE, name):
            raise TagRefused(f"{caller.principal.name} may not overwrite in {name}: the manifest is {known.media_type}")
        for tag in tags:
            try:
                current = self._tags.resolve(name, tag)
            except Missing:
                continue
            if current != manifest.digest:
                self.check_move(caller, name, tag, current)

    def check_delete_tag(self, name: str, tag: str) -> None:
        """That a tag may be removed. Raises `TagRefused`, and `Missing` if there is none."""
        if self._immutable.keep and self.is_immutable(name, tag, self._tags.resolve(name, tag)):
            raise TagRefused(f"tag {tag} is immutable, and immutable tags are kept")

    def check_delete_manifest(self, name: str, digest: Digest) -> None:
        """That a manifest may be removed with its tags. Raises `TagRefused`."""
        if not self._immutable.keep:
            return
        last = ""
        while page := self._tags.list(name, last, _PAGE):
            for tag in page:
                try:
                    current = self._tags.resolve(name, tag)
                except Missing:
                    continue
                if current == digest and self.is_immutable(name, tag, digest):
                    raise TagRefused(f"tag {tag} points at {digest.short} and is immutable, and those are kept")
            last = page[-1]


def covered(patterns: Iterable[TagPattern], name: str, tag: str) -> bool:
    """Whether one of the patterns is about a tag. None is about the tags that list what refers to a digest: those grow
    while signatures are added."""
    if _LISTING.fullmatch(tag):
        return False
    return any(matches(pattern.repository, name) and matches(pattern.tag, tag) for pattern in patterns)
