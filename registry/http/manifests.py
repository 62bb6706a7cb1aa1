"""GET, HEAD, PUT and DELETE of manifests. Source: distribution-spec, "Pulling manifests", "Pushing Manifests"."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from artifact.digest import Digest
from artifact.errors import DigestMismatch
from artifact.manifest import MAX_BYTES
from artifact.reference import is_tag
from registry.admission import admit
from registry.blobs import Blobs
from registry.http.errors import RegistryError, manifest_unknown
from registry.manifests import Manifests, StoredManifest, read_manifest
from registry.referrers import Referrers
from registry.store.protocol import Missing
from registry.tags import Tags

MAX_TAGS = 100
"""Most tags that one push of a manifest may set."""


class ManifestEndpoints:
    """Manifests, and the tags that point at them."""

    def __init__(self, blobs: Blobs, manifests: Manifests, tags: Tags, referrers: Referrers) -> None:
        self._blobs = blobs
        self._manifests = manifests
        self._tags = tags
        self._referrers = referrers

    async def get(self, request: Request, name: str, rest: str) -> Response:
        """GET and HEAD, whatever the Accept header says: there is one representation."""
        try:
            manifest = await asyncio.to_thread(self._manifests.find, name, rest)
        except Missing:
            raise manifest_unknown(name, rest) from None
        headers = {
            "Content-Type": manifest.media_type,
            "Docker-Content-Digest": str(manifest.digest),
            "ETag": f'"{manifest.digest}"',
            "Content-Length": str(len(manifest.raw)),
        }
        return Response(None if request.method == "HEAD" else manifest.raw, 200, headers)

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
        raw = await _read(request)
        if digest is not None and not digest.matches(raw):
            raise DigestMismatch(f"the manifest received is not {digest}")
        manifest = read_manifest(raw, content_type, digest)
        await asyncio.to_thread(self._put, name, manifest, tags)
        headers = {
            "Location": f"/v2/{name}/manifests/{manifest.digest}",
            "Docker-Content-Digest": str(manifest.digest),
        }
        if manifest.subject is not None:
            headers["OCI-Subject"] = str(manifest.subject)
        if digest is not None and tags:
            headers["OCI-Tag"] = ", ".join(tags)
        return Response(None, 201, headers)

    def _put(self, name: str, manifest: StoredManifest, tags: list[str]) -> None:
        self._manifests.check(name, manifest)
        admit(name, manifest, tags, self._blobs)
        # What makes it visible comes after what it needs: bytes, then the listing, then the tags.
        self._manifests.put(name, manifest)
        self._referrers.add(name, manifest)
        for tag in tags:
            self._tags.point(name, tag, manifest.digest)

    async def delete(self, request: Request, name: str, rest: str) -> Response:
        """DELETE of a tag, or of a manifest with the tags that point at it."""
        try:
            if ":" in rest:
                await asyncio.to_thread(self._delete, name, Digest.parse(rest))
            elif is_tag(rest):
                await asyncio.to_thread(self._tags.delete, name, rest)
            else:
                raise Missing(rest)
        except Missing:
            raise manifest_unknown(name, rest) from None
        return Response(None, 202)

    def _delete(self, name: str, digest: Digest) -> None:
        self._referrers.remove(name, self._manifests.delete(name, digest))


async def _read(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BYTES:
            raise RegistryError(413, "SIZE_INVALID", f"manifest is larger than {MAX_BYTES} bytes")
        parts.append(part)
    return b"".join(parts)
