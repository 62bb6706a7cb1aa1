"""Writing blobs to a registry. Source: distribution-spec, "Pushing blobs".

A small blob goes in one PUT. A large one goes in PATCHes of bounded size, so that a broken connection or a dead server
costs one of them at most; where the registry refuses a second PATCH, the whole blob goes in one PUT.
"""

from __future__ import annotations

import io
import re
import time
from contextlib import AbstractContextManager
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import DigestMismatch, NotFound, ServerError, Unreachable
from artifact.progress import Progress
from artifact.remote.sessions import UploadSessions
from artifact.remote.transport import Response, Transport
from artifact.source import Reader, Source

_CHUNK = 64 * 1024 * 1024
_RANGE = re.compile(r"(?:bytes=)?0-([0-9]+)")
_ATTEMPTS = 5
_OCTETS = {"Content-Type": "application/octet-stream"}


class _Chunk(io.RawIOBase):
    """The bytes of a source from `offset` to `end`, as the file object the HTTP library reads a body from."""

    def __init__(self, source: Source, offset: int, end: int, progress: Progress, name: str) -> None:
        self._opened: AbstractContextManager[Reader] = source(offset)
        self._reader = self._opened.__enter__()
        self._left = end - offset
        self._progress, self._name = progress, name
        self.sent = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = self._left if size is None or size < 0 else min(size, self._left)
        buffer = bytearray(wanted)
        count = self._reader.readinto(memoryview(buffer)) or 0 if wanted else 0
        if wanted and not count:
            raise DigestMismatch(f"{self._name}: the source ended {self._left:,} bytes early: it changed meanwhile")
        self._left -= count
        self.sent += count
        self._progress.advance(self._name, count)
        return bytes(memoryview(buffer)[:count])

    def close(self) -> None:
        if not self.closed:
            self._opened.__exit__(None, None, None)
        super().close()


