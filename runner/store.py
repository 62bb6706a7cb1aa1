"""The content store: an OCI image layout that other tools read too, with each model's files laid out beside it.

``bundles/sha256/<hex>/`` holds the files of the manifest of that digest under their own names, as hard links to the
blobs. A bundle is complete or absent. A second, read-only store of the system is looked into first.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path
from typing import Any

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import DigestMismatch, Malformed, NotFound, StowageError
from artifact.layout import LayoutRepository
from artifact.layout.index import ref_name
from artifact.locate import local_repository, resolve
from artifact.manifest import Index, Manifest
from artifact.modelconfig import MAX_CONFIG
from artifact.reference import Reference
from artifact.store import default_store
from runner.model import Model
from runner.records import read_records, record_path, recorded_name, write_records

_FICLONE = 0x40049409
_SIGNATURE_TAG = re.compile(r"sha256-([0-9a-f]{64})\.(?:sig|att|sbom)")


@dataclass(frozen=True)
class StoredModel:
    """A model in the store. `name` is its reference without digest, empty if it has none left; `system` says that it
    is in the system's store."""

    name: str
    model: Model
    record: dict[str, Any]
    system: bool = False

    def to_json(self) -> dict[str, Any]:
        """The model as ``runner list --json`` shows it."""
        config = self.model.config
        return {
            "name": self.name,
            "digest": str(self.model.digest),
            "format": config.format,
            "precision": config.precision,
            "parameters": config.parameters,
            "size": self.model.size,
            "verified": self.record.get("verified"),
            "system": self.system,
        }


SYSTEM_STORE_VARIABLE = "STOWAGE_SYSTEM_STORE"
"""The environment variable that names the system's store; empty for none."""

_SYSTEM_STORE = Path("/usr/share/stowage/store")


def system_store() -> Path | None:
    """The read-only store that all users of this host share, if there is one."""
    stated = os.environ.get(SYSTEM_STORE_VARIABLE)
    path = _SYSTEM_STORE if stated is None else Path(stated) if stated else None
    return path.absolute() if path is not None and path.is_dir() else None


