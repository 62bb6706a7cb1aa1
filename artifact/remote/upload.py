"""Writing blobs to a registry. Source: distribution-spec, "Pushing blobs".

A small blob goes in one PUT. A large one goes in PATCHes of bounded size, so that a broken connection or a dead server
costs one of them at most; where the registry refuses a second PATCH, the whole blob goes in one PUT. The chunks of one
blob go over one connection, one after the other: the specification has them in order, as has their hash.

Where the registry announces it (docs/registry.md, "Composing a blob from blobs that are there"), what it has in other
blobs is named instead of sent. Whatever goes wrong with that, the bytes are sent after all.
"""

from __future__ import annotations

from contextlib import closing, suppress

from artifact.descriptor import Descriptor
from artifact.errors import DigestMismatch, NotFound, ServerError, StowageError, Unauthorized, Unreachable
from artifact.progress import Progress
from artifact.remote.answer import Response
from artifact.remote.chunks import (
    ATTEMPTS,
    CHUNK,
    OCTETS,
    RANGES,
    Chunk,
    ChunkSize,
    Patience,
    Sent,
    SessionLost,
    composes,
    location_of,
    received,
    with_digest,
)
from artifact.remote.composition import Composition, document
from artifact.remote.sessions import UploadSession
from artifact.remote.transport import Busy, Transport
from artifact.source import Source


class BlobUpload:
    """The upload of one blob to one repository."""

    def __init__(
        self,
        transport: Transport,
        name: str,
        descriptor: Descriptor,
        source: Source,
        progress: Progress,
        composition: Composition | None = None,
    ) -> None:
        self._transport = transport
        self._name = name
        self._descriptor = descriptor
        self._source = source
        self._progress = progress
        self._label = str(descriptor.digest)
        self._session = UploadSession(f"{transport.base}/{name}", descriptor.digest)
        self._chunk = ChunkSize()
        self._composition = composition
        self._composed = False
        self._uncomposed = 0  # requests to take something from elsewhere that were refused
        others = composition.repositories if composition is not None else ()
        self._scope = " ".join((f"repository:{name}:pull,push", *(f"repository:{other}:pull" for other in others)))
        self._sent = Sent(progress, self._label, self._travelled)

    def run(self) -> None:
        """Send the blob. Raises `DigestMismatch` if the registry finds other bytes, `Unreachable` if it stays away."""
        with closing(self._session):
            while True:
                try:
                    self._send()
                    break
                except DigestMismatch:
                    self._session.forget()  # or the next push would go on with these bytes
                    if not self._composed:
                        raise
                    # What an index says of blobs that are there is not so.
                    self._composition, self._composed = None, False
            self._session.forget()
        self._progress.finish(self._label)

    def _send(self) -> None:
        if self._descriptor.size <= CHUNK and self._composition is None:
            self._progress.begin(self._label, self._descriptor.size)
            return self._put_whole()
        try:
            self._send_chunks()
        except ServerError:  # a registry that takes no second PATCH: everything at once
            self._composition = None
            self._sent.stands_at(0)
            self._put_whole()

    def _travelled(self, done: int) -> int:
        return done if self._composition is None else self._composition.travelled(done)

    def _begin(self) -> str:
        response = self._request("POST", f"/v2/{self._name}/blobs/uploads/", (202,), headers={"Content-Length": "0"})
        self._chunk.heed(response)
        return self._goes_on(response)

    def _goes_on(self, response: Response) -> str:
        """Where an upload goes on; without taking anything from elsewhere if the registry does not offer that."""
        if not composes(response):
            self._composition = None
        return location_of(response, self._transport)

    def _put_whole(self) -> None:
        size, patience = self._descriptor.size, Patience()
        while True:
            try:
                self._request(
                    "PUT", with_digest(self._begin(), self._descriptor.digest), (201,),
                    headers={**OCTETS, "Content-Length": str(size)}, body=self._part(0, size),
                )  # fmt: skip
                return
            except (Unreachable, SessionLost) as error:
                patience.bear(error)
                if self._is_there():
                    return

    def _send_chunks(self) -> None:
        digest, size, patience = self._descriptor.digest, self._descriptor.size, Patience()
        location, done, begun = "", 0, False
        self._session.claim()
        while True:
            try:
                if not location:
                    location, done = self._resume() or (self._begin(), 0)
                elif done < size:
                    location, done = self._send_some(location, done)
                    patience.headway()
                else:
                    self._request("PUT", with_digest(location, digest), (201,), headers={"Content-Length": "0"})
                    return
            except (Unreachable, SessionLost) as error:
                self._chunk.shrink()
                patience.bear(error)
                if location and done == size and self._is_there():
                    return
                location = ""  # where it stands is for the registry to say
                continue
            if not begun:
                self._progress.begin(self._label, self._travelled(size))
                begun = True
            self._session.put(location)
            self._sent.stands_at(done)

    def _is_there(self) -> bool:
        """Whether the registry has the blob: the answer that said so may be what was lost."""
        with suppress(StowageError):
            self._request("HEAD", f"/v2/{self._name}/blobs/{self._descriptor.digest}", (200,))
            return True
        return False

    def _send_some(self, location: str, done: int) -> tuple[str, int]:
        """One request; where the upload goes on and how far it is then."""
        end, pieces = (self._descriptor.size, []) if self._composition is None else self._composition.step(done)
        if pieces:
            try:
                response = self._request(
                    "PATCH",
                    location,
                    (202,),
                    headers={**RANGES, "Content-Range": f"{done}-{end - 1}"},
                    ranges=document(pieces),
                )
                self._composed = True
                return location_of(response, self._transport), end
            except (Busy, ServerError, Unauthorized) as error:  # a blob went, or may not be read
                self._uncomposed += 1
                if isinstance(error, Busy) and self._uncomposed < ATTEMPTS:
                    raise
                self._composition = None
                return self._resume() or (self._begin(), 0)
        end = min(end, done + self._chunk.count)
        headers = {**OCTETS, "Content-Length": str(end - done), "Content-Range": f"{done}-{end - 1}"}
        try:
            response = self._request("PATCH", location, (202,), headers=headers, body=self._part(done, end))
            return location_of(response, self._transport), end
        except SessionLost:
            raise
        except ServerError:
            if self._chunk.shrink():  # a proxy may take no request as large
                return self._resume() or (self._begin(), 0)
            raise

    def _resume(self) -> tuple[str, int] | None:
        """Where an upload begun earlier stands: its location and how many bytes the registry has of it."""
        location = self._session.location
        if location is None:
            return None
        try:
            response = self._request("GET", location, (204,))
            done = received(response)
            if done > self._descriptor.size:
                return None
            return self._goes_on(response), done
        except (NotFound, ServerError):
            self._session.forget()
            return None

    def _request(
        self, method: str, url: str, expect: tuple[int, ...], *, headers: dict[str, str] | None = None,
        body: Chunk | None = None, ranges: bytes | None = None,
    ) -> Response:  # fmt: skip
        what = f"blob {self._descriptor.digest.short} of {self._name}"
        sends = method in ("PATCH", "PUT")
        try:
            response = self._transport.request(
                method, url, scope=self._scope, expect=(*expect, 404) if sends else expect, headers=headers,
                body=body or ranges, retry=method == "POST", what=what,
            )  # fmt: skip
            if sends and response.status == 404:
                raise SessionLost(f"{self._transport.host} no longer knows the upload of {what}: push again")
            return response
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

    def _part(self, start: int, end: int) -> Chunk:
        ended = DigestMismatch(f"{self._label}: the source ended early: it changed meanwhile")
        return Chunk(self._source, start, end, self._sent, ended)
