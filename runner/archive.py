"""``runner save`` and ``load``: one model with all its signatures and attestations in a tar file, for hosts without a
network.

The file is an OCI image layout in a tar archive, which other tools read too. The same model gives the same bytes. A
policy can travel in it with its public keys and trust roots; whoever loads it decides whether to use that policy.
"""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import yaml

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import DigestMismatch, InvalidInput, Malformed, NotFound
from artifact.layout.files import sync_folder, write_atomically
from artifact.layout.index import ref_name
from artifact.manifest import MAX_BYTES, Index, Manifest, load_json
from artifact.progress import Progress
from artifact.reference import Reference, is_tag
from artifact.repository import Repository
from artifact.source import Reader, Source
from artifact.transfer import MAX_REFERRERS
from runner.store import Store
from runner.tarmembers import member_source, read_members
from supplychain.keys import PublicKey
from supplychain.policy import Policy
from supplychain.trustroot import TrustRoot, is_inline

POLICY_MEMBER = "stowage/policy.yaml"
"""Where the policy lies in the archive, its keys written into it."""

_MARKER = b'{"imageLayoutVersion":"1.0.0"}'
_COSIGN_SUFFIXES = (".sig", ".att", ".sbom")


def save(reference: Reference, store: Store, file: Path, policy: Path | None = None) -> Digest:
    """Write a stored model to `file`, with everything that refers to it. Raises `InvalidInput` where there is no folder
    for it, `NotFound`, and `DigestMismatch` if a blob is damaged; then no file is left."""
    if not file.parent.is_dir():
        raise InvalidInput(f"{file}: there is no folder {file.parent}: make it first, or name another file")
    home = store.home(reference)
    if home is None:
        raise NotFound(f"{reference} is not in the store: pull it first")
    repository, descriptor = home
    small = {"oci-layout": _MARKER}
    if policy is not None:
        small[POLICY_MEMBER] = portable_policy(policy)
    name = reference.repository + (f":{reference.tag}" if reference.tag else f"@{descriptor.digest}")
    entries, blobs = _closure(repository, descriptor, reference.repository, name)
    small["index.json"] = Index(entries).to_bytes()
    descriptor_, temporary = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(descriptor_, "wb") as stream:
            _write(stream, small, {digest: store.blob(digest) for digest in blobs})
            stream.flush()
            os.fchmod(descriptor_, 0o644)
            os.fsync(descriptor_)
        Path(temporary).replace(file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(file.absolute().parent)
    return descriptor.digest


def _closure(
    repository: Repository, subject: Descriptor, place: str, name: str
) -> tuple[list[Descriptor], list[Digest]]:
    """The index entries and all blobs of a model and what refers to it, at any distance."""
    entries: dict[tuple[Digest, str | None], Descriptor] = {}
    blobs: set[Digest] = set()
    pending: list[tuple[Descriptor, str | None]] = [(subject, name)]
    while pending:
        item, called = pending.pop()
        if (item.digest, called) in entries:
            continue
        if len(entries) > MAX_REFERRERS:
            raise Malformed(f"{place}: more than {MAX_REFERRERS} manifests refer to this one: not saved")
        _, raw = repository.manifest(item.digest)
        manifest = Manifest.parse(raw, item.media_type)
        annotations = {mediatypes.REF_NAME: called} if called else {}
        if manifest.subject is not None:
            annotations[mediatypes.SUBJECT] = str(manifest.subject.digest)
        kind = manifest.referrer_type if manifest.subject is not None else manifest.artifact_type
        entries[item.digest, called] = Descriptor(item.media_type, item.digest, item.size, annotations, kind)
        blobs |= {item.digest, *(blob.digest for blob in manifest.blobs)}
        pending += [(referrer, None) for referrer in repository.referrers(item.digest)]
        for suffix in _COSIGN_SUFFIXES:
            tag = f"{item.digest.algorithm}-{item.digest.hex}{suffix}"
            if is_tag(tag):
                with suppress(NotFound):
                    pending.append((repository.resolve(tag), f"{place}:{tag}"))
    ordered = sorted(entries.items(), key=lambda entry: (entry[0][0], entry[0][1] or ""))
    return [entry for _, entry in ordered], sorted(blobs)


def _write(stream: io.BufferedIOBase, small: dict[str, bytes], blobs: dict[Digest, Path]) -> None:
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in sorted(small.items(), reverse=True):  # the layout's own files first
            tar.addfile(_info(name, len(data)), io.BytesIO(data))
        for digest, path in blobs.items():
            with path.open("rb") as content:
                checked = _Checked(content, digest)
                tar.addfile(_info(f"blobs/{digest.algorithm}/{digest.hex}", path.stat().st_size), checked)
                checked.finish()


def _info(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o444
    return info


class _Checked(io.RawIOBase):
    """Hashes what is read, so that no damaged blob leaves the store."""

    def __init__(self, stream: io.BufferedReader, digest: Digest) -> None:
        self._stream, self._digest, self._hasher = stream, digest, digest.hasher()

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._hasher.update(data)
        return data

    def finish(self) -> None:
        if self._hasher.hexdigest() != self._digest.hex:
            raise DigestMismatch(f"the bytes stored as {self._digest} are other bytes: run runner fsck, and pull again")


def portable_policy(path: Path) -> bytes:
    """A policy file with its public keys and trust roots written into it. Raises `InvalidInput`."""
    Policy.load(path)
    document = yaml.safe_load(path.read_bytes())
    revoked = (document.get("revoked") or {}).get("keys") or []
    for entry in (*(document.get("authorities") or {}).values(), *revoked):
        location = entry.get("key")
        if isinstance(location, str) and not location.startswith("-----BEGIN "):
            found = PublicKey.load(location if "://" in location else str(path.parent / location))
            entry["key"] = found.pem.decode()
        for holder, name in ((entry.get("keyless") or {}, "trust-root"), (entry, "log")):
            root = holder.get(name)
            if isinstance(root, str) and not is_inline(root):
                holder[name] = TrustRoot.load(path.parent / root).document.decode()
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=10_000).encode()
    Policy.parse(text, str(path), PublicKey.load)
    return text


class ArchiveRepository:
    """The layout in a tar file, as a repository that can only be read. `name` selects the ref names of one place."""

    def __init__(self, file: Path, name: str | None = None) -> None:
        self._file = file
        self._members = read_members(file)
        self._name = name
        if load_json(self._small("oci-layout"), f"{file}: oci-layout").get("imageLayoutVersion") != "1.0.0":
            raise Malformed(f"{file}: imageLayoutVersion must be 1.0.0")
        self._entries = Index.parse(self._small("index.json")).manifests

    def named(self, name: str) -> ArchiveRepository:
        """The same archive, seen as the place `name`."""
        copy = object.__new__(ArchiveRepository)
        copy.__dict__.update(self.__dict__, _name=name)
        return copy

    @property
    def place(self) -> str:
        """The repository as a user writes it."""
        return str(self._file)

    @property
    def policy(self) -> bytes | None:
        """The policy that travels in the archive, if there is one."""
        return self._small(POLICY_MEMBER) if POLICY_MEMBER in self._members else None

    def models(self) -> list[tuple[Reference, Descriptor]]:
        """The models in the archive: what is named and is no signature."""
        found: list[tuple[Reference, Descriptor]] = []
        for entry in self._entries:
            name = ref_name(entry)
            if mediatypes.SUBJECT in entry.annotations or (name or "").endswith(_COSIGN_SUFFIXES):
                continue
            if name is not None:
                found.append((_reference(name, entry.digest), Descriptor(entry.media_type, entry.digest, entry.size)))
        return found

    def resolve(self, reference: str | Digest) -> Descriptor:
        """The descriptor of the manifest a tag or digest names. Raises `NotFound`."""
        for entry in self._entries:
            tagged = isinstance(reference, str) and ref_name(entry) in (f"{self._name}:{reference}", reference)
            if tagged or entry.digest == reference:
                return Descriptor(entry.media_type, entry.digest, entry.size)
        raise NotFound(f"{self._file} has no manifest {reference}")

    def manifest(self, reference: str | Digest) -> tuple[Descriptor, bytes]:
        """A manifest's descriptor and checked bytes. Raises `NotFound`, `DigestMismatch`."""
        descriptor = self.resolve(reference)
        return descriptor, self.read_blob(descriptor)

    def tags(self) -> list[str]:
        """All tags, sorted."""
        names = (ref_name(entry) or "" for entry in self._entries)
        return sorted(name.removeprefix(f"{self._name}:") for name in names if name.startswith(f"{self._name}:"))

    def referrers(self, subject: Digest, artifact_type: str | None = None) -> list[Descriptor]:
        """Descriptors of the manifests whose subject is `subject`."""
        found: dict[Digest, Descriptor] = {}
        for entry in self._entries:
            with suppress(Malformed):
                manifest = Manifest.parse(self.read_blob(entry), entry.media_type)
                if manifest.subject is not None and manifest.subject.digest == subject:
                    kind = manifest.referrer_type
                    found[entry.digest] = Descriptor(
                        entry.media_type, entry.digest, entry.size, manifest.annotations, kind
                    )
        return [item for item in found.values() if artifact_type in (None, item.artifact_type)]

    def has_blob(self, digest: Digest) -> bool:
        """Whether the blob is in the archive."""
        return _blob_name(digest) in self._members

    def blob_size(self, digest: Digest) -> int | None:
        """The size in bytes of a blob of the archive; None if it is not there."""
        member = self._members.get(_blob_name(digest))
        return member.size if member is not None else None

    def read_blob(self, descriptor: Descriptor, limit: int = MAX_BYTES) -> bytes:
        """A small blob, checked. Raises `NotFound`, `DigestMismatch`, `Malformed` if larger than `limit` bytes."""
        data = self._small(_blob_name(descriptor.digest), limit)
        if len(data) != descriptor.size or not descriptor.digest.matches(data):
            raise DigestMismatch(f"{self._file}: the bytes stored as {descriptor.digest} are other bytes")
        return data

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> AbstractContextManager[Reader]:
        """A stream of a blob's unchecked bytes. Raises `NotFound`."""
        return self.blob_source(descriptor)(offset)

    def blob_source(self, descriptor: Descriptor) -> Source:
        """What `open_blob` opens, as something to be opened again. Raises `NotFound`."""
        return self._source(_blob_name(descriptor.digest))

    def _source(self, name: str) -> Source:
        member = self._members.get(name)
        if member is None:
            raise NotFound(f"{self._file} has no {name}: it is not complete")
        return member_source(self._file, member)

    def _small(self, name: str, limit: int = MAX_BYTES) -> bytes:
        source = self._source(name)
        size = self._members[name].size
        if size > limit:
            raise Malformed(f"{self._file}: {name} is larger than {limit} bytes")
        buffer = bytearray(size)
        filled = 0
        with source(0) as reader:
            while filled < size and (count := reader.readinto(memoryview(buffer)[filled:])):
                filled += count
        return bytes(buffer[:filled])

    def push_manifest(self, raw: bytes, media_type: str, tag: str | None = None) -> Descriptor:
        """Raises `InvalidInput`: an archive is written whole."""
        raise self._read_only()

    def push_blob(self, descriptor: Descriptor, source: Source, progress: Progress) -> bool:
        """Raises `InvalidInput`: an archive is written whole."""
        raise self._read_only()

    def mount_blob(self, digest: Digest, origin: Repository) -> bool:
        """False: nothing can be stored here."""
        return False

    def delete_tag(self, tag: str) -> None:
        """Raises `InvalidInput`: an archive is written whole."""
        raise self._read_only()

    def _read_only(self) -> InvalidInput:
        return InvalidInput(f"{self._file} is an archive: it cannot be changed")


def extract_policy(archive: ArchiveRepository, target: Path) -> None:
    """Write the policy that travels in an archive to a new file. Raises `NotFound`, `InvalidInput`."""
    raw = archive.policy
    if raw is None:
        raise NotFound(f"{archive.place} carries no policy")
    Policy.parse(raw, f"{archive.place}:{POLICY_MEMBER}", PublicKey.load)
    if target.exists():
        raise InvalidInput(f"{target} exists already: name another file")
    write_atomically(target, raw)


def _reference(name: str, digest: Digest) -> Reference:
    """The reference a ref name in an archive means. Raises `DigestMismatch` if it states another digest."""
    reference = Reference.parse(name)
    if reference.digest not in (None, digest):
        raise DigestMismatch(f"the archive has {digest} under the name {reference}")
    return reference.with_digest(digest)


def _blob_name(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"


def iterate(archive: ArchiveRepository) -> Iterator[tuple[Reference, Descriptor, ArchiveRepository]]:
    """Each model of an archive with its manifest, and the archive seen as its place. Raises `NotFound` if there is
    none."""
    models = archive.models()
    if not models:
        raise NotFound(f"{archive.place} names no model")
    for reference, descriptor in models:
        yield reference, descriptor, archive.named(reference.repository)