class Store:
    """The store at `root`, by default the one `packager` packs into, over the system's, which is never written."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or default_store()).absolute()
        system = system_store()
        self.system = system if system != self.root else None

    def repository(self, reference: Reference) -> LayoutRepository:
        """The place of `reference` in this store."""
        return local_repository(reference, self.root)

    def home(self, reference: Reference) -> tuple[LayoutRepository, Descriptor] | None:
        """Where `reference` is stored, the system's store before the user's, and its manifest; None if it is in
        neither. A tag is what it was when it was pulled. Raises `DigestMismatch` if the tag and the digest of
        `reference` disagree everywhere they are."""
        disagreement: DigestMismatch | None = None
        for root in (self.system, self.root):
            if root is not None:
                repository = local_repository(reference, root)
                try:
                    return repository, resolve(repository, reference)
                except NotFound:
                    continue
                except DigestMismatch as error:
                    disagreement = error
        if disagreement is not None:
            raise disagreement
        return None

    def find(self, reference: Reference) -> Descriptor | None:
        """The manifest of `reference` where `home` finds it, or None."""
        home = self.home(reference)
        return home[1] if home else None

    def model(self, reference: Reference, descriptor: Descriptor) -> Model:
        """Read the model `descriptor` names here. Raises `NotFound`, `DigestMismatch`, `Malformed`."""
        home = self.home(reference.with_digest(descriptor.digest))
        repository = home[0] if home else self.repository(reference)
        found, raw = repository.manifest(descriptor.digest)
        config = Manifest.parse(raw, found.media_type).config
        return Model.read(found, raw, repository.read_blob(config, MAX_CONFIG), source=None)

    def blob(self, digest: Digest) -> Path:
        """The file of a blob, in the system's store if it is there."""
        if self.system is not None and (path := LayoutRepository(self.system).blob_path(digest)).is_file():
            return path
        return LayoutRepository(self.root).blob_path(digest)

    def bundle(self, model: Model) -> Path:
        """The folder with the model's files, made now if it is not there. Raises `NotFound` for a missing blob."""
        if self.system is not None:
            ready = self.system / "bundles" / model.digest.algorithm / model.digest.hex
            if _is_complete(ready, model):
                return ready
        self._touch(model.digest)
        final = self.root / "bundles" / model.digest.algorithm / model.digest.hex
        with self._locked("bundles.lock", fcntl.LOCK_EX):
            if _is_complete(final, model):
                return final
            remove_tree(final)
            building = self.root / "bundles" / "building"  # the lock makes whatever lies here a leftover
            remove_tree(building)
            building.mkdir(parents=True)
            try:
                for file in model.files:
                    self._place(file.blob, building / file.path, file.path)
            except BaseException:
                remove_tree(building)
                raise
            final.parent.mkdir(parents=True, exist_ok=True)
            building.replace(final)
            for folder in (final, *(path for path in final.rglob("*") if path.is_dir())):
                folder.chmod(0o555)
        return final

    def _place(self, blob: Descriptor, target: Path, name: str) -> None:
        source = self.blob(blob.digest)
        if not source.is_file() or source.stat().st_size != blob.size:
            raise NotFound(f"{name} ({blob.digest.short}) is not in the store: pull the model again")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:
            clone_or_copy(source, target)

    @contextmanager
    def pulling(self) -> Iterator[None]:
        """While a pull is under way nothing is removed."""
        with self._locked("store.lock", fcntl.LOCK_SH):
            yield

    @contextmanager
    def _locked(self, name: str, how: int) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.root / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, how)  # the kernel lets go of it when this process ends, however it ends
            yield
        finally:
            os.close(descriptor)

    def write_record(self, digest: Digest, name: str, record: dict[str, Any]) -> None:
        """Note for people how a model came here under `name`."""
        with self._locked("records.lock", fcntl.LOCK_EX):
            rows = read_records(self.root, digest)
            rows.pop(name, None)
            write_records(self.root, digest, {**rows, name: record})

    def record(self, digest: Digest, name: str) -> dict[str, Any]:
        """What was noted when the model came here under `name`; without one, under the latest. Empty if nothing was."""
        for root in (self.root, self.system):
            rows = read_records(root, digest) if root is not None else {}
            if rows and (not name or name in rows):
                return rows[name or list(rows)[-1]]
        return {}

    def _forget_name(self, digest: Digest, name: str) -> None:
        with self._locked("records.lock", fcntl.LOCK_EX):
            rows = read_records(self.root, digest)
            if rows.pop(name, None) is not None:
                used = self.last_used(digest)
                write_records(self.root, digest, rows)
                os.utime(record_path(self.root, digest), (used, used))

    def _touch(self, digest: Digest) -> None:
        """Note that a model is used now, in the time of its record."""
        with suppress(FileNotFoundError):
            os.utime(record_path(self.root, digest))

    def last_used(self, digest: Digest) -> float:
        """When a model was pulled or used last, in seconds since the epoch."""
        for path in (record_path(self.root, digest), LayoutRepository(self.root).blob_path(digest)):
            with suppress(FileNotFoundError):
                return path.stat().st_mtime
        return 0.0

    def models(self) -> list[StoredModel]:
        """Every model in the store and the system's, by name. What is in a layout and is no model (signatures) is left
        out."""
        found = self._models_in(self.root, False)
        if self.system is not None:
            shared = self._models_in(self.system, True)
            named = {(item.name, item.model.digest) for item in shared}
            found = shared + [item for item in found if (item.name, item.model.digest) not in named]
        return sorted(found, key=lambda item: (item.name, item.model.digest))

    def _models_in(self, root: Path, system: bool) -> list[StoredModel]:
        layout = LayoutRepository(root)
        try:
            entries = layout.entries()
        except NotFound:
            return []
        found: list[StoredModel] = []
        for entry in entries:
            with suppress(StowageError):
                _, raw = layout.manifest(entry.digest)
                config = layout.read_blob(Manifest.parse(raw, entry.media_type).config, MAX_CONFIG)
                record = self.record(entry.digest, ref_name(entry) or "")
                name = ref_name(entry) or record.get("name", "")
                model = Model.read(Descriptor(entry.media_type, entry.digest, entry.size), raw, config, source=None)
                found.append(StoredModel(name, model, record, system))
        return found

    def remove(self, reference: Reference) -> int:
        """Remove a model by name, and its bytes where nothing else needs them. Returns the bytes freed. Raises
        `NotFound`."""
        with self._locked("store.lock", fcntl.LOCK_EX):
            repository = self.repository(reference)
            try:
                descriptor = resolve(repository, reference)
            except NotFound:
                if self.system is None or self.find(reference) is None:
                    raise
                raise NotFound(
                    f"{reference} is in the system's store {self.system}, which only its owner changes"
                ) from None
            if reference.tag is not None and reference.digest is None:
                repository.delete_tag(reference.tag)
                self._forget_name(descriptor.digest, recorded_name(reference))
            else:
                repository.drop(descriptor.digest)
            return self._sweep(repository, descriptor)

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """While no pull is under way, and none begins."""
        with self._locked("store.lock", fcntl.LOCK_EX):
            yield

    def forget(self, descriptor: Descriptor) -> int:
        """Remove a model under all its names, for one who holds the store `exclusively`. Returns the bytes freed."""
        repository = LayoutRepository(self.root)
        repository.drop(descriptor.digest)
        return self._sweep(repository, descriptor)

    def discard(self, blobs: tuple[Descriptor, ...]) -> None:
        """Remove blobs of a model that was refused, those that nothing else needs."""
        with self._locked("store.lock", fcntl.LOCK_EX):
            self._unlink(LayoutRepository(self.root), blobs)

    def drop_bundle(self, digest: Digest) -> None:
        """Remove a model's bundle; it is made anew when the model is used."""
        with self._locked("bundles.lock", fcntl.LOCK_EX):
            remove_tree(self.root / "bundles" / digest.algorithm / digest.hex)

    def _sweep(self, repository: LayoutRepository, removed: Descriptor) -> int:
        """Remove what only a model needed that has lost a name: signatures in the repository where it had its last,
        and, when it has none anywhere, the model with all that refers to it. Returns the bytes freed."""
        doomed: list[Descriptor] = []
        pending = [removed]
        while pending:
            item = pending.pop()
            pending += _drop_signatures(repository, item.digest)
            if any(entry.digest == item.digest for entry in repository.entries()):
                continue
            if item.digest == removed.digest:
                self.drop_bundle(removed.digest)
                record_path(self.root, removed.digest).unlink(missing_ok=True)
            for referrer in repository.referrers(item.digest):
                repository.drop(referrer.digest)
                pending.append(referrer)
            doomed += [item, *needs(repository, item)]
        return self._unlink(repository, tuple(doomed))

    def _unlink(self, repository: LayoutRepository, blobs: tuple[Descriptor, ...]) -> int:
        needed: set[Digest] = set()
        with suppress(NotFound):
            for entry in repository.entries():
                needed |= {entry.digest, *(blob.digest for blob in needs(repository, entry))}
        freed = 0
        for digest in {blob.digest for blob in blobs} - needed:
            path = repository.blob_path(digest)
            with suppress(FileNotFoundError):
                freed += path.stat().st_size
                path.unlink()
        return freed


