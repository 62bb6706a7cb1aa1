"""Tags: small objects that hold a digest, replaced by compare-and-swap."""

from __future__ import annotations

from collections.abc import Callable

from artifact.digest import Digest
from registry import keys
from registry.store.protocol import Conflict, Missing, ObjectStore
from registry.tagrecord import TagRecord, is_tag_there

Before = Callable[[Digest | None], None]
"""Called with what a tag points at before that is changed; raises if it may not be."""


class Tags:
    """The tags of every repository. `by` is everywhere who asks for a change: `registry.log.tags` writes it down."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def resolve(self, name: str, tag: str) -> Digest:
        """The digest a tag points at. Raises `Missing`."""
        digest = TagRecord.parse(self._store.get(keys.tag(name, tag)).data).digest
        if digest is None:
            raise Missing(f"no tag {tag}")
        return digest

    def point(
        self, name: str, tag: str, digest: Digest, before: Before | None = None, by: str = "", pushed: bool = False
    ) -> Digest | None:
        """Make a tag point at a digest. Of two that do so at once, the last one stands. `before` is called each time
        before the tag is written; not where it points at the digest already. `pushed` says that the manifest has just
        been pushed. Returns what the tag pointed at before."""
        key, record = keys.tag(name, tag), TagRecord(digest).to_bytes()
        while True:
            try:
                current = self._store.get(key)
                previous = TagRecord.parse(current.data).digest
                if previous == digest:
                    return digest
                if before is not None:
                    before(previous)
                self._store.put(key, record, if_match=current.etag)
                return previous
            except Missing:
                pass
            except Conflict:
                continue
            if before is not None:
                before(None)
            try:
                self._store.put(key, record, if_none_match=True)
                return None
            except Conflict:
                continue

    def note_push(self, name: str, digest: Digest, by: str = "") -> None:
        """A manifest has been pushed without a tag."""

    def delete(self, name: str, tag: str, by: str = "") -> None:
        """Remove a tag. Raises `Missing`."""
        key = keys.tag(name, tag)
        if not self._is_there(len(self._store.get(key).data)):
            raise Missing(f"no tag {tag}")
        self._store.delete(key)

    def delete_pointing_at(self, name: str, digest: Digest, by: str = "") -> None:
        """Remove the tags that point at a digest, leaving alone one that is moved meanwhile: the manifest is about to
        be removed."""
        last = ""
        while page := self.list(name, last, 1000):
            for tag in page:
                key = keys.tag(name, tag)
                try:
                    current = self._store.get(key)
                    if TagRecord.parse(current.data).digest == digest:
                        self._store.delete(key, if_match=current.etag)
                except (Missing, Conflict):
                    continue
            last = page[-1]

    def list(self, name: str, last: str, limit: int) -> list[str]:
        """At most `limit` tags after `last`, in ASCII order."""
        prefix, found = keys.tags(name), list[str]()
        after = prefix + last if last else ""
        while len(found) < limit:
            entries = self._store.list(prefix, start_after=after, limit=limit)
            found += [entry.key.removeprefix(prefix) for entry in entries if self._is_there(entry.size)]
            if len(entries) < limit:
                break
            after = entries[-1].key
        return found[:limit]

    def _is_there(self, size: int) -> bool:
        """Whether an object of this size is that of a tag which is there."""
        return is_tag_there(size, logged=False)
