"""Uploading a blob whose digest nobody knows before its last byte. Source: distribution-spec, "Pushing blobs".

The upload is begun without a name, the bytes go in PATCHes of bounded size and are hashed on their way, and the digest
closes it. A source is read again only where the way to the registry broke.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from artifact.digest import Digest
from artifact.errors import Malformed, NotFound, ServerError, StowageError, Unreachable
from artifact.progress import Progress
from artifact.remote.answer import Response
from artifact.remote.chunks import (
    OCTETS,
    Chunk,
    ChunkSize,
    Patience,
    Sent,
    SessionLost,
    location_of,
    received,
    with_digest,
)
from artifact.remote.transport import Transport
from artifact.source import Reader, Source

_SKIP = 1024 * 1024


class OneRequestOnly(StowageError):
    """The registry takes no blob in pieces: it has to be told the digest first."""


class Hashed:
    """A source whose bytes are hashed when they are read for the first time; from `position` on they are unread."""

    def __init__(self, name: str, source: Source, size: int) -> None:
        self.position = 0
        self._name, self._source, self._size = name, source, size
        self._hasher = hashlib.sha256()

    @contextmanager
    def __call__(self, offset: int) -> Iterator[Reader]:
        with self._source(offset) as reader:
            yield _HashingReader(self, reader, offset)

    def saw(self, offset: int, data: memoryview) -> None:
        """`data` was read at `offset`."""
        fresh = data[self.position - offset :] if offset < self.position else data
        self._hasher.update(fresh)
        self.position += len(fresh)

    def digest(self) -> Digest:
        """The digest of all bytes; those that nobody has read are read now. Raises `Malformed` if there are others
        than there were."""
        buffer = memoryview(bytearray(_SKIP))
        with self(self.position) as reader:
            while reader.readinto(buffer):
                pass
        if self.position != self._size:
            raise Malformed(f"{self._name}: changed while it was packed; pack again when it is still")
        return Digest.from_hasher("sha256", self._hasher)


class _HashingReader:
    def __init__(self, source: Hashed, reader: Reader, offset: int) -> None:
        self._source, self._reader, self._offset = source, reader, offset

    def readinto(self, buffer: memoryview, /) -> int:
        count = self._reader.readinto(buffer) or 0
        self._source.saw(self._offset, buffer[:count])
        self._offset += count
        return count


class UnnamedUpload:
    """The upload of the `size` bytes of `source` to the repository `repository`; `name` is for progress."""

    def __init__(
        self, transport: Transport, repository: str, name: str, size: int, source: Hashed, progress: Progress
    ) -> None:
        self._transport, self._repository = transport, repository
        self._name, self._size, self._source = name, size, source
        self._progress, self._sent = progress, Sent(progress, name)
        self._chunk = ChunkSize()
        self._location = ""

    def run(self) -> Digest:
        """Send the blob; the digest it is stored under. Raises `Unreachable` if the registry stays away,
        `OneRequestOnly` if it takes no pieces."""
        self._progress.begin(self._name, self._size)
        self._location = self._begin()
        try:
            digest = self._send()
        except ServerError as error:
            self._sent.stands_at(0)
            raise OneRequestOnly(str(error)) from None
        except Unreachable:
            raise
        except BaseException:  # what was sent is of no use to anyone
            with suppress(Exception):
                self._request("DELETE", self._location, (204, 202, 200), {})
            raise
        self._progress.finish(self._name)
        return digest

    def _send(self) -> Digest:
        done, lost, patience = 0, False, Patience()
        while True:
            try:
                if lost:
                    done, lost = self._stands(), False
                elif done < self._size:
                    done = self._send_some(done)
                    patience.headway()
                else:
                    digest = self._source.digest()
                    self._request("PUT", with_digest(self._location, digest), (201,), {"Content-Length": "0"})
                    return digest
            except (Unreachable, SessionLost) as error:
                self._chunk.shrink()
                patience.bear(error)
                if done == self._size and self._is_there(digest := self._source.digest()):
                    return digest
                lost = True
            except ServerError:
                if not self._chunk.shrink():  # a proxy may take no request as large
                    raise
                lost = True
            self._sent.stands_at(done)

    def _send_some(self, done: int) -> int:
        """One request; how far the upload is then."""
        end = min(done + self._chunk.count, self._size)
        headers = {**OCTETS, "Content-Length": str(end - done), "Content-Range": f"{done}-{end - 1}"}
        body = self._part(done, end)
        try:
            self._location = location_of(self._request("PATCH", self._location, (202,), headers, body), self._transport)
        finally:
            body.close()
        return end

    def _stands(self) -> int:
        """How far the registry got, and from now on where it goes on; from nothing if it does not know."""
        try:
            response = self._request("GET", self._location, (204,), {})
            self._location, done = location_of(response, self._transport), received(response)
            if done <= self._size:
                return done
        except (NotFound, ServerError):
            pass
        self._location = self._begin()
        return 0

    def _is_there(self, digest: Digest) -> bool:
        """Whether the registry has the blob: the answer that said so may be what was lost."""
        with suppress(StowageError):
            self._request("HEAD", f"/v2/{self._repository}/blobs/{digest}", (200,), {})
            return True
        return False

    def _begin(self) -> str:
        response = self._request("POST", f"/v2/{self._repository}/blobs/uploads/", (202,), {"Content-Length": "0"})
        self._chunk.heed(response)
        return location_of(response, self._transport)

    def _request(
        self, method: str, url: str, expect: tuple[int, ...], headers: dict[str, str], body: Chunk | None = None
    ) -> Response:
        what = f"{self._name} for {self._repository}"
        sends = method in ("PATCH", "PUT")
        response = self._transport.request(
            method, url, scope=f"repository:{self._repository}:pull,push", expect=(*expect, 404) if sends else expect,
            headers=headers, body=body, retry=method == "POST", what=what,
        )  # fmt: skip
        if sends and response.status == 404:
            raise SessionLost(f"{self._transport.host} no longer knows the upload of {what}")
        return response

    def _part(self, start: int, end: int) -> Chunk:
        ended = Malformed(f"{self._name}: changed while it was packed; pack again when it is still")
        return Chunk(self._source, start, end, self._sent, ended)