def signed_by_tag(entry: Descriptor) -> tuple[str, Digest] | None:
    """The repository and the digest of the manifest that an index entry is a signature of by its name, which cosign's
    older form makes of that digest; None for any other entry."""
    place, _, tag = (ref_name(entry) or "").rpartition(":")
    match = _SIGNATURE_TAG.fullmatch(tag)
    return (place, Digest("sha256", match[1])) if match else None


def _drop_signatures(layout: LayoutRepository, subject: Digest) -> list[Descriptor]:
    """Take the signature tags of a manifest away where it has no name any more; what they named. As long as it is
    there without any name nobody knows which repository it belongs to, and all stay."""
    entries = layout.entries()
    names = [ref_name(entry) for entry in entries if entry.digest == subject]
    places = {name.rpartition(":")[0] for name in names if name is not None}
    dropped: list[Descriptor] = []
    for entry in entries if None not in names else ():
        found = signed_by_tag(entry)
        if found is not None and found[1] == subject and found[0] not in places:
            LayoutRepository(layout.root, found[0] or None).delete_tag((ref_name(entry) or "").rpartition(":")[2])
            dropped.append(entry)
    return dropped


def needs(repository: LayoutRepository, item: Descriptor) -> tuple[Descriptor, ...]:
    """What a manifest in a layout refers to; nothing if it cannot be read."""
    try:
        _, raw = repository.manifest(item.digest)
        if item.media_type in (mediatypes.IMAGE_INDEX, mediatypes.DOCKER_MANIFEST_LIST):
            members = Index.parse(raw).manifests
            return (*members, *(blob for member in members for blob in needs(repository, member)))
        return Manifest.parse(raw).blobs
    except (NotFound, Malformed, DigestMismatch):
        return ()


def _is_complete(folder: Path, model: Model) -> bool:
    try:
        return all((folder / file.path).stat().st_size == file.blob.size for file in model.files)
    except (FileNotFoundError, NotADirectoryError):
        return False


def clone_or_copy(source: Path, target: Path) -> None:
    """Make `target` a read-only file with the content of `source`, for file systems that cannot link the two."""
    with source.open("rb") as old, target.open("xb") as new:
        try:
            ioctl(new.fileno(), _FICLONE, old.fileno())
        except OSError:
            shutil.copyfileobj(old, new, 1024 * 1024)
            new.flush()
            os.fsync(new.fileno())
        os.fchmod(new.fileno(), 0o444)


def remove_tree(folder: Path) -> None:
    """Remove a folder whose folders may be read-only."""
    if not folder.is_dir():
        return
    for path in (folder, *(item for item in folder.rglob("*") if item.is_dir() and not item.is_symlink())):
        path.chmod(0o755)
    shutil.rmtree(folder)
