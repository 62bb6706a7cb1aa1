"""Blobs: one record for the whole registry, one link for each repository that may serve it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from artifact.digest import Digest, Hasher
from registry import keys
from registry.condemned import Condemned
from registry.store.protocol import Conflict, Missing, ObjectStore, StoreUnavailable

_READ = 1024 * 1024

PRESIGNED_SECONDS = 20 * 60
"""How long a URL that lets a client read a blob from the store itself is good for."""

PLAIN_LINK = b"{}"
"""A link that the garbage collector has not marked."""


@dataclass(frozen=True)
class BlobRecord:
    """Where a blob's bytes lie, how many they are, and whether the garbage collector has condemned them."""

    data: str
    size: int
    condemned: Condemned | None = None

    def to_bytes(self) -> bytes:
        value: dict[str, Any] = {"data": self.data, "size": self.size}
        if self.condemned:
            value["condemned"] = self.condemned.to_json()
        return json.dumps(value, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, raw: bytes) -> BlobRecord:
        """Read a record. Raises `StoreUnavailable` if it is damaged: that is not the client's doing."""
        try:
            value = json.loads(raw)
            data, size = value["data"], value["size"]
            condemned = Condemned.from_json(value.get("condemned"))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise StoreUnavailable("a blob record in the store is damaged: run registry fsck") from None
        if not isinstance(data, str) or not data.startswith(keys.DATA) or not isinstance(size, int) or size < 0:
            raise StoreUnavailable("a blob record in the store is damaged: run registry fsck")
        return cls(data, size, condemned)


def link_bytes(condemned: Condemned | None) -> bytes:
    """The content of a link."""
    return PLAIN_LINK if condemned is None else json.dumps({"condemned": condemned.to_json()}).encode()


def link_mark(raw: bytes) -> Condemned | None:
    """The mark on a link. Raises `StoreUnavailable` if the link is damaged."""
    try:
        return None if raw == PLAIN_LINK else Condemned.from_json(json.loads(raw)["condemned"])
    except (ValueError, KeyError, TypeError):
        raise StoreUnavailable("a blob link in the store is damaged: run registry fsck") from None


class Blobs:
    """The blobs of every repository."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def find(self, name: str, digest: Digest) -> BlobRecord:
        """The record of a blob that this repository may serve. Raises `Missing`. The link is looked at first and
        each time: a blob deleted here must not reappear because another repository has it (CVE-2026-35172)."""
        self._store.get(keys.blob(name, digest))
        return self.record(digest)

    def record(self, digest: Digest) -> BlobRecord:
        """The record of a blob, whoever may serve it. Raises `Missing`."""
        return BlobRecord.from_bytes(self._store.get(keys.record(digest)).data)

    def claim(self, name: str, digest: Digest) -> BlobRecord:
        """As `find`, for a caller that relies on the blob's staying: a mark of the garbage collector is taken off."""
        key = keys.blob(name, digest)
        while (found := self._store.get(key)).data != PLAIN_LINK:
            try:
                self._store.put(key, PLAIN_LINK, if_match=found.etag)
                break
            except Conflict:
                continue
        return self._claim_record(digest)

    def _claim_record(self, digest: Digest) -> BlobRecord:
        key = keys.record(digest)
        while True:
            found = self._store.get(key)
            record = BlobRecord.from_bytes(found.data)
            if record.condemned is None:
                return record
            record = replace(record, condemned=None)
            try:
                self._store.put(key, record.to_bytes(), if_match=found.etag)
                return record
            except Conflict:
                continue

    def mount(self, name: str, digest: Digest, origin: str | None) -> bool:
        """Let a repository serve a blob that `origin` serves, or any repository if None. False if none does."""
        try:
            if origin is None:
                self._claim_record(digest)
            else:
                self.claim(origin, digest)
        except Missing:
            return False
        self.link(name, digest)
        return True

    def link(self, name: str, digest: Digest) -> None:
        """Let a repository serve a blob."""
        self._store.put(keys.blob(name, digest), PLAIN_LINK)

    def unlink(self, name: str, digest: Digest) -> None:
        """Stop a repository from serving a blob. The bytes stay until they are collected. Raises `Missing`."""
        self.find(name, digest)
        self._store.delete(keys.blob(name, digest))

    def commit(self, name: str, digest: Digest, data: str, size: int) -> None:
        """Make the bytes under the key `data`, which have been checked, a blob that the repository serves.

        If the blob exists already its bytes are kept and these are removed; if its bytes are gone or cut short, these
        take their place.
        """
        key, mine = keys.record(digest), BlobRecord(data, size)
        while True:
            try:
                self._store.put(key, mine.to_bytes(), if_none_match=True)
                break
            except Conflict:
                pass
            try:
                existing = self._store.get(key)
            except Missing:
                continue
            theirs = BlobRecord.from_bytes(existing.data)
            kept = replace(theirs, condemned=None) if theirs.data == data or self._intact(theirs, size) else mine
            if kept == theirs:
                break
            try:
                self._store.put(key, kept.to_bytes(), if_match=existing.etag)
                break
            except Conflict:
                continue
        self.link(name, digest)
        if self.record(digest).data != data:
            self._store.delete(data)

    def _intact(self, record: BlobRecord, size: int) -> bool:
        try:
            return record.size == size == self._store.head(record.data).size
        except Missing:
            return False

    def read(self, record: BlobRecord, limit: int) -> bytes:
        """The bytes of a small blob. Raises `Missing` if they are gone, `ValueError` if they are more than `limit`."""
        if record.size > limit:
            raise ValueError(f"blob is larger than {limit} bytes")
        stream = self._store.read(record.data, 0, record.size)
        try:
            parts = []
            while part := stream.read(_READ):
                parts.append(part)
        finally:
            stream.close()
        return b"".join(parts)


def hash_object(store: ObjectStore, key: str, size: int, hasher: Hasher) -> int:
    """Feed an object to `hasher`; return how many bytes it had, at most `size`. Raises `Missing`."""
    stream = store.read(key, 0, size)
    count = 0
    try:
        while part := stream.read(_READ):
            hasher.update(part)
            count += len(part)
    finally:
        stream.close()
    return count
