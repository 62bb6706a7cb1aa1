"""Manifests, tags and lists of copies: asked of the original where they have to be, kept for when it is away.

What a digest names never changes: a manifest that is held is served without asking. A tag is asked for when its time is
over; what it points at is stored, and served from the store like everything else.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import DigestMismatch, Malformed, NotFound, ServerError, StowageError, Unauthorized
from artifact.remote import RemoteRepository
from registry import keys
from registry.blobs import Blobs
from registry.manifests import Manifests, StoredManifest
from registry.proxy.upstream import FAILURES, SILENCE, Upstream
from registry.referrers import Referrers
from registry.store.protocol import Missing, ObjectStore
from registry.tags import Tags

STALE = '110 - "Response is Stale"'
"""The warning on an answer that the original could not be asked about (RFC 7234, section 5.5.1)."""

T = TypeVar("T")
_BY = "proxy"
_REMEMBERED = 100_000
_PAGE = 1000
_log = logging.getLogger("registry.proxy")


class UpstreamAway(StowageError):
    """The original is away, and what was asked for is not held."""

    code = "upstream-away"


class UpstreamRefuses(StowageError):
    """The original lets this registry not in, or answers what cannot be served."""

    code = "upstream-refuses"


@dataclass(frozen=True)
class Listing(Generic[T]):
    """A list, and the warning that belongs to it if it is not the original's of now."""

    items: list[T]
    warning: str | None = None


@dataclass(frozen=True)
class _Asked:
    """When the original was asked for a tag, in seconds since the epoch, and whether it had it."""

    at: float = 0.0
    there: bool = True


