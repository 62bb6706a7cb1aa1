"""Uploading blobs. Source: distribution-spec, "Pushing blobs", "Cancel a blob upload", "Mounting a blob"."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from artifact.digest import Digest
from artifact.errors import InvalidInput, Malformed
from artifact.reference import is_name
from registry import compose
from registry.access.rights import Caller, Right
from registry.blobs import Blobs
from registry.compose import Composer, Piece
from registry.http import ranges
from registry.http.body import content_length, disconnected, read_whole, receive_into
from registry.http.connection import uninterrupted
from registry.http.errors import RegistryError, upload_unknown
from registry.http.gate import caller_of
from registry.http.observed import observation_of
from registry.store.protocol import Busy, Conflict, Missing
from registry.uploads import Ingest, Session, Uploads

_WAIT = 5.0  # seconds a request waits for the one before it to let go of the upload
_PAUSE = 0.1  # seconds between two looks whether it has
_WAITERS = 4  # requests that may wait for one upload

T = TypeVar("T")


class UploadEndpoints:
    """Blobs on their way in. Clients are asked to send chunks of `chunk` bytes at least; smaller ones are taken too."""

    def __init__(self, blobs: Blobs, uploads: Uploads, chunk: int) -> None:
        self._blobs = blobs
        self._uploads = uploads
        self._chunk = chunk
        self._waiting: Counter[str] = Counter()

    async def begin(self, request: Request, name: str, rest: str) -> Response:
        """POST: mount a blob, take one whole, or begin an upload."""
        query = request.query_params
        if "mount" in query:
            digest, origin = Digest.parse(query["mount"]), query.get("from")
            if await asyncio.to_thread(self._mount, caller_of(request), name, digest, origin):
                return _created(name, digest)
        elif "digest" in query:
            return await self._whole(request, name, Digest.parse(query["digest"]))
        algorithm = query.get("digest-algorithm", "sha256")
        if algorithm not in ("sha256", "sha512"):
            raise InvalidInput(f"digest algorithm {algorithm[:40]!r} is not supported: use sha256 or sha512")
        session = await asyncio.to_thread(self._uploads.begin, name, algorithm, _owner(request))
        response = _progress(202, session)
        if self._chunk:
            response.headers["OCI-Chunk-Min-Length"] = str(self._chunk)
        return response

    def _mount(self, caller: Caller, name: str, digest: Digest, origin: str | None) -> bool:
        """Mount a blob from where the caller may read it, and from nowhere else: that it exists in a repository of
        others is not told, and it is not handed over (CVE-2024-39897)."""
        if origin is not None:
            known = is_name(origin) and caller.may(Right.PULL, origin)
            return known and self._blobs.mount(name, digest, origin)
        if caller.may_pull_everything:
            return self._blobs.mount(name, digest, None)
        return any(
            self._blobs.mount(name, digest, place) for place in [name, *caller.places] if caller.may(Right.PULL, place)
        )

    async def _whole(self, request: Request, name: str, digest: Digest) -> Response:
        ingest = await asyncio.to_thread(self._uploads.receive_whole, name, digest, content_length(request))
        try:
            await receive_into(ingest, request)
            await asyncio.to_thread(ingest.commit, digest)
        except BaseException:
            await asyncio.to_thread(ingest.abandon)
            raise
        finally:
            await asyncio.to_thread(ingest.close)
        return _created(name, digest)

    async def append(self, request: Request, name: str, rest: str) -> Response:
        """PATCH: further bytes, as a chunk with Content-Range or as a stream without, or ranges of blobs to take them
        from."""
        pieces = await self._pieces(request, name)
        length = content_length(request) if pieces is None else sum(piece.length for piece in pieces)
        ingest = await self._take_up(request, name, rest, length)
        try:
            if ingest.session.closing is not None:
                raise _out_of_order(ingest.session)
            if pieces is None:
                await self._add(request, ingest, length)
            else:
                self._expected(request, ingest, length)
                await compose_into(ingest, pieces, request)
            await asyncio.to_thread(ingest.checkpoint)
            return _progress(202, ingest.session)
        except Conflict:
            raise await self._moved_on(request, name, rest) from None
        finally:
            await asyncio.to_thread(ingest.close)

    async def close(self, request: Request, name: str, rest: str) -> Response:
        """PUT: the last bytes, if there are any left, and the digest of the whole."""
        digest = Digest.parse(request.query_params.get("digest", ""))
        length = content_length(request)
        ingest = await self._take_up(request, name, rest, length)
        try:
            if ingest.session.closing is None:
                await self._add(request, ingest, length)
                await asyncio.to_thread(ingest.commit, digest)
            elif ingest.session.closing == str(digest):
                await _drain(request.stream())
                await asyncio.to_thread(ingest.finish, digest)
            else:
                raise RegistryError(400, "DIGEST_INVALID", f"the upload is being closed as {ingest.session.closing}")
            return _created(name, digest)
        except Conflict:
            raise await self._moved_on(request, name, rest) from None
        finally:
            await asyncio.to_thread(ingest.close)

    async def _pieces(self, request: Request, name: str) -> list[Piece] | None:
        """What a PATCH wants to be taken from blobs that are there; None if it brings bytes."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != compose.MEDIA_TYPE:
            return None
        raw = await read_whole(request, compose.MAX_BODY, "list of ranges")
        observation_of(request.scope).received += len(raw)
        try:
            wanted = await asyncio.to_thread(compose.parse, raw, name)
            return await asyncio.to_thread(compose.resolve, wanted, self._blobs, caller_of(request))
        except compose.OutOfRange as error:
            raise RegistryError(400, "SIZE_INVALID", str(error)) from None
        except Malformed as error:
            raise RegistryError(400, "BLOB_UPLOAD_INVALID", str(error)) from None
        except compose.UnknownSource as error:
            raise RegistryError(404, "BLOB_UNKNOWN", str(error)) from None

    async def _take_up(self, request: Request, name: str, id_: str, length: int | None) -> Ingest:
        try:
            session = await asyncio.to_thread(self._uploads.find, name, id_, _owner(request))
            return await self._once_free(id_, self._uploads.resume, session, length)
        except Missing:
            raise upload_unknown() from None
        except Conflict:
            raise await self._moved_on(request, name, id_) from None

    async def _once_free(self, id_: str, call: Callable[..., T], *arguments: Any) -> T:
        """The result of a call about an upload that another request may still hold: one whose client has gone lets go
        of it in a moment. It is waited for here, and not in a thread that others need. Raises `Busy`."""
        try:
            return await asyncio.to_thread(call, *arguments)
        except Busy:
            if self._waiting[id_] >= _WAITERS:
                raise
        self._waiting[id_] += 1
        try:
            for _ in range(round(_WAIT / _PAUSE) - 1):
                await asyncio.sleep(_PAUSE)
                with suppress(Busy):
                    return await asyncio.to_thread(call, *arguments)
            return await asyncio.to_thread(call, *arguments)
        finally:
            self._waiting[id_] -= 1
            if not self._waiting[id_]:
                del self._waiting[id_]

    async def _moved_on(self, request: Request, name: str, id_: str) -> RegistryError:
        """The answer where another request got there first: where the upload stands now."""
        try:
            return _out_of_order(await asyncio.to_thread(self._uploads.find, name, id_, _owner(request)))
        except Missing:
            return upload_unknown()

    async def _add(self, request: Request, ingest: Ingest, length: int | None) -> None:
        expected = self._expected(request, ingest, length)
        received = await receive_into(ingest, request)
        if expected is not None and received != expected:
            raise _wrong_size(expected, received)

    def _expected(self, request: Request, ingest: Ingest, length: int | None) -> int | None:
        """How many bytes a chunk says that it has: they must begin where the upload stands, and be `length`."""
        header = request.headers.get("content-range")
        if header is None:
            return None
        try:
            start, expected = ranges.chunk(header)
        except ValueError as error:
            raise RegistryError(416, "BLOB_UPLOAD_INVALID", str(error)) from None
        if start != ingest.session.offset:
            raise _out_of_order(ingest.session)
        if length is not None and length != expected:
            raise _wrong_size(expected, length)
        return expected

    async def status(self, request: Request, name: str, rest: str) -> Response:
        """GET: how far the upload is."""
        try:
            return _progress(204, await asyncio.to_thread(self._uploads.find, name, rest, _owner(request)))
        except Missing:
            raise upload_unknown() from None

    async def cancel(self, request: Request, name: str, rest: str) -> Response:
        """DELETE: give the upload up."""
        try:
            await self._once_free(rest, self._uploads.cancel, name, rest, _owner(request))
        except Missing:
            raise upload_unknown() from None
        except Conflict as error:
            raise RegistryError(400, "BLOB_UPLOAD_INVALID", str(error)) from None
        return Response(None, 204)


