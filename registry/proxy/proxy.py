"""The copies as the endpoints ask for them: what is waited for, in which thread, and how often."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import NotFound
from artifact.reference import is_tag
from artifact.source import NoRanges
from registry.config import sections
from registry.http import conditions, ranges
from registry.http.errors import RegistryError
from registry.http.routing import Route
from registry.proxy.fetch import Fetch, Following, Passing, blob_of
from registry.proxy.mirror import Listing, Mirror, away, failed
from registry.proxy.upstream import FAILURES, Upstream, Upstreams
from registry.store.protocol import Missing, StoreUnavailable
from registry.uploads import Uploads

_THREADS = 32  # calls that wait for an original, beside the fetches
_FETCHES = 16
_NEAR = 8 * 1024 * 1024  # bytes by which a range may be ahead of a fetch and still wait for it
_PUSHES = (("uploads", "POST"), ("upload", "PATCH"), ("upload", "PUT"), ("manifest", "PUT"))

T = TypeVar("T")


class Arrived(Exception):
    """What was to be fetched is held by now."""


class Proxy:
    """The copies in one registry. Its methods are for the event loop."""

    def __init__(
        self, settings: sections.Proxy, mirror: Mirror, uploads: Uploads, stopping: threading.Event, local: str = ""
    ) -> None:
        """`local` is the host by which clients know this registry; `stopping` is set when fetches have to end."""
        self._stopping = stopping
        self._upstreams = Upstreams(settings.upstreams)
        self._mirror, self._uploads = mirror, uploads
        self._spool = settings.spool
        self._local = local.lower()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="proxy")
        self._fetchers = ThreadPoolExecutor(_FETCHES, thread_name_prefix="proxy-fetch")
        self._running: dict[object, asyncio.Future[Any]] = {}
        self._fetches: dict[tuple[str, Digest], Fetch] = {}

    def localized(self, route: Route, namespace: str | None) -> Route:
        """The route that a request means which names the registry it would really like to ask (containerd's ``ns``).
        Raises `RegistryError` for a registry that no copies are made of."""
        if not namespace or not route.name or namespace.lower() == self._local:
            return route
        upstream = self._upstreams.of_namespace(namespace)
        if upstream is None:
            raise RegistryError(404, "NAME_UNKNOWN", f"no copies of {namespace[:80]!r} are kept here")
        return replace(route, name=f"{upstream.prefix}/{route.name}")

    def check(self, request: Request, route: Route) -> None:
        """That a request does not push into a copy. Raises `RegistryError`."""
        upstream = self._upstreams.of(route.name)
        if upstream is not None and (route.endpoint, request.method) in _PUSHES:
            raise RegistryError(
                405,
                "UNSUPPORTED",
                f"{route.name} is a copy of what {upstream.url} has: push there",
                {"Allow": "GET, HEAD"},
            )

    async def manifest(self, name: str, reference: str) -> str | None:
        """Have a manifest or tag of a copy as the original has it; a warning if that could not be asked. Raises
        `Missing`, `UpstreamAway`, `UpstreamRefuses`."""
        upstream = self._upstreams.of(name)
        if upstream is None:
            return None
        if ":" in reference:
            digest = Digest.parse(reference)
            await self._once(("manifest", name, digest), self._mirror.bring_manifest, upstream, name, digest)
            return None
        if not is_tag(reference):
            raise Missing("no such tag")
        return await self._once(("tag", name, reference), self._mirror.bring_tag, upstream, name, reference)

    async def tags(self, name: str) -> Listing[str] | None:
        """The tags of a copy; None if the repository is none. Raises `Missing`, `UpstreamAway`, `UpstreamRefuses`."""
        upstream = self._upstreams.of(name)
        if upstream is None:
            return None
        return await self._once(("tags", name), self._mirror.tags, upstream, name)

    async def referrers(self, name: str, subject: Digest) -> Listing[Descriptor] | None:
        """What refers to a manifest of a copy; None if the repository is none."""
        upstream = self._upstreams.of(name)
        if upstream is None:
            return None
        return await self._once(("referrers", name, subject), self._mirror.referrers, upstream, name, subject)

    async def blob(self, request: Request, name: str, digest: Digest) -> Response | None:
        """A blob that is not held, while it is fetched; None if the original has none either. Raises `Arrived` if it
        has come meanwhile, `UpstreamAway`, `UpstreamRefuses`."""
        upstream = self._upstreams.of(name)
        if upstream is None:
            return None
        fetch = self._fetches.get((name, digest))
        size = fetch.size if fetch is not None else await self._size(upstream, name, digest)
        if size is None:
            return None
        headers = {
            "Docker-Content-Digest": str(digest),
            "Content-Type": "application/octet-stream",
            "Accept-Ranges": "bytes",
            "ETag": f'"{digest}"',
        }
        whole = {"Location": f"/v2/{name}/blobs/{digest}"}
        if request.method == "HEAD":
            return Response(None, 200, {**headers, **whole, "Content-Length": str(size)})
        try:
            part = ranges.requested(conditions.wanted_range(request, headers["ETag"]), size)
        except ranges.Unsatisfiable:
            raise RegistryError(
                416, "SIZE_INVALID", "no byte is in the range", {"Content-Range": f"bytes */{size}"}
            ) from None
        if fetch is None and await self._work(self._mirror.holds_blob, name, digest):
            raise Arrived
        fetch = self._fetches.get((name, digest)) or self._begin(upstream, name, blob_of(digest, size))
        if part is None:
            if not await self._comes(upstream, fetch, 0):
                return None
            return Following(fetch, 0, size, 200, {**headers, **whole})
        start, length = part
        headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{size}"
        if start > fetch.come + _NEAR:
            passing = await self._pass(upstream, name, fetch.descriptor, start, length, headers)
            if passing is not None:
                return passing
        if not await self._comes(upstream, fetch, start):
            return None
        return Following(fetch, start, length, 206, headers)

    async def _comes(self, upstream: Upstream, fetch: Fetch, position: int) -> bool:
        """Wait for the first byte: until then a failure has a status of its own. False if there is no such blob."""
        try:
            if position < fetch.size:
                await fetch.beyond(position)
        except NotFound:
            return False
        except FAILURES as error:
            if isinstance(error, StoreUnavailable):
                raise
            raise failed(upstream, error) from None
        return True

    async def _size(self, upstream: Upstream, name: str, digest: Digest) -> int | None:
        def ask() -> int | None:
            if upstream.is_away:
                raise away(upstream)
            try:
                size = upstream.repository(name).blob_size(digest)
            except FAILURES as error:
                raise failed(upstream, error) from None
            upstream.answered()
            return size

        return await self._once(("size", name, digest), ask)

    def _begin(self, upstream: Upstream, name: str, blob: Descriptor) -> Fetch:
        """Fetch a blob. To be called without an await since it was found that nobody does."""
        key = name, blob.digest

        def ended() -> None:
            del self._fetches[key]

        fetch = self._fetches[key] = Fetch(blob, self._spool, self._stopping, ended)

        def open_ingest() -> Any:
            self._mirror.mark(name)
            return self._uploads.receive_whole(name, blob.digest, blob.size)

        self._fetchers.submit(fetch.run, upstream.repository(name).blob_source(blob), open_ingest)
        return fetch

    async def _pass(
        self, upstream: Upstream, name: str, blob: Descriptor, start: int, length: int, headers: dict[str, str]
    ) -> Response | None:
        """A range straight from the original; None if it has no ranges."""
        stack = ExitStack()
        source = upstream.repository(name).blob_source(blob)
        try:
            reader = await self._work(stack.enter_context, source.range(start, length))
        except NoRanges:
            return None
        except FAILURES as error:
            raise failed(upstream, error) from None
        return Passing(reader, stack.close, self._work, length, headers)

    def _work(self, call: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._pool, call, *arguments)

    async def _once(self, key: object, call: Callable[..., T], *arguments: Any) -> T:
        """What a call returns or raises; all that ask for the same at a time share one call."""
        running = self._running.get(key)
        if running is None:
            running = self._running[key] = self._work(call, *arguments)
            running.add_done_callback(lambda done: self._ended(key, done))
        return await asyncio.shield(running)

    def _ended(self, key: object, done: asyncio.Future[Any]) -> None:
        del self._running[key]
        if not done.cancelled():
            done.exception()  # those who waited may all have gone
