"""GET, HEAD, PUT and DELETE of manifests. Source: distribution-spec, "Pulling manifests", "Pushing Manifests"."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from artifact import mediatypes
from artifact.digest import Digest
from artifact.manifest import MAX_BYTES
from artifact.reference import is_tag
from registry.access.rights import Caller
from registry.admission import Admission
from registry.events import Event
from registry.http import conditions
from registry.http.body import read_whole
from registry.http.errors import RegistryError, manifest_unknown
from registry.http.gate import caller_of
from registry.http.negotiation import accepts_docker_only, ollama_sibling
from registry.http.shared import SharedReads
from registry.manifests import Manifests, StoredManifest, read_manifest
from registry.proxy.proxy import Proxy
from registry.quarantine import Quarantines
from registry.referrers import Referrers
from registry.store.protocol import Missing
from registry.tagrules import TagRules
from registry.tags import Tags
from registry.webhooks import Notice

News = Callable[[], Notice]
_GUESSES = 10_000  # tags whose last digest is remembered

MAX_TAGS = 100
"""Most tags that one push of a manifest may set."""

# Distribution-spec, "Warnings": something worked that the client need not, or should not, have done.
_FALLBACK = re.compile(r"sha(?:256|512)-[0-9a-f]{64}")
_FALLBACK_WARNING = (
    '299 - "this registry lists referrers by itself: the fallback tag is merged into its list, and is not needed"'
)


class ManifestEndpoints:
    """Manifests, and the tags that point at them."""

    def __init__(
        self,
        manifests: Manifests,
        tags: Tags,
        referrers: Referrers,
        admission: Admission,
        rules: TagRules,
        quarantines: Quarantines,
        remote: bool,
        notice: Callable[[Request], Notice],
        proxy: Proxy | None = None,
    ) -> None:
        self._proxy = proxy
        self._admission = admission
        self._rules = rules
        self._quarantines = quarantines
        self._manifests = manifests
        self._tags = tags
        self._referrers = referrers
        self._notice = notice
        # Over a network each read waits on its own; of a folder, many are done in less time than a change of thread.
        lanes, batch = (16, 1) if remote else (2, 64)
        pool = ThreadPoolExecutor(lanes, thread_name_prefix="manifest-read")
        self._reads = SharedReads(self._find, pool, lanes, batch)
        self._ahead = ThreadPoolExecutor(lanes, thread_name_prefix="manifest-ahead") if remote else None
        self._guesses: dict[str, Digest] = {}

    def _find(self, key: str) -> StoredManifest:
        name, _, reference = key.partition(" ")
        guess = self._guesses.get(key)
        if guess is None:
            manifest = self._manifests.find(name, reference)
        else:
            manifest = self._find_guessing(name, reference, guess)
        if self._ahead is not None and ":" not in reference:
            if len(self._guesses) >= _GUESSES:
                self._guesses.clear()
            self._guesses[key] = manifest.digest
        return manifest

    def _find_guessing(self, name: str, tag: str, guess: Digest) -> StoredManifest:
        """As `find`, in one round trip if the tag still is what it was: what it was is read beside the tag. Only the
        time is saved by the guess; the answer rests on what was read now."""
        assert self._ahead is not None
        ahead = self._ahead.submit(self._manifests.by_digest, name, guess)
        digest = self._tags.resolve(name, tag)
        if digest == guess:
            with suppress(Missing):
                return ahead.result()
        return self._manifests.by_digest(name, digest)

    async def get(self, request: Request, name: str, rest: str) -> Response:
        """GET and HEAD. There is one representation whatever the Accept header says, but for models that were packed
        for Ollama too (`negotiation`)."""
        try:
            stale = await self._proxy.manifest(name, rest) if self._proxy is not None else None
            if request.method == "HEAD":
                manifest = await asyncio.to_thread(self._manifests.find, name, rest, True)
            else:
                manifest = await self._reads.get(f"{name} {rest}")
        except Missing:
            raise manifest_unknown(name, rest) from None
        if ":" not in rest and self._quarantines.cover(name, rest):
            await asyncio.to_thread(self._quarantines.check, name, rest, manifest)
        if ":" not in rest and accepts_docker_only(request):
            manifest = await self._for_ollama(name, manifest, request.method == "HEAD")
        headers = {
            "Content-Type": manifest.media_type,
            "Docker-Content-Digest": str(manifest.digest),
            "ETag": f'"{manifest.digest}"',
        }
        if ":" not in rest:
            headers["Vary"] = "Accept"
        if stale is not None:
            headers["Warning"] = stale
        if conditions.has_already(request, headers["ETag"]):
            return Response(None, 304, headers)
        headers["Content-Length"] = str(len(manifest.raw))
        return Response(None if request.method == "HEAD" else manifest.raw, 200, headers)

    async def _for_ollama(self, name: str, manifest: StoredManifest, claim: bool) -> StoredManifest:
        """What a client that reads Docker's manifests only is given of a model."""
        sibling = await asyncio.to_thread(ollama_sibling, manifest)  # which parses it
        if sibling is not None:
            with suppress(Missing):
                if self._proxy is not None:
                    await self._proxy.manifest(name, str(sibling))
                return await asyncio.to_thread(self._manifests.find, name, str(sibling), claim)
        return manifest

    async def put(self, request: Request, name: str, rest: str) -> Response:
        """PUT by tag, or by digest with any number of tags beside it."""
        digest = Digest.parse(rest) if ":" in rest else None
        tags = [rest] if digest is None else list(dict.fromkeys(request.query_params.getlist("tag")))
        if len(tags) > MAX_TAGS:
            raise RegistryError(414, "TAG_INVALID", f"more than {MAX_TAGS} tags in one request")
        for tag in tags:
            if not is_tag(tag):
                raise RegistryError(400, "TAG_INVALID", f"not a tag: {tag[:140]!r}")
        content_type = request.headers.get("content-type", "").partition(";")[0].strip()
        raw = await read_whole(request, MAX_BYTES, "manifest")
        manifest = await asyncio.to_thread(read_manifest, raw, content_type, digest)
        await asyncio.to_thread(self._put, caller_of(request), partial(self._notice, request), name, manifest, tags)
        headers = {
            "Location": f"/v2/{name}/manifests/{manifest.digest}",
            "Docker-Content-Digest": str(manifest.digest),
        }
        if manifest.subject is not None:
            headers["OCI-Subject"] = str(manifest.subject)
        if digest is not None and tags:
            headers["OCI-Tag"] = ", ".join(tags)
        if manifest.media_type == mediatypes.IMAGE_INDEX and any(map(_FALLBACK.fullmatch, tags)):
            headers["Warning"] = _FALLBACK_WARNING
        return Response(None, 201, headers)

    def _put(self, caller: Caller, news: News, name: str, manifest: StoredManifest, tags: list[str]) -> None:
        self._manifests.check(name, manifest)
        self._rules.check_push(caller, name, manifest, tags)
        self._admission.admit(name, manifest, tags)
        # What makes it visible comes after what it needs: bytes, then the listing, then the tags.
        self._manifests.put(name, manifest)
        self._referrers.add(name, manifest)
        untold = [Event("push", name, str(manifest.digest), media_type=manifest.media_type, size=len(manifest.raw))]
        by = caller.principal.name
        if not tags:
            self._tags.note_push(name, manifest.digest, by)
        for tag in tags:
            with news() as notice:
                before = partial(self._before_move, caller, notice, untold, name, tag, manifest.digest)
                first = tag == tags[0]
                if self._tags.point(name, tag, manifest.digest, before, by, pushed=first) != manifest.digest:
                    untold = []
        if untold:
            with news() as notice:
                notice.will(*untold)

    def _before_move(
        self, caller: Caller, notice: Notice, untold: list[Event], name: str, tag: str, new: Digest, old: Digest | None
    ) -> None:
        if old is not None:
            self._rules.check_move(caller, name, tag, old)
        notice.will(*untold, Event("tag", name, str(new), tag, previous=None if old is None else str(old)))

    async def delete(self, request: Request, name: str, rest: str) -> Response:
        """DELETE of a tag, or of a manifest with the tags that point at it."""
        told = caller_of(request).principal.name, partial(self._notice, request), name
        try:
            if ":" in rest:
                await asyncio.to_thread(self._delete, *told, Digest.parse(rest))
            elif is_tag(rest):
                await asyncio.to_thread(self._delete_tag, *told, rest)
            else:
                raise Missing(rest)
        except Missing:
            raise manifest_unknown(name, rest) from None
        return Response(None, 202)

    def _delete_tag(self, by: str, news: News, name: str, tag: str) -> None:
        self._rules.check_delete_tag(name, tag)
        with news() as notice:
            notice.will(Event("delete", name, None, tag))
            self._tags.delete(name, tag, by)

    def _delete(self, by: str, news: News, name: str, digest: Digest) -> None:
        self._rules.check_delete_manifest(name, digest)
        with news() as notice:
            notice.will(Event("delete", name, str(digest)))
            self._referrers.remove(name, self._manifests.delete(name, digest, by))
