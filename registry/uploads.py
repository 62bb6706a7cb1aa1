"""Uploads: sessions that any process can continue.

A session is one small object, replaced by compare-and-swap, that says how many bytes are safe, what the hash of them
is so far, and how the store continues the data. A request that dies leaves the session as it last was; whatever it
wrote beyond that is overwritten by the next.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from artifact.digest import Digest, Hasher
from artifact.errors import DigestMismatch
from artifact.midstate import ResumableSha256, supported
from registry import keys
from registry.blobs import Blobs, hash_object
from registry.store.protocol import Conflict, Missing, ObjectStore, Stream, Writer

LIFETIME = 24 * 3600
"""How long an upload may pause, in seconds."""

DISCARDED = "discarded"
"""What `Session.closing` says of an upload whose bytes are being removed."""

_ANYBODY = "anonymous"
_CHECKPOINT = 64 * 1024 * 1024  # bytes of one request after which the session is saved in between, and then again,
_CHECKPOINT_SECONDS = 2.0  # if that is so many seconds ago: what has come since is lost if the server is killed
_LOOSE = 4 * 1024 * 1024  # and as soon as no more than these bytes would be written twice


@dataclass
class Session:
    """The saved state of an upload. `offset` is the number of bytes that are safe; `midstate` the running SHA-256 of
    them, None where it cannot be saved; `owner` the principal who
    may continue it; `closing` the digest the upload is being closed with, once every byte is
    there; `etag` names the saved version this was read from."""

    id: str
    repository: str
    expires: float
    owner: str = _ANYBODY
    offset: int = 0
    algorithm: str = "sha256"
    midstate: str | None = None
    closing: str | None = None
    writer: dict[str, Any] = field(default_factory=dict)
    etag: str = ""

    def to_bytes(self) -> bytes:
        value = {name: item for name, item in vars(self).items() if name not in ("id", "etag")}
        return json.dumps(value, separators=(",", ":")).encode()


class Uploads:
    """The uploads of every repository."""

    def __init__(self, store: ObjectStore, blobs: Blobs, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._blobs = blobs
        self._clock = clock

    def begin(self, name: str, algorithm: str = "sha256", owner: str = _ANYBODY) -> Session:
        """Start an upload into a repository, which `owner` alone may continue."""
        session = Session(keys.new_upload_id(), name, self._clock() + LIFETIME, owner, algorithm=algorithm)
        if algorithm == "sha256" and supported():
            session.midstate = ResumableSha256().state()
        session.etag = self._store.put(keys.session(session.id), session.to_bytes())
        return session

    def find(self, name: str, id_: str, owner: str = _ANYBODY) -> Session:
        """An upload of this repository and owner. Raises `Missing`, also where it belongs to another or has expired."""
        session = self.load(id_)
        if session.repository != name or session.owner != owner or session.expires < self._clock():
            raise Missing("no such upload")
        return session

    def load(self, id_: str) -> Session:
        """An upload of whichever repository, expired or not. Raises `Missing`."""
        if not keys.is_upload_id(id_):
            raise Missing("no such upload")
        found = self._store.get(keys.session(id_))
        try:
            return Session(id=id_, etag=found.etag, **json.loads(found.data))
        except (ValueError, TypeError):
            raise Missing("upload state is damaged") from None

    def expire(self, session: Session) -> None:
        """Remove an upload that has paused for too long. Its bytes stay if they are a blob's by now: a closing
        request may have died between making the record and removing the session. Raises `Conflict` if it has moved
        on."""
        if session.closing not in (None, DISCARDED):
            with suppress(Missing):
                if self._blobs.record(Digest.parse(session.closing)).data == keys.data(session.id):
                    self.forget(session)
                    return
        self._remove(session)

    def _remove(self, session: Session) -> None:
        try:
            writer = self._writer(session, None)
        except Missing:
            self.forget(session)
            return
        try:
            self.discard(session, writer)
        finally:
            writer.close()

    def receive(self, name: str, id_: str, expected: int | None = None, owner: str = _ANYBODY) -> Ingest:
        """Take an upload up to add to it. Raises what `resume` does."""
        return self.resume(self.find(name, id_, owner), expected)

    def resume(self, session: Session, expected: int | None = None) -> Ingest:
        """Take an upload up, as it was found, to add `expected` bytes to it. Raises `Busy` while another request adds
        to it, `Conflict` if one has done so, `Missing` if one has ended it."""
        total = None if expected is None else session.offset + expected
        writer = self._writer(session, total)
        try:
            if self.load(session.id).etag != session.etag:
                raise Conflict("the upload has moved on")
        except BaseException:
            writer.close()
            raise
        return Ingest(self, session, writer, _running_hash(session))

    def receive_whole(self, name: str, digest: Digest, expected: int | None = None) -> Ingest:
        """Take a blob that comes in one request, with no session to continue it by."""
        session = Session(keys.new_upload_id(), name, 0, algorithm=digest.algorithm)
        return Ingest(self, session, self._writer(session, expected), digest.hasher(), saved=False)

    def _writer(self, session: Session, expected: int | None) -> Writer:
        """Raises `Missing` if the bytes are gone, and `Conflict` if another request has moved the upload on, or adds to
        it now."""
        try:
            return self._store.writer(
                keys.data(session.id),
                scratch=keys.upload(session.id),
                offset=session.offset,
                state=session.writer,
                expected=expected,
            )
        except Missing:
            with suppress(Missing):
                if self.load(session.id).etag != session.etag:
                    raise Conflict("the upload has moved on") from None
            raise

    def read(self, key: str, offset: int, length: int) -> Stream:
        """A range of an object of the store. Raises `Missing`."""
        return self._store.read(key, offset, length)

    def save(self, session: Session) -> None:
        """Save a session over the version it was read from. Raises `Conflict` if that is no longer the one."""
        session.expires = self._clock() + LIFETIME
        session.etag = self._store.put(keys.session(session.id), session.to_bytes(), if_match=session.etag)

    def finish(self, session: Session, digest: Digest, writer: Writer) -> None:
        """Turn a sealed, checked upload into a blob. Every step can be repeated by a request that comes later."""
        writer.complete()
        self._blobs.commit(session.repository, digest, keys.data(session.id), session.offset)
        self.forget(session)

    def cancel(self, name: str, id_: str, owner: str = _ANYBODY) -> None:
        """Give an upload up and remove its bytes. Raises `Missing`, or `Conflict` while a request adds to it or once
        it is being closed: the bytes may belong to a blob by then."""
        session = self.find(name, id_, owner)
        if session.closing not in (None, DISCARDED):
            raise Conflict("the upload is being closed")
        self._remove(session)

    def discard(self, session: Session, writer: Writer) -> None:
        """Remove an upload with its bytes. Raises `Conflict` if another request has moved it on.

        The session is marked first: were it closed by another request meanwhile, the bytes would belong to a blob. It
        goes last, so that nothing is left that no session speaks of.
        """
        session.closing = DISCARDED
        self.save(session)
        writer.abort()
        self.forget(session)

    def forget(self, session: Session) -> None:
        """Remove an upload's session and scratch objects, the session last."""
        last = ""
        while page := self._store.list(keys.upload(session.id), start_after=last):
            for entry in page:
                if entry.key != keys.session(session.id):
                    self._store.delete(entry.key)
            last = page[-1].key
        self._store.delete(keys.session(session.id))

    def digest_of_data(self, session: Session, digest: Digest) -> bool:
        """Whether the stored bytes of a completed upload are what `digest` names: the way without a running hash."""
        hasher = digest.hasher()
        count = hash_object(self._store, keys.data(session.id), session.offset, hasher)
        return count == session.offset and hasher.hexdigest() == digest.hex


