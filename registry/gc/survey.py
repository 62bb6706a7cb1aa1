"""What is in the store: read whole before anything is decided, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from artifact.digest import Digest
from artifact.errors import InvalidInput, Malformed, StowageError
from artifact.manifest import Index
from registry import keys
from registry.blobs import PLAIN_LINK, BlobRecord
from registry.manifests import StoredManifest
from registry.store.protocol import Entry, Missing, ObjectStore, StoreUnavailable
from registry.tagrecord import TagRecord

_READERS = 16
_Read = TypeVar("_Read")

Place = tuple[str, Digest]
"""A manifest or link: repository and digest."""


class CannotCollect(StowageError):
    """The collector does not know enough to remove anything."""

    code = "cannot-collect"


@dataclass(frozen=True)
class Node:
    """A manifest in a repository, and what it refers to there. `raw` is the size of its bytes."""

    name: str
    manifest: StoredManifest
    modified: float
    etag: str
    children: frozenset[Digest]
    blobs: frozenset[Digest]
    subject: Digest | None

    @property
    def place(self) -> Place:
        return self.name, self.manifest.digest


@dataclass(frozen=True)
class Link:
    """A repository's link to a blob; `marked` if it is not as a push leaves it."""

    name: str
    digest: Digest
    modified: float
    marked: bool


@dataclass(frozen=True)
class Record:
    """A blob's record as it was read."""

    digest: Digest
    record: BlobRecord
    modified: float
    etag: str


@dataclass
class Survey:
    """Everything in the store, as of a time that began at `started`."""

    started: float
    nodes: dict[Place, Node] = field(default_factory=dict)
    tagged: set[Place] = field(default_factory=set)
    links: list[Link] = field(default_factory=list)
    referrers: list[tuple[str, Digest, Entry]] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    data: list[Entry] = field(default_factory=list)
    uploads: dict[str, list[Entry]] = field(default_factory=dict)
    removed_tags: list[str] = field(default_factory=list)


class Surveyor:
    """Reads a store. Raises `CannotCollect` if anything cannot be read as what it must be, and what the store raises:
    a picture with a hole in it would condemn what is needed."""

    def __init__(self, store: ObjectStore, clock: Callable[[], float]) -> None:
        self._store = store
        self.survey = Survey(clock())

    def steps(self) -> Iterator[str]:
        """Read everything, pausing after each page.

        Data comes first and records last: data that becomes a blob meanwhile is then known by its upload or its
        record, and data that arrives later is not looked at.
        """
        for page in self._pages(keys.DATA):
            self.survey.data += page
            yield "listed data"
        for page in self._pages(keys.UPLOADS):
            for entry in page:
                self.survey.uploads.setdefault(entry.key.split("/")[1], []).append(entry)
            yield "listed uploads"
        with ThreadPoolExecutor(_READERS, thread_name_prefix="gc") as pool:
            for page in self._pages(keys.REPOSITORIES):
                self._repositories(page, pool)
                yield "listed repositories"
            for page in self._pages(keys.RECORDS):
                self.survey.records += _present(pool.map(self._record, page))
                yield "listed records"

    def _pages(self, prefix: str) -> Iterator[list[Entry]]:
        last = ""
        while page := self._store.list(prefix, start_after=last):
            yield page
            last = page[-1].key

    def _repositories(self, page: list[Entry], pool: ThreadPoolExecutor) -> None:
        manifests, tags = [], []
        for entry in page:
            name, _, tail = entry.key.removeprefix(keys.REPOSITORIES).partition("/_")
            kind, _, rest = tail.partition("/")
            if kind == "blobs":
                marked = entry.size != len(PLAIN_LINK)
                self.survey.links.append(Link(name, _digest(entry.key, rest), entry.modified, marked))
            elif kind == "referrers":
                algorithm, _, pair = rest.partition("/")
                hex_ = pair.partition("/")[2]
                self.survey.referrers.append((name, _referrer(entry.key, algorithm, hex_), entry))
            elif kind == "manifests":
                manifests.append((name, _digest(entry.key, rest), entry))
            elif kind == "tags":
                tags.append((name, rest))
        for node in _present(pool.map(self._manifest, manifests)):
            self.survey.nodes[node.place] = node
        self.survey.tagged.update(_present(pool.map(self._tag, tags)))

    def _manifest(self, found: tuple[str, Digest, Entry]) -> Node | None:
        name, digest, entry = found
        try:
            stored = self._store.get(entry.key)
        except Missing:
            return None  # deleted since the listing
        try:
            manifest = StoredManifest.from_object(digest, stored.data)
            document = manifest.document
        except Malformed as error:
            raise _damaged(entry.key, error) from None
        if not digest.matches(manifest.raw):
            raise _damaged(entry.key, "its bytes are not what its name says")
        if isinstance(document, Index):
            children, blobs = frozenset(item.digest for item in document.manifests), frozenset[Digest]()
        else:
            children, blobs = frozenset[Digest](), frozenset(item.digest for item in document.blobs)
        return Node(name, manifest, entry.modified, stored.etag, children, blobs, manifest.subject)

    def _tag(self, found: tuple[str, str]) -> Place | None:
        key = keys.tag(*found)
        try:
            data = self._store.get(key).data
        except Missing:
            return None
        try:
            digest = TagRecord.parse(data).digest
        except StoreUnavailable as error:
            raise _damaged(key, error) from None
        if digest is None:
            self.survey.removed_tags.append(key)
            return None
        return found[0], digest

    def _record(self, entry: Entry) -> Record | None:
        digest = _digest(entry.key, entry.key.removeprefix(keys.RECORDS), skip=1)
        try:
            found = self._store.get(entry.key)
        except Missing:
            return None
        try:
            return Record(digest, BlobRecord.from_bytes(found.data), entry.modified, found.etag)
        except StoreUnavailable as error:
            raise _damaged(entry.key, error) from None


def _present(items: Iterator[_Read | None]) -> list[_Read]:
    return [item for item in items if item is not None]


def _digest(key: str, path: str, skip: int = 0) -> Digest:
    algorithm, *rest = path.split("/")
    try:
        (hex_,) = rest[skip:]
        return Digest(algorithm, hex_)
    except (ValueError, InvalidInput):
        raise _damaged(key, "not a key of the registry's") from None


def _referrer(key: str, algorithm: str, hex_: str) -> Digest:
    """The digest of a referrer. Its key says the algorithm of the subject alone: the length says its own."""
    return _digest(key, f"{'sha512' if len(hex_) == 128 else 'sha256'}/{hex_}")


def _damaged(key: str, why: object) -> CannotCollect:
    return CannotCollect(f"{key} cannot be read ({why}): nothing was collected; run registry fsck")
