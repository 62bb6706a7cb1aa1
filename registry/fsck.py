"""Looks at everything in the store and says what is wrong with it. Changes nothing.

Run against a registry in use, data whose upload has not ended is not reported; a blob committed or deleted during the
check may be.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from artifact.digest import Digest
from artifact.errors import InvalidInput, Malformed, StowageError
from artifact.manifest import Index
from registry import keys
from registry.blobs import BlobRecord, hash_object
from registry.log.check import LogCheck
from registry.manifests import StoredManifest, kept_elsewhere
from registry.store.protocol import Entry, Missing, ObjectStore, StoreUnavailable
from registry.tagrecord import TagRecord


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: what kind, under which key, and in words.

    Kinds: ``missing-blob`` (a record whose bytes are gone, or a manifest that needs a blob or manifest that is not
    there), ``wrong-bytes``, ``dangling-link`` (a link, tag or referrer entry to something that is not there),
    ``unlisted-referrer`` (a manifest that is not among the referrers of its subject),
    ``orphan-data`` (bytes no record speaks of), ``orphan-upload`` (an upload that has expired or cannot continue),
    ``damaged`` (an object that cannot be read as what it should be), ``unlogged`` (a tag or entry that does not follow
    from the transparency log).
    """

    kind: str
    key: str
    message: str

    def to_json(self) -> dict[str, str]:
        return asdict(self)


class Checker:
    """One run over one store."""

    def __init__(self, store: ObjectStore, progress: Callable[[str, int], None] = lambda key, size: None) -> None:
        self._store = store
        self._progress = progress
        self._data: set[str] = set()
        self._records: set[Digest] = set()
        self._manifests: set[tuple[str, Digest]] = set()
        self._listed: set[str] = set()
        self._copies: dict[str, bool] = {}
        self._tags: dict[tuple[str, str], TagRecord] = {}
        self.objects = 0
        self.bytes = 0

    def run(self) -> Iterator[Finding]:
        """Every finding, as it is found."""
        yield from self._uploads()
        yield from self._blobs()
        yield from self._orphans()
        entries = list(self._list(keys.REPOSITORIES))
        self._listed = {entry.key for entry in entries if "/_referrers/" in entry.key}
        for entry in entries:
            if "/_manifests/" in entry.key:
                yield from self._guarded(entry, self._manifest)
        for entry in entries:
            if "/_manifests/" not in entry.key:
                yield from self._guarded(entry, self._link)
        yield from (Finding(*problem) for problem in LogCheck(self._store).run(self._tags))

    def _list(self, prefix: str) -> Iterator[Entry]:
        last = ""
        while page := self._store.list(prefix, start_after=last):
            self.objects += len(page)
            yield from page
            last = page[-1].key

    def _guarded(self, entry: Entry, check: Callable[[Entry], Iterator[Finding]]) -> Iterator[Finding]:
        try:
            yield from check(entry)
        except Missing:
            return  # deleted since it was listed
        except (InvalidInput, Malformed, ValueError, KeyError, TypeError) as error:
            yield Finding("damaged", entry.key, f"cannot be read: {error}")

    def _uploads(self) -> Iterator[Finding]:
        ids = dict.fromkeys(entry.key.split("/")[1] for entry in self._list(keys.UPLOADS))
        for id_ in ids:
            try:
                session = json.loads(self._store.get(keys.session(id_)).data)
                expired = session["expires"] < time.time()
            except (Missing, ValueError, KeyError, TypeError):
                yield Finding("orphan-upload", keys.upload(id_), "left-over of an upload without a session")
                continue
            if expired:
                yield Finding("orphan-upload", keys.session(id_), "upload has expired")
            self._data.add(keys.data(id_))

    def _blobs(self) -> Iterator[Finding]:
        for entry in self._list(keys.RECORDS):
            yield from self._guarded(entry, self._blob)

    def _blob(self, entry: Entry) -> Iterator[Finding]:
        algorithm, _, hex_ = entry.key.split("/")[1:]
        digest = Digest(algorithm, hex_)
        try:
            record = BlobRecord.from_bytes(self._store.get(entry.key).data)
        except Missing:
            raise
        except StowageError:
            yield Finding("damaged", entry.key, "the record cannot be read")
            return
        self._records.add(digest)
        self._data.add(record.data)
        self._progress(str(digest), record.size)
        try:
            size = self._store.head(record.data).size
            hasher = digest.hasher()
            self.bytes += hash_object(self._store, record.data, size, hasher)
        except Missing:
            yield Finding("missing-blob", entry.key, f"{digest}: its bytes, {record.data}, are gone")
            return
        if size != record.size or hasher.hexdigest() != digest.hex:
            yield Finding("wrong-bytes", record.data, f"the bytes are not {digest}: push that blob again")

    def _orphans(self) -> Iterator[Finding]:
        for entry in self._list(keys.DATA):
            if entry.key not in self._data:
                yield Finding("orphan-data", entry.key, f"{entry.size} bytes that no blob needs")

    def _manifest(self, entry: Entry) -> Iterator[Finding]:
        name, _, tail = entry.key.removeprefix(keys.REPOSITORIES).partition("/_manifests/")
        digest = Digest(*tail.split("/"))
        self._manifests.add((name, digest))
        stored = StoredManifest.from_object(digest, self._store.get(entry.key).data)
        self.bytes += len(stored.raw)
        if not digest.matches(stored.raw):
            yield Finding("wrong-bytes", entry.key, f"the manifest is not {digest}")
            return
        document = stored.document
        if isinstance(document, Index):
            needed = [keys.manifest(name, item.digest) for item in document.manifests]
        else:
            needed = [keys.blob(name, item.digest) for item in document.blobs if not kept_elsewhere(item)]
        for key in needed:
            try:
                self._store.head(key)
            except Missing:
                if not self._is_copy(name):  # what nobody has asked for yet is with the original
                    yield Finding("missing-blob", entry.key, f"{name}@{digest.short} needs {key}, which is not there")

        subject = stored.subject
        if subject is not None and keys.referrer(name, subject, digest) not in self._listed:
            self._store.head(entry.key)  # or it was deleted since it was listed
            message = f"{name}@{digest.short} is not listed as referring to {subject.short}: run registry gc"
            yield Finding("unlisted-referrer", entry.key, message)

    def _is_copy(self, name: str) -> bool:
        if name not in self._copies:
            try:
                self._store.head(keys.mirror(name))
                self._copies[name] = True
            except Missing:
                self._copies[name] = False
        return self._copies[name]

    def _link(self, entry: Entry) -> Iterator[Finding]:
        name, _, tail = entry.key.removeprefix(keys.REPOSITORIES).partition("/_")
        kind, *parts = tail.split("/")
        if kind == "blobs":
            if Digest(*parts) not in self._records:
                yield Finding("dangling-link", entry.key, f"{name} links a blob that has no record")
            return
        if kind == "tags":
            raw = self._store.get(entry.key).data
            try:
                record = TagRecord.parse(raw)
            except StoreUnavailable:
                raise Malformed("not a tag's record") from None
            self._tags[name, parts[0]] = record
            if record.digest is None:
                return
            digest = record.digest
        else:
            digest = Digest.parse(json.loads(self._store.get(entry.key).data)["digest"])
        if (name, digest) not in self._manifests:
            yield Finding("dangling-link", entry.key, f"{name} has no manifest {digest}")
