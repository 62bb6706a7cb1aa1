"""The `Repository` interface over an OCI image layout folder."""

from __future__ import annotations

from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import DigestMismatch, Malformed, NotFound
from artifact.layout.blobs import Blobs
from artifact.layout.index import LayoutIndex, named, ref_name, with_entry
from artifact.layout.unnamed import store_unnamed
from artifact.manifest import MAX_BYTES, Index, Manifest, load_json
from artifact.progress import Progress, Quiet
from artifact.reference import is_tag, shown_tags
from artifact.repository import Repository
from artifact.source import Reader, Source, bytes_source, file_source


class LayoutRepository:
    """One repository in the layout folder `root`.

    Without `name` the folder is one repository and its tags are the plain ref names other tools use
    (``oci:PATH:TAG``). With `name` (``HOST/NAME`` or ``NAME``) the folder is a store of many repositories and this is
    the one whose ref names are ``<name>:<tag>``. The folder is made a layout at the first write.
    """

    def __init__(self, root: Path, name: str | None = None) -> None:
        self.root = root
        self.name = name
        self._index = LayoutIndex(root)
        self._blobs = Blobs(root)

    @property
    def place(self) -> str:
        """The repository as a user writes it."""
        return self.name if self.name is not None else f"oci:{self.root}"

    def entries(self) -> list[Descriptor]:
        """Every manifest in the layout's index, of this repository or another, with its ref name if it has one.

        Raises `NotFound` if the folder is no layout; a store that nothing was put into yet is empty.
        """
        try:
            return list(self._index.read())
        except NotFound:
            if self.name is None:
                raise
            return []

    def blob_path(self, digest: Digest) -> Path:
        """The file of a blob, whether or not it exists."""
        return self._blobs.path(digest)

    def resolve(self, reference: str | Digest) -> Descriptor:
        """The descriptor of the manifest a tag or digest names. Raises `NotFound`."""
        entries = self.entries()
        if isinstance(reference, Digest):
            for entry in entries:
                if entry.digest == reference:
                    return _bare(entry)
            return self._resolve_unlisted(reference)
        wanted = self._ref_name(reference)
        for entry in entries:
            if ref_name(entry) == wanted:
                return _bare(entry)
        raise NotFound(self._no_tag(reference))

    def _no_tag(self, tag: str) -> str:
        known = shown_tags(self.tags(), tag)
        if self.name is None:
            return f"{self.place} has no tag {tag!r}{known}"
        return f"{self.name}:{tag} is not in the local store {self.root}{known}"

    def _resolve_unlisted(self, digest: Digest) -> Descriptor:
        """A manifest that only another manifest names (the members of an index)."""
        path = self._blobs.path(digest)
        with suppress(FileNotFoundError, Malformed):
            size = path.stat().st_size
            if size <= MAX_BYTES:
                media_type = load_json(path.read_bytes(), "manifest").get("mediaType")
                if media_type in mediatypes.MANIFESTS:
                    return Descriptor(media_type, digest, size)
        raise NotFound(f"{self.place} has no manifest {digest}")

    def manifest(self, reference: str | Digest) -> tuple[Descriptor, bytes]:
        """A manifest's descriptor and checked bytes. Raises `NotFound`, `DigestMismatch`."""
        descriptor = self.resolve(reference)
        return descriptor, self.read_blob(descriptor)

    def push_manifest(self, raw: bytes, media_type: str, tag: str | None = None) -> Descriptor:
        """Store a manifest, and point `tag` at it. Raises `NotFound` if a blob it refers to is missing."""
        descriptor = Descriptor.of(raw, media_type)
        subject, artifact_type = self._check_references(raw, media_type)
        self._index.create()
        self._blobs.write(descriptor, bytes_source(raw), Quiet())
        annotations = {mediatypes.SUBJECT: str(subject)} if subject else {}
        entry = Descriptor(media_type, descriptor.digest, descriptor.size, annotations, artifact_type)
        if tag is not None:
            entry = named(entry, self._ref_name(tag))
        self._index.update(lambda entries: with_entry(entries, entry))
        return descriptor

    def _check_references(self, raw: bytes, media_type: str) -> tuple[Digest | None, str | None]:
        needed: tuple[Descriptor, ...]
        if media_type in (mediatypes.IMAGE_INDEX, mediatypes.DOCKER_MANIFEST_LIST):
            index = Index.parse(raw, media_type)
            needed, subject, artifact_type = tuple(index.manifests), index.subject, index.artifact_type
        else:
            manifest = Manifest.parse(raw, media_type)
            needed, subject, artifact_type = manifest.blobs, manifest.subject, manifest.referrer_type
        for item in needed:
            if not self.has_blob(item.digest):
                raise NotFound(f"{self.place}: manifest refers to {item.digest}, which is not there")
        return (subject.digest if subject else None), artifact_type

    def tags(self) -> list[str]:
        """All tags of this repository, sorted."""
        prefix = "" if self.name is None else f"{self.name}:"
        names = [ref_name(entry) or "" for entry in self.entries()]
        tags = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        return sorted(tag for tag in tags if is_tag(tag))

    def referrers(self, subject: Digest, artifact_type: str | None = None) -> list[Descriptor]:
        """Descriptors of the manifests whose subject is `subject`."""
        found: dict[Digest, Descriptor] = {}
        for entry in self.entries():
            if mediatypes.SUBJECT in entry.annotations:
                related = entry.annotations[mediatypes.SUBJECT] == str(subject)
            else:
                related = entry.size <= MAX_BYTES and self._has_subject(entry, subject)
            if related:
                found[entry.digest] = self._as_referrer(entry)
        return [item for item in found.values() if artifact_type in (None, item.artifact_type)]

    def _has_subject(self, entry: Descriptor, subject: Digest) -> bool:
        """Whether a manifest that another tool wrote into the layout refers to `subject`."""
        with suppress(NotFound, Malformed, DigestMismatch):
            value = load_json(self.read_blob(entry), "manifest").get("subject")
            return isinstance(value, dict) and value.get("digest") == str(subject)
        return False

    def _as_referrer(self, entry: Descriptor) -> Descriptor:
        with suppress(NotFound, Malformed, DigestMismatch):
            manifest = Manifest.parse(self.read_blob(entry))
            return Descriptor(entry.media_type, entry.digest, entry.size, manifest.annotations, manifest.referrer_type)
        return _bare(entry)

    def has_blob(self, digest: Digest) -> bool:
        """Whether the blob is in the layout."""
        return self._blobs.path(digest).is_file()

    def blob_size(self, digest: Digest) -> int | None:
        """The size in bytes of a blob of the layout; None if it is not there."""
        path = self._blobs.path(digest)
        return path.stat().st_size if path.is_file() else None

    def read_blob(self, descriptor: Descriptor, limit: int = MAX_BYTES) -> bytes:
        """A small blob, checked. Raises `NotFound`, `DigestMismatch`, `Malformed` if larger than `limit` bytes."""
        if descriptor.size > limit:
            raise Malformed(f"{descriptor.digest.short} is larger than {limit} bytes")
        with self.open_blob(descriptor) as reader:
            buffer = bytearray(descriptor.size + 1)
            filled = 0
            while count := reader.readinto(memoryview(buffer)[filled:]):
                filled += count
        data = bytes(buffer[:filled])
        if filled != descriptor.size or not descriptor.digest.matches(data):
            raise DigestMismatch(f"{self.place}: the bytes stored as {descriptor.digest} are other bytes")
        return data

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> AbstractContextManager[Reader]:
        """A stream of a blob's unchecked bytes from `offset`. Raises `NotFound`."""
        path = self._blobs.path(descriptor.digest)
        if not path.is_file():
            raise NotFound(f"{self.place} has no blob {descriptor.digest}")
        return file_source(path)(offset)

    def blob_source(self, descriptor: Descriptor) -> Source:
        """The unchecked bytes of a blob, to be opened as often as wanted."""
        return partial(self.open_blob, descriptor)

    def push_blob(self, descriptor: Descriptor, source: Source, progress: Progress) -> bool:
        """Store a blob, checked on arrival; False if it was there. Raises `DigestMismatch`, `StorageFull`."""
        self._index.create()
        return self._blobs.write(descriptor, source, progress)

    def add_blob(self, name: str, size: int, source: Source, progress: Progress) -> Digest:
        """Store content whose digest is not known yet, reading each byte once; the digest. `name` is for progress."""
        return store_unnamed(self.root, name, size, source, progress, self._index.create)

    def mount_blob(self, digest: Digest, origin: Repository) -> bool:
        """Nothing to do between repositories of one layout; False for every other origin."""
        return isinstance(origin, LayoutRepository) and origin.root == self.root and self.has_blob(digest)

    def delete_tag(self, tag: str) -> None:
        """Remove a tag, and its manifest from the index if nothing else names it. Raises `NotFound`."""
        self.resolve(tag)
        wanted = self._ref_name(tag)
        self._index.update(lambda entries: [entry for entry in entries if ref_name(entry) != wanted])

    def drop(self, digest: Digest) -> None:
        """Remove every index entry of a manifest, whatever its name. Its blobs stay until they are pruned."""
        self._index.update(lambda entries: [entry for entry in entries if entry.digest != digest])

    def _ref_name(self, tag: str) -> str:
        return tag if self.name is None else f"{self.name}:{tag}"


def _bare(entry: Descriptor) -> Descriptor:
    """An index entry without what only the index says about it."""
    return Descriptor(entry.media_type, entry.digest, entry.size)
