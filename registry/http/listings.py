"""Lists: tags, referrers, repositories. Source: distribution-spec, "Content Discovery"."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.manifest import MAX_BYTES
from artifact.reference import is_name, is_tag
from registry import catalog
from registry.access.rights import Caller, Right
from registry.http.errors import RegistryError, name_unknown
from registry.http.gate import caller_of
from registry.proxy.mirror import Listing
from registry.proxy.proxy import Proxy
from registry.referrers import Referrers
from registry.store.protocol import Missing, ObjectStore
from registry.tags import Tags

MAX_TAGS = 10_000
"""Most tags in one answer (CVE-2023-2253: what a client asks for must be bounded)."""

MAX_REPOSITORIES = 1000
"""Most repositories in one answer."""

_DEFAULT_REPOSITORIES = 100
_INDEX = f'{{"schemaVersion":2,"mediaType":"{mediatypes.IMAGE_INDEX}","manifests":[%s]}}'


class ListingEndpoints:
    """What is there."""

    def __init__(self, store: ObjectStore, tags: Tags, referrers: Referrers, proxy: Proxy | None = None) -> None:
        self._proxy = proxy
        self._store = store
        self._tags = tags
        self._referrers = referrers

    async def tags(self, request: Request, name: str, rest: str) -> Response:
        """GET tags/list, in ASCII order."""
        count = _count(request, MAX_TAGS, MAX_TAGS)
        last = request.query_params.get("last", "")
        if last and not is_tag(last):
            raise RegistryError(400, "TAG_INVALID", f"not a tag: {last[:140]!r}")
        try:
            original = await self._proxy.tags(name) if self._proxy is not None else None
        except Missing:
            raise name_unknown(name) from None
        if original is not None:
            found = [tag for tag in original.items if tag > last][: count + 1]
        else:
            found = await asyncio.to_thread(self._tags.list, name, last, count + 1) if count else []
            if not found and not await asyncio.to_thread(catalog.exists, self._store, name):
                raise name_unknown(name)
        body = {"name": name, "tags": found[:count]}
        return JSONResponse(body, headers=_next(f"/v2/{name}/tags/list", found, count) | _warning(original))

    async def repositories(self, request: Request, name: str, rest: str) -> Response:
        """GET _catalog: the repositories the caller may read. The order is the store's own."""
        count = _count(request, _DEFAULT_REPOSITORIES, MAX_REPOSITORIES)
        last = request.query_params.get("last", "")
        if last and not is_name(last):
            raise RegistryError(400, "NAME_INVALID", f"not a repository name: {last[:80]!r}")
        caller = caller_of(request)
        found = await asyncio.to_thread(self._readable, caller, last, count + 1) if count else []
        return JSONResponse({"repositories": found[:count]}, headers=_next("/v2/_catalog", found, count))

    def _readable(self, caller: Caller, last: str, limit: int) -> list[str]:
        found: list[str] = []
        # A token is bound to the repositories it was asked for: which ones there are is told by the grants behind it.
        while page := catalog.repositories(self._store, last, limit):
            found += [name for name in page if Right.PULL in caller.granted(name)]
            if len(found) >= limit or len(page) < limit:
                break
            last = page[-1]
        return found[:limit]

    async def referrers(self, request: Request, name: str, rest: str) -> Response:
        """GET referrers: an index, empty for a subject that nobody refers to; further pages where one index would be
        larger than a manifest may be."""
        subject = Digest.parse(rest)
        wanted = request.query_params.get("artifactType") or None
        last = request.query_params.get("last")
        after = Digest.parse(last) if last is not None else None
        original = await self._proxy.referrers(name, subject) if self._proxy is not None else None
        items = None if original is None else [item for item in original.items if _is_wanted(item, wanted, after)]
        body, end = await asyncio.to_thread(self._index, name, subject, wanted, after, items)
        # The content type exactly, with no parameter: clients compare it as a string.
        headers = {"Content-Type": mediatypes.IMAGE_INDEX} | _warning(original)
        if wanted is not None:
            headers["OCI-Filters-Applied"] = "artifactType"
        if end is not None:
            query = {"last": str(end)} if wanted is None else {"artifactType": wanted, "last": str(end)}
            headers["Link"] = f'</v2/{name}/referrers/{subject}?{urlencode(query)}>; rel="next"'
        return Response(body, 200, headers)

    def _index(
        self,
        name: str,
        subject: Digest,
        wanted: str | None,
        after: Digest | None,
        original: Iterable[Descriptor] | None = None,
    ) -> tuple[str, Digest | None]:
        """One page, and the last digest on it if there are more; of `original` where the repository is a copy."""
        items: list[str] = []
        size, end = len(_INDEX % ""), None
        for item in self._referrers.of(name, subject, wanted, after) if original is None else original:
            text = json.dumps(item.to_json(), separators=(",", ":"))
            size += len(text) + 1
            if items and size > MAX_BYTES:
                return _INDEX % ",".join(items), end
            items.append(text)
            end = item.digest
        return _INDEX % ",".join(items), None


def _is_wanted(item: Descriptor, wanted: str | None, after: Digest | None) -> bool:
    return wanted in (None, item.artifact_type) and (after is None or item.digest.hex > after.hex)


def _warning(original: Listing[Any] | None) -> dict[str, str]:
    return {} if original is None or original.warning is None else {"Warning": original.warning}


def _count(request: Request, default: int, most: int) -> int:
    text = request.query_params.get("n")
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal()):
        raise RegistryError(400, "PAGINATION_NUMBER_INVALID", f"n must be a count, not {text[:20]!r}")
    return most if len(text) > 9 else min(int(text), most)


def _next(path: str, found: list[str], count: int) -> dict[str, str]:
    if not count or len(found) <= count:
        return {}
    return {"Link": f'<{path}?{urlencode({"n": count, "last": found[count - 1]})}>; rel="next"'}