class Mirror:
    """The copies in one store. Its calls block. Safe for several threads."""

    def __init__(
        self,
        store: ObjectStore,
        blobs: Blobs,
        manifests: Manifests,
        tags: Tags,
        referrers: Referrers,
        serve_stale: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._blobs = store, blobs
        self._manifests, self._tags, self._referrers = manifests, tags, referrers
        self._serve_stale = serve_stale
        self._clock = clock
        self._fresh: dict[tuple[str, str], float] = {}
        self._marked: set[str] = set()
        self._lock = threading.Lock()

    def holds(self, name: str, digest: Digest) -> bool:
        """Whether a manifest is held."""
        try:
            self._manifests.by_digest(name, digest)
        except Missing:
            return False
        return True

    def holds_blob(self, name: str, digest: Digest) -> bool:
        """Whether a blob is held."""
        try:
            self._blobs.find(name, digest)
        except Missing:
            return False
        return True

    def bring_manifest(self, upstream: Upstream, name: str, digest: Digest) -> None:
        """Hold a manifest. Raises `Missing` if the original has none, `UpstreamAway`, `UpstreamRefuses`."""
        if self.holds(name, digest):
            return
        if upstream.is_away:
            raise away(upstream)
        try:
            self._take(upstream.repository(name), name, digest)
        except NotFound:
            upstream.answered()
            raise Missing(f"{upstream.url} has no such manifest") from None
        except FAILURES as error:
            raise failed(upstream, error) from None

    def bring_tag(self, upstream: Upstream, name: str, tag: str) -> str | None:
        """Have a tag point where that of the original does, or did within its time. Returns a warning where the
        original could not be asked. Raises `Missing`, `UpstreamAway`, `UpstreamRefuses`."""
        if self._fresh.get((name, tag), 0.0) > self._clock() and self._is_there(name, tag):
            return None
        asked = self._asked(name, tag)
        until = asked.at + upstream.tag_ttl
        if asked.there and until > self._clock() and self._pointed_at(name, tag) is not None:
            self._remember(name, tag, until)
            return None
        if upstream.is_away:
            return self._without(upstream, name, tag, asked, "it did not answer a moment ago")
        try:
            repository = upstream.repository(name)
            digest = repository.resolve(tag).digest
            if not self.holds(name, digest):
                self._take(repository, name, digest)
            if self._pointed_at(name, tag) != digest:
                self._tags.point(name, tag, digest, by=_BY)
            upstream.answered()
        except NotFound:
            upstream.answered()
            self._gone(name, tag)
            raise Missing(f"{upstream.url} has no such tag") from None
        except FAILURES as error:
            if not isinstance(error, SILENCE):  # what is no longer ours to read is not served from memory
                raise failed(upstream, error) from None
            upstream.failed(error)
            return self._without(upstream, name, tag, asked, str(error))
        self._note(name, tag, _Asked(self._clock()))
        self._remember(name, tag, self._clock() + upstream.tag_ttl)
        return None

    def _without(self, upstream: Upstream, name: str, tag: str, asked: _Asked, why: str) -> str:
        """What to do about a tag that the original cannot be asked about."""
        if not asked.there:
            raise Missing(f"{upstream.url} had no such tag when it was last asked")
        digest = self._pointed_at(name, tag)
        if digest is None or not self._serve_stale:
            raise away(upstream)
        _log.warning("%s:%s is served as it was: %s: %s", name, tag, upstream.url, why)
        return STALE

    def tags(self, upstream: Upstream, name: str) -> Listing[str]:
        """All tags of the original, or those that are held. Raises `Missing`, `UpstreamAway`, `UpstreamRefuses`."""
        if not upstream.is_away:
            try:
                found = upstream.repository(name).tags()
                upstream.answered()
                return Listing(found)
            except NotFound:
                upstream.answered()
                raise Missing(f"{upstream.url} has no such repository") from None
            except FAILURES as error:
                if not isinstance(error, SILENCE):
                    raise failed(upstream, error) from None
                upstream.failed(error)
        held = self._held(name)
        if not held or not self._serve_stale:
            raise away(upstream)
        _log.warning("tags of %s are listed as they are held: %s does not answer", name, upstream.url)
        return Listing(held, STALE)

    def _held(self, name: str) -> list[str]:
        found: list[str] = []
        while page := self._tags.list(name, found[-1] if found else "", _PAGE):
            found += page
        return found

    def referrers(self, upstream: Upstream, name: str, subject: Digest) -> Listing[Descriptor]:
        """What refers to a manifest at the original, by its API or its fallback tag; or what of that is held. Raises
        `UpstreamAway`, `UpstreamRefuses`."""
        if not upstream.is_away:
            try:
                found = upstream.repository(name).referrers(subject)
                upstream.answered()
                return Listing(sorted(found, key=lambda item: item.digest.hex))
            except NotFound:
                upstream.answered()
                return Listing([])
            except FAILURES as error:
                if not isinstance(error, SILENCE):
                    raise failed(upstream, error) from None
                upstream.failed(error)
        if not self._serve_stale:
            raise away(upstream)
        _log.warning("referrers in %s are listed as they are held: %s does not answer", name, upstream.url)
        return Listing(list(self._referrers.of(name, subject)), STALE)

    def _take(self, repository: RemoteRepository, name: str, digest: Digest) -> None:
        descriptor, raw = repository.manifest(digest)
        if descriptor.media_type not in mediatypes.MANIFESTS:
            raise ServerError(f"{repository.host} serves a manifest of type {descriptor.media_type[:100]!r}")
        manifest = StoredManifest(digest, descriptor.media_type, raw)
        try:
            _ = manifest.document
        except Malformed as error:
            raise ServerError(f"{repository.host} serves a broken manifest: {error}") from None
        self.mark(name)
        self._manifests.put(name, manifest)
        self._referrers.add(name, manifest)

    def mark(self, name: str) -> None:
        """Note that a repository is a copy, of which parts may be missing."""
        if name not in self._marked:
            self._store.put(keys.mirror(name), b"{}")
            self._marked.add(name)

    def _gone(self, name: str, tag: str) -> None:
        """The original has a tag no more: nor has the copy."""
        with self._lock:
            self._fresh.pop((name, tag), None)
        with suppress(Missing):
            self._tags.delete(name, tag, by=_BY)
        self._note(name, tag, _Asked(self._clock(), there=False))

    def _is_there(self, name: str, tag: str) -> bool:
        """Whether a tag is held: it may have been deleted here."""
        with suppress(Missing):
            self._tags.resolve(name, tag)
            return True
        return False

    def _pointed_at(self, name: str, tag: str) -> Digest | None:
        with suppress(Missing):
            digest = self._tags.resolve(name, tag)
            return digest if self.holds(name, digest) else None
        return None

    def _asked(self, name: str, tag: str) -> _Asked:
        try:
            value = json.loads(self._store.get(keys.asked(name, tag)).data)
            return _Asked(float(value["at"]), value["there"] is True)
        except (Missing, ValueError, KeyError, TypeError):
            return _Asked()

    def _note(self, name: str, tag: str, asked: _Asked) -> None:
        value = {"at": asked.at, "there": asked.there}
        self._store.put(keys.asked(name, tag), json.dumps(value, separators=(",", ":")).encode())

    def _remember(self, name: str, tag: str, until: float) -> None:
        with self._lock:
            if len(self._fresh) >= _REMEMBERED:
                self._fresh.clear()
            self._fresh[name, tag] = until


def away(upstream: Upstream) -> UpstreamAway:
    return UpstreamAway(f"{upstream.url} does not answer, and this is not held here: try again later")


def failed(upstream: Upstream, error: StowageError) -> StowageError:
    """What a failure of an upstream means to the client; the details are for the log, since they are about a login
    that is not the client's."""
    _log.error("%s: %s", upstream.url, error)
    upstream.failed(error)
    if isinstance(error, Unauthorized):
        return UpstreamRefuses(f"{upstream.url} refuses this registry's login for it")
    if isinstance(error, ServerError | Malformed | DigestMismatch):
        return UpstreamRefuses(f"{upstream.url} answers what cannot be served")
    return away(upstream)
