"""Uploading a blob whose digest nobody knows before its last byte. Source: distribution-spec, "Pushing blobs".

The upload is begun without a name, the bytes go in PATCHes of bounded size and are hashed on their way, and the digest
closes it. A source is read again only where the way to the registry broke.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from artifact.digest import Digest
from artifact.errors import Malformed, ServerError, StowageError, Unreachable
from artifact.progress import Progress
from artifact.remote.chunks import (
    ATTEMPTS,
    OCTETS,
    Chunk,
    ChunkSize,
    Sent,
    location_of,
    received,
    with_digest,
)
from artifact.remote.transport import Response, Transport
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

    def run(self) -> Digest:
        """Send the blob; the digest it is stored under. Raises `Unreachable` if the registry stays away,
        `OneRequestOnly` if it takes no pieces."""
        self._progress.begin(self._name, self._size)
        location = self._begin()
        try:
            location = self._send(location)
            digest = self._source.digest()
            self._request("PUT", with_digest(location, digest), (201,), {"Content-Length": "0"})
        except ServerError as error:
            self._sent.stands_at(0)
            raise OneRequestOnly(str(error)) from None
        except Unreachable:
            raise
        except BaseException:  # what was sent is of no use to anyone
            with suppress(Exception):
                self._request("DELETE", location, (204, 202, 200), {})
            raise
        self._progress.finish(self._name)
        return digest

    def _send(self, location: str) -> str:
        done, failures = 0, 0
        while done < self._size:
            end = min(done + self._chunk.count, self._size)
            headers = {**OCTETS, "Content-Length": str(end - done), "Content-Range": f"{done}-{end - 1}"}
            body = self._part(done, end)
            try:
                location = location_of(self._request("PATCH", location, (202,), headers, body), self._transport)
                done, failures = end, 0
            except ServerError:
                if not self._chunk.shrink():  # a proxy may take no request as large
                    raise
                location, done = self._stands(location)
            except Unreachable:
                self._chunk.shrink()
                failures += 1
                if failures >= ATTEMPTS:
                    raise
                time.sleep(min(0.25 * 2**failures, 5))
                location, done = self._stands(location)
            finally:
                body.close()
            self._sent.stands_at(done)
        return location

    def _stands(self, location: str) -> tuple[str, int]:
        """How far the registry got, and where it goes on; from nothing if it does not know."""
        with suppress(StowageError):
            response = self._request("GET", location, (204,), {}, retry=True)
            return location_of(response, self._transport), received(response)
        return self._begin(), 0

    def _begin(self) -> str:
        response = self._request(
            "POST", f"/v2/{self._repository}/blobs/uploads/", (202,), {"Content-Length": "0"}, retry=True
        )
        self._chunk.heed(response)
        return location_of(response, self._transport)

    def _request(
        self, method: str, url: str, expect: tuple[int, ...], headers: dict[str, str],
        body: Chunk | None = None, retry: bool = False,
    ) -> Response:  # fmt: skip
        return self._transport.request(
            method, url, scope=f"repository:{self._repository}:pull,push", expect=expect, headers=headers, body=body,
            retry=retry, what=f"{self._name} for {self._repository}",
        )  # fmt: skip

    def _part(self, start: int, end: int) -> Chunk:
        ended = Malformed(f"{self._name}: changed while it was packed; pack again when it is still")
        return Chunk(self._source, start, end, self._sent, ended)
