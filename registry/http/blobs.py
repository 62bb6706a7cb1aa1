"""GET, HEAD and DELETE of blobs. Source: distribution-spec, "Pulling blobs", "Deleting Blobs"."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from artifact.digest import Digest
from registry.blobs import PRESIGNED_SECONDS, BlobRecord, Blobs
from registry.http import conditions, ranges
from registry.http.body import StreamResponse
from registry.http.errors import RegistryError, blob_unknown
from registry.proxy.proxy import Arrived, Proxy
from registry.store.protocol import Missing, ObjectStore


@dataclass(frozen=True)
class Redirects:
    """When a GET is sent on to the store: for blobs of at least `threshold` bytes, with a URL good for `seconds`.

    What the store answers lacks ``Docker-Content-Digest``. So the threshold lies above three of the chunks that clients
    are asked for (`ObjectStore.chunk`): with blobs of that size the conformance suite asks for the header.
    """

    enabled: bool = True
    threshold: int = 16 * 1024 * 1024
    seconds: int = PRESIGNED_SECONDS


class BlobEndpoints:
    """Blobs that are there."""

    def __init__(self, store: ObjectStore, blobs: Blobs, redirects: Redirects, proxy: Proxy | None = None) -> None:
        self._proxy = proxy
        self._store = store
        self._blobs = blobs
        self._redirects = redirects

    async def get(self, request: Request, name: str, rest: str) -> Response:
        """GET and HEAD. HEAD is always answered here; a GET of a large blob may be sent on to the store."""
        digest = Digest.parse(rest)
        try:
            # HEAD is how a client finds out that it need not push: the blob must then stay for its manifest.
            look = self._blobs.claim if request.method == "HEAD" else self._blobs.find
            record = await asyncio.to_thread(look, name, digest)
        except Missing:
            try:
                coming = await self._proxy.blob(request, name, digest) if self._proxy is not None else None
            except Arrived:
                return await self.get(request, name, rest)
            if coming is not None:
                return coming
            raise blob_unknown(digest) from None
        etag = f'"{digest}"'
        headers = {
            "Docker-Content-Digest": str(digest),
            "Content-Type": "application/octet-stream",
            "Accept-Ranges": "bytes",
            "ETag": etag,
            "Cache-Control": "private, max-age=31536000, immutable",
        }
        if conditions.has_already(request, etag):
            return Response(None, 304, headers)
        # Ollama takes the answer to its first GET for the place to get the parts from, redirect or not.
        whole = {"Location": f"/v2/{name}/blobs/{digest}"}
        if request.method == "HEAD":
            return Response(None, 200, {**headers, **whole, "Content-Length": str(record.size)})
        location = await self._elsewhere(record)
        if location is not None:
            return Response(None, 307, {"Location": location, "Docker-Content-Digest": str(digest)})
        status, start, length = 200, 0, record.size
        try:
            part = ranges.requested(conditions.wanted_range(request, etag), record.size)
        except ranges.Unsatisfiable:
            raise RegistryError(
                416, "SIZE_INVALID", "no byte is in the range", {"Content-Range": f"bytes */{record.size}"}
            ) from None
        if part is None:
            headers |= whole
        else:
            status, (start, length) = 206, part
            headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{record.size}"
        try:
            stream = await asyncio.to_thread(self._store.read, record.data, start, length)
        except Missing:
            raise RegistryError(404, "BLOB_UNKNOWN", f"the bytes of {digest} are missing from the store") from None
        return StreamResponse(stream, length, status, headers)

    async def _elsewhere(self, record: BlobRecord) -> str | None:
        if not self._redirects.enabled or record.size < self._redirects.threshold:
            return None
        if record.condemned is not None:  # the collector counts on no URL being younger than its mark
            return None
        return await asyncio.to_thread(self._store.presign, record.data, self._redirects.seconds)

    async def delete(self, request: Request, name: str, rest: str) -> Response:
        """DELETE: this repository serves the blob no more."""
        digest = Digest.parse(rest)
        try:
            await asyncio.to_thread(self._blobs.unlink, name, digest)
        except Missing:
            raise blob_unknown(digest) from None
        return Response(None, 202)