def _owner(request: Request) -> str:
    return caller_of(request).principal.name


async def compose_into(ingest: Ingest, pieces: list[Piece], request: Request) -> None:
    """Take bytes of blobs that are there into an upload. When the client disappears, what has been taken so far is
    kept for it to continue."""
    gone = asyncio.ensure_future(disconnected(request.receive))
    composer = Composer(ingest, pieces)
    try:
        with observation_of(request.scope).receiving():
            while count := await uninterrupted(composer.step):
                if ingest.advance(count) or gone.done():
                    await asyncio.to_thread(ingest.checkpoint)
                if gone.done():
                    raise ClientDisconnect
    except Missing:
        raise RegistryError(404, "BLOB_UNKNOWN", "bytes to compose from are gone from the store") from None
    finally:
        gone.cancel()
        await asyncio.to_thread(composer.close)


async def _drain(stream: AsyncIterator[bytes]) -> None:
    try:
        async for _ in stream:
            pass
    except ClientDisconnect:
        return


def _location(session: Session) -> str:
    return f"/v2/{session.repository}/blobs/uploads/{session.id}"


def _progress(status: int, session: Session) -> Response:
    headers = {
        "Location": _location(session),
        "Range": f"0-{max(session.offset - 1, 0)}",
        "Docker-Upload-UUID": session.id,
        "Cache-Control": "no-store",
        **compose.HEADER,
    }
    return Response(None, status, headers)


def _created(name: str, digest: Digest) -> Response:
    return Response(None, 201, {"Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": str(digest)})


def _out_of_order(session: Session) -> RegistryError:
    message = f"the upload stands at {session.offset} bytes: continue from there"
    headers = {"Location": _location(session), "Range": f"0-{max(session.offset - 1, 0)}"}
    return RegistryError(416, "BLOB_UPLOAD_INVALID", message, headers)


def _wrong_size(expected: int, received: int) -> RegistryError:
    return RegistryError(400, "SIZE_INVALID", f"the range says {expected} bytes, {received} were sent")
