"""Blobs: one record for the whole registry, one link for each repository that may serve it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from artifact.digest import Digest, Hasher
from registry import keys
from registry.store.protocol import Conflict, Missing, ObjectStore, StoreUnavailable

_READ = 1024 * 1024


@dataclass(frozen=True)
class BlobRecord:
    """Where a blob's bytes lie, and how many they are."""

    data: str
    size: int

    def to_bytes(self) -> bytes:
        return json.dumps({"data": self.data, "size": self.size}, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, raw: bytes) -> BlobRecord:
        """Read a record. Raises `StoreUnavailable` if it is damaged: that is not the client's doing."""
        try:
            value = json.loads(raw)
            data, size = value["data"], value["size"]
        except (ValueError, KeyError, TypeError):
            raise StoreUnavailable("a blob record in the store is damaged: run registry fsck") from None
        if not isinstance(data, str) or not data.startswith(keys.DATA) or not isinstance(size, int) or size < 0:
            raise StoreUnavailable("a blob record in the store is damaged: run registry fsck")
        return cls(data, size)


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

    def mount(self, name: str, digest: Digest, origin: str | None) -> bool:
        """Let a repository serve a blob that `origin` serves, or any repository if None. False if none does."""
        try:
            if origin is None:
                self.record(digest)
            else:
                self.find(origin, digest)
        except Missing:
            return False
        self.link(name, digest)
        return True

    def link(self, name: str, digest: Digest) -> None:
        """Let a repository serve a blob."""
        self._store.put(keys.blob(name, digest), b"{}")

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
            if theirs == mine or self._intact(theirs, size):
                break
            try:
                self._store.put(key, mine.to_bytes(), if_match=existing.etag)
                break
            except Conflict:
                continue
        self.link(name, digest)
        if self.record(digest) != mine:
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