class BlobUpload:
    """The upload of one blob to one repository."""

    def __init__(
        self, transport: Transport, name: str, descriptor: Descriptor, source: Source, progress: Progress
    ) -> None:
        self._transport = transport
        self._name = name
        self._descriptor = descriptor
        self._source = source
        self._progress = progress
        self._label = str(descriptor.digest)
        self._place = f"{transport.base}/{name}"
        self._sessions = UploadSessions()
        self._chunk_size = _CHUNK
        self._reported = 0

    def run(self) -> None:
        """Send the blob. Raises `DigestMismatch` if the registry finds other bytes, `Unreachable` if it stays away."""
        self._progress.begin(self._label, self._descriptor.size)
        if self._descriptor.size <= _CHUNK:
            self._put_whole()
        else:
            try:
                self._send_chunks()
            except ServerError:  # a registry that takes no second PATCH: everything at once
                self._report(0)
                self._put_whole()
        self._sessions.forget(self._place, self._descriptor.digest)
        self._progress.finish(self._label)

    def _begin(self) -> str:
        response = self._request("POST", f"/v2/{self._name}/blobs/uploads/", (202,), headers={"Content-Length": "0"})
        minimum = response.headers.get("OCI-Chunk-Min-Length", "")
        if minimum.isdecimal():
            self._chunk_size = max(_CHUNK, int(minimum))
        return self._location(response)

    def _put_whole(self) -> None:
        size, opened = self._descriptor.size, _Opened(self, 0, self._descriptor.size)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._request(
                    "PUT", with_digest(self._begin(), self._descriptor.digest), (201,),
                    headers={**_OCTETS, "Content-Length": str(size)}, body=opened,
                )  # fmt: skip
                return
            except Unreachable:
                if attempt == _ATTEMPTS:
                    raise
                time.sleep(min(0.25 * 2**attempt, 5))

    def _send_chunks(self) -> None:
        digest, size, failures = self._descriptor.digest, self._descriptor.size, 0
        location, done = self._resume() or (self._begin(), 0)
        self._sessions.put(self._place, digest, location)
        self._report(done)
        while done < size:
            end = min(done + self._chunk_size, size)
            headers = {**_OCTETS, "Content-Length": str(end - done), "Content-Range": f"{done}-{end - 1}"}
            try:
                response = self._request("PATCH", location, (202,), headers=headers, body=_Opened(self, done, end))
                location, done, failures = self._location(response), end, 0
                self._sessions.put(self._place, digest, location)
            except Unreachable:
                failures += 1
                if failures >= _ATTEMPTS:
                    raise
                time.sleep(min(0.25 * 2**failures, 5))
                location, done = self._resume() or (self._begin(), 0)
            self._report(done)
        self._request("PUT", with_digest(location, digest), (201,), headers={"Content-Length": "0"})

    def _resume(self) -> tuple[str, int] | None:
        """Where an upload begun earlier stands: its location and how many bytes the registry has of it."""
        location = self._sessions.get(self._place, self._descriptor.digest)
        if location is None:
            return None
        try:
            response = self._request("GET", location, (204,), retry=True)
            match = _RANGE.fullmatch(response.headers.get("Range", ""))
            done = int(match[1]) + 1 if match and match[1] != "0" else 0
            if done > self._descriptor.size:
                return None
            return self._location(response), done
        except (NotFound, ServerError):
            self._sessions.forget(self._place, self._descriptor.digest)
            return None

    def _location(self, response: Response) -> str:
        location = response.headers.get("Location", "")
        parts = urlsplit(location)
        if not location or (parts.netloc and parts.scheme not in ("http", "https")):
            raise ServerError(f"{self._transport.host} gave no usable upload location")
        if parts.netloc and parts.netloc.lower() == urlsplit(self._transport.base).netloc.lower():
            # The registry may not know that TLS ends in front of it: its own host is always spoken to as configured.
            return urlunsplit(("", "", parts.path, parts.query, ""))
        return location

    def _request(
        self, method: str, url: str, expect: tuple[int, ...], *, headers: dict[str, str] | None = None,
        body: _Opened | None = None, retry: bool = False,
    ) -> Response:  # fmt: skip
        try:
            return self._transport.request(
                method, url, scope=f"repository:{self._name}:pull,push", expect=expect, headers=headers, body=body,
                retry=retry or method == "POST", what=f"blob {self._descriptor.digest.short} of {self._name}",
            )  # fmt: skip
        except ServerError as error:
            if "DIGEST_INVALID" in str(error):
                raise DigestMismatch(
                    f"{self._transport.host} received other bytes than {self._descriptor.digest}: "
                    "the source changed while it was sent, or the way damages it"
                ) from None
            raise
        finally:
            if body is not None:
                body.close()

    def _report(self, done: int) -> None:
        self._progress.advance(self._label, done - self._reported)
        self._reported = done

    def open_chunk(self, start: int, end: int) -> _Chunk:
        """The body of one request, counted by the progress as it is sent."""
        return _Chunk(self._source, start, end, _Counted(self), self._label)

    def count(self, amount: int) -> None:
        """Bytes on their way, acknowledged or not."""
        self._reported += amount
        self._progress.advance(self._label, amount)


class _Counted:
    """A progress that lets the upload take back what was sent in vain."""

    def __init__(self, upload: BlobUpload) -> None:
        self._upload = upload

    def begin(self, name: str, total: int) -> None: ...

    def advance(self, name: str, count: int) -> None:
        self._upload.count(count)

    def finish(self, name: str, note: str = "") -> None: ...


class _Opened:
    """A body that is opened afresh for every attempt; each attempt takes back what the one before it counted."""

    def __init__(self, upload: BlobUpload, start: int, end: int) -> None:
        self._upload, self._start, self._end = upload, start, end
        self._chunk: _Chunk | None = None

    def __call__(self) -> _Chunk:
        self.close()
        if self._chunk is not None:
            self._upload.count(-self._chunk.sent)
        self._chunk = self._upload.open_chunk(self._start, self._end)
        return self._chunk

    def close(self) -> None:
        """Let go of the source."""
        if self._chunk is not None:
            self._chunk.close()


def with_digest(location: str, digest: Digest) -> str:
    """An upload location with the digest added to whatever query it has."""
    parts = urlsplit(location)
    query = urlencode([*parse_qsl(parts.query, keep_blank_values=True), ("digest", str(digest))])
    return urlunsplit((parts.scheme, parts.netloc, parts.path, query, ""))