class Ingest:
    """The bytes of one request on their way into an upload. `hash` and `write` may run at the same time, each in a
    thread; everything else while neither runs."""

    def __init__(
        self, uploads: Uploads, session: Session, writer: Writer, hasher: Hasher | None, saved: bool = True
    ) -> None:
        self._uploads = uploads
        self.session = session
        self._writer = writer
        self._hasher = hasher
        self._saved = saved
        self._since_checkpoint = 0
        self._saved_at = float("-inf")
        self._committing = False

    def hash(self, chunks: Sequence[bytes | memoryview]) -> None:
        """Hash further bytes."""
        if self._hasher is not None:
            for chunk in chunks:
                self._hasher.update(chunk)

    def write(self, chunks: Sequence[bytes | memoryview]) -> None:
        """Write further bytes."""
        self._writer.write(chunks)

    def copyable(self, length: int) -> tuple[int, int]:
        """As `Writer.copyable`."""
        return self._writer.copyable(length)

    def copy(self, key: str, offset: int, length: int) -> None:
        """As `Writer.copy`; the bytes are to be hashed all the same."""
        self._writer.copy(key, offset, length)

    def read(self, key: str, offset: int, length: int) -> Stream:
        """Bytes of another object of the same store. Raises `Missing`."""
        return self._uploads.read(key, offset, length)

    def advance(self, count: int) -> bool:
        """Count `count` bytes, hashed and written. Whether it is time for a checkpoint."""
        self.session.offset += count
        self._since_checkpoint += count
        if not self._saved or self._since_checkpoint < _CHECKPOINT:
            return False
        return self._writer.loose <= _LOOSE and time.monotonic() - self._saved_at >= _CHECKPOINT_SECONDS

    def finish(self, digest: Digest) -> None:
        """Finish an upload whose closing request died after every byte was safe and checked."""
        self._uploads.finish(self.session, digest, self._writer)

    def checkpoint(self) -> None:
        """Make everything received so far safe, to be continued from here by any process."""
        if not self._saved:
            return
        self.session.writer = self._writer.checkpoint()
        self._save()
        self._writer.saved()

    def _save(self) -> None:
        # A hash that cannot be saved leaves none, rather than that of fewer bytes.
        self.session.midstate = self._hasher.state() if isinstance(self._hasher, ResumableSha256) else None
        self._uploads.save(self.session)
        self._since_checkpoint, self._saved_at = 0, time.monotonic()

    def commit(self, digest: Digest) -> None:
        """Close the upload: it becomes a blob if it is what `digest` names, and is removed if not, with
        `DigestMismatch`."""
        known = self._hasher is not None and self.session.algorithm == digest.algorithm
        if known and self._hasher is not None and self._hasher.hexdigest() != digest.hex:
            self._discard()
            raise DigestMismatch(f"the bytes received are not {digest}")
        self.session.writer = self._writer.seal()
        if not known:
            self._writer.complete()
            if not self._uploads.digest_of_data(self.session, digest):
                self._discard()
                raise DigestMismatch(f"the bytes received are not {digest}")
        if self._saved:
            # From here on no request may write to the data again: a record may point at it.
            self.session.closing = str(digest)
            self._save()
        self._committing = True
        self._uploads.finish(self.session, digest, self._writer)

    def _discard(self) -> None:
        if self._saved:
            self._uploads.discard(self.session, self._writer)
        else:
            self._writer.abort()

    def abandon(self) -> None:
        """Remove the bytes of an upload that has no session, unless a record may point at them already."""
        if not self._saved and not self._committing:
            self._writer.abort()

    def close(self) -> None:
        """Let go of the upload."""
        self._writer.close()


def _running_hash(session: Session) -> Hasher | None:
    if session.algorithm == "sha256":
        if session.midstate is not None and supported():
            return ResumableSha256.resume(session.midstate)
        return hashlib.sha256() if session.offset == 0 else None
    return hashlib.sha512() if session.offset == 0 else None
