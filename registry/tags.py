"""Tags: small objects that hold a digest, replaced by compare-and-swap."""

from __future__ import annotations

from collections.abc import Callable

from artifact.digest import Digest
from artifact.errors import InvalidInput
from registry import keys
from registry.store.protocol import Conflict, Missing, ObjectStore, StoreUnavailable


class Tags:
    """The tags of every repository."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def resolve(self, name: str, tag: str) -> Digest:
        """The digest a tag points at. Raises `Missing`."""
        return _digest(self._store.get(keys.tag(name, tag)).data)

    def point(
        self, name: str, tag: str, digest: Digest, before: Callable[[Digest | None], None] | None = None
    ) -> Digest | None:
        """Make a tag point at a digest. Of two that do so at once, the last one stands. `before` is called, with what
        the tag points at, each time before it is written, and raises if it may not be; it is not called where the tag
        points at the digest already. Returns what the tag pointed at before."""
        key = keys.tag(name, tag)
        while True:
            try:
                current = self._store.get(key)
                if current.data == str(digest).encode():
                    return digest
                previous = _digest(current.data)
                if before is not None:
                    before(previous)
                self._store.put(key, str(digest).encode(), if_match=current.etag)
                return previous
            except Missing:
                pass
            except Conflict:
                continue
            if before is not None:
                before(None)
            try:
                self._store.put(key, str(digest).encode(), if_none_match=True)
                return None
            except Conflict:
                continue

    def delete(self, name: str, tag: str) -> None:
        """Remove a tag. Raises `Missing`."""
        self._store.get(keys.tag(name, tag))
        self._store.delete(keys.tag(name, tag))

    def delete_pointing_at(self, name: str, digest: Digest) -> None:
        """Remove the tags that point at a digest, leaving alone one that is moved meanwhile."""
        last = ""
        while page := self.list(name, last, 1000):
            for tag in page:
                key = keys.tag(name, tag)
                try:
                    current = self._store.get(key)
                    if current.data == str(digest).encode():
                        self._store.delete(key, if_match=current.etag)
                except (Missing, Conflict):
                    continue
            last = page[-1]

    def list(self, name: str, last: str, limit: int) -> list[str]:
        """At most `limit` tags after `last`, in ASCII order."""
        prefix = keys.tags(name)
        entries = self._store.list(prefix, start_after=prefix + last if last else "", limit=limit)
        return [entry.key.removeprefix(prefix) for entry in entries]


def _digest(raw: bytes) -> Digest:
    try:
        return Digest.parse(raw.decode("ascii"))
    except (InvalidInput, UnicodeDecodeError):
        raise StoreUnavailable("a tag in the store is damaged: run registry fsck") from None
