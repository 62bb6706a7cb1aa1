"""What the store holds, and what can go: ``runner df``, ``prune`` and ``fsck``.

Everything here leaves models that are being served alone, and waits for pulls under way. `packager` packs into the same
store without waiting for anybody, so that what nothing refers to is removed only when it is an hour old.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import InvalidInput, NotFound, StowageError
from artifact.layout import LayoutRepository
from artifact.layout.index import ref_name
from artifact.progress import Progress
from runner.state import running
from runner.store import Store, StoredModel, needs, remove_tree, signed_by_tag

GRACE = 3600.0
"""Seconds that bytes nothing refers to are left alone: somebody may be about to refer to them."""

_BUFFER = 1024 * 1024


@dataclass(frozen=True)
class Usage:
    """Bytes in a store. `models` counts them; `blobs` are all blobs, `unreferenced` of them are needed by nothing;
    `ingest` are of transfers that have not ended; `copies` of bundles that could not be links; `logs` of engines."""

    models: int = 0
    blobs: int = 0
    unreferenced: int = 0
    ingest: int = 0
    copies: int = 0
    logs: int = 0
    free: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.blobs + self.ingest + self.copies + self.logs

    def to_json(self) -> dict[str, int]:
        """The numbers as ``runner df --json`` shows them, in bytes."""
        return {**vars(self), "total": self.total}


@dataclass
class Pruned:
    """What was removed, or would be: models by name, other things by what they are, and the bytes of all."""

    models: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    freed: int = 0

    def to_json(self) -> dict[str, Any]:
        """The report for scripts."""
        return dict(vars(self))


def usage(store: Store) -> Usage:
    """How much the user's store holds."""
    blobs = dict(_blob_files(store))
    needed = _needed(store)
    own = [item.model.digest for item in store.models() if not item.system]
    spare = sum(size for digest, (_, size) in blobs.items() if digest not in needed)
    with suppress(OSError):
        status = os.statvfs(store.root)
        return Usage(
            models=len(set(own)),
            blobs=sum(size for _, size in blobs.values()),
            unreferenced=spare,
            ingest=_bytes_in(store.root / "ingest"),
            copies=_bytes_in(store.root / "bundles", only_single=True),
            logs=_bytes_in(store.root / "logs"),
            free=status.f_bavail * status.f_frsize,
        )
    return Usage()


def prune(
    store: Store, *, older_than: float | None = None, keep_size: int | None = None, dry_run: bool = False
) -> Pruned:
    """Remove what nothing needs; with `older_than` (seconds) also models that were not used for so long, with
    `keep_size` (bytes) the models used longest ago until the rest are no larger. With `dry_run` only say so."""
    pruned = Pruned()
    if not (store.root / "oci-layout").exists():
        return pruned
    with store.exclusively():
        doomed = _doomed(store, older_than, keep_size)
        for descriptor, label in doomed:
            pruned.models.append(label)
            if dry_run:
                pruned.freed += _alone(store, descriptor)
            else:
                pruned.freed += store.forget(descriptor)
        for label, size, remove in _leftovers(store):
            pruned.leftovers.append(label)
            pruned.freed += size
            if not dry_run:
                remove()
    return pruned


def _doomed(store: Store, older_than: float | None, keep_size: int | None) -> list[tuple[Descriptor, str]]:
    """The models to remove, unnamed ones first, then those used longest ago."""
    served = {digest for run in running(store.root) for model in run.models for digest in model.digests}
    by_digest: dict[Digest, list[StoredModel]] = {}
    for item in store.models():
        if not item.system:
            by_digest.setdefault(item.model.digest, []).append(item)
    layout = LayoutRepository(store.root)
    named = {entry.digest for entry in layout.entries() if ref_name(entry)}
    ages = sorted((store.last_used(digest), digest) for digest in by_digest)
    size = sum(items[0].model.size for items in by_digest.values())
    now = time.time()
    doomed: list[tuple[Descriptor, str]] = []
    for used, digest in ages:
        items = by_digest[digest]
        if str(digest) in served:
            continue
        old = older_than is not None and now - used > older_than
        crowded = keep_size is not None and size > keep_size
        replaced = digest not in named and not items[0].record and now - used > GRACE
        if old or crowded or replaced:
            size -= items[0].model.size
            label = ", ".join(item.name for item in items if item.name) or str(digest)
            doomed.append((layout.resolve(digest), label))
    return doomed


def _leftovers(store: Store) -> Iterator[tuple[str, int, Callable[[], None]]]:
    """What no model needs: blobs, abandoned transfers, bundles of models that are gone."""
    now = time.time()
    needed = _needed(store)
    blobs = dict(_blob_files(store))
    old = {digest for digest, (path, _) in blobs.items() if now - path.stat().st_mtime > GRACE}
    for name, digest, remove in _orphans(store, needed):
        if digest in old or digest not in blobs:
            yield f"signature {name}", 0, remove
    for digest, (path, size) in blobs.items():
        if digest in old - needed:
            yield f"blob {digest}", size, path.unlink
    for path in _files(store.root / "ingest"):
        with suppress(OSError):
            status = path.stat()
            if now - status.st_mtime > GRACE and _is_abandoned(path):
                yield f"transfer {path.name}", status.st_size, path.unlink
    for folder in (store.root / "bundles").glob("sha*/*"):
        if Digest(folder.parent.name, folder.name) not in needed:
            yield f"bundle {folder.name}", _bytes_in(folder, only_single=True), partial(remove_tree, folder)


def _is_abandoned(path: Path) -> bool:
    """Whether nobody is writing the file: its writer would hold a lock on it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _alone(store: Store, descriptor: Descriptor) -> int:
    """Bytes that would be freed if this model went, and nothing else."""
    gone = _needed(store) - _needed(store, without=descriptor.digest)
    return sum(size for digest, (_, size) in _blob_files(store) if digest in gone)


def fsck(store: Store, progress: Progress, *, dry_run: bool = False) -> list[tuple[Digest, list[str]]]:
    """Hash every blob of the user's store; return the damaged ones with the names of the models they belong to.

    Damaged blobs are removed with the bundles that link to them, so that the next pull fetches them again; with
    `dry_run` they stay.
    """
    damaged: list[tuple[Digest, list[str]]] = []
    owners = _owners(store)
    for digest, (path, size) in _blob_files(store):
        with suppress(FileNotFoundError):  # removed meanwhile
            progress.begin(str(digest), size)
            if _is_sound(path, digest, progress):
                progress.finish(str(digest))
                continue
            progress.finish(str(digest), "damaged")
            models = owners.get(digest, [])
            damaged.append((digest, sorted(item.name or str(item.model.digest) for item in models)))
            if not dry_run:
                with store.exclusively():
                    path.unlink(missing_ok=True)
                    for item in models:
                        store.drop_bundle(item.model.digest)
    return damaged


def _is_sound(path: Path, digest: Digest, progress: Progress) -> bool:
    hasher = digest.hasher()
    buffer = memoryview(bytearray(_BUFFER))
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            hasher.update(buffer[:count])
            progress.advance(str(digest), count)
    return hasher.hexdigest() == digest.hex


def _owners(store: Store) -> dict[Digest, list[StoredModel]]:
    owners: dict[Digest, list[StoredModel]] = {}
    for item in store.models():
        for digest in {item.model.digest, *(blob.digest for blob in item.model.manifest.blobs)}:
            owners.setdefault(digest, []).append(item)
    return owners


def _needed(store: Store, without: Digest | None = None) -> set[Digest]:
    """Digests of everything the index leads to. A manifest whose subject is gone, and that has no name, or one that
    cosign made of its subject's digest, leads nowhere: it is a signature of nothing."""
    layout = LayoutRepository(store.root)
    try:
        entries = layout.entries()
    except NotFound:
        return set()
    listed = {entry.digest for entry in entries if entry.digest != without}
    needed: set[Digest] = set()
    for entry in sorted(entries, key=lambda entry: signed_by_tag(entry) is not None):
        subject = entry.annotations.get(mediatypes.SUBJECT)
        if entry.digest == without or (subject and ref_name(entry) is None and not _is_in(subject, listed)):
            continue
        signed = signed_by_tag(entry)
        if signed is None or signed[1] in listed | needed:
            needed |= {entry.digest, *(blob.digest for blob in needs(layout, entry))}
    return needed


def _orphans(store: Store, needed: set[Digest]) -> Iterator[tuple[str, Digest, Callable[[], None]]]:
    """The tags in the index of what is not `needed`, which signed manifests that are gone."""
    for entry in LayoutRepository(store.root).entries():
        found = signed_by_tag(entry)
        if found is not None and entry.digest not in needed:
            name = ref_name(entry) or ""
            layout = LayoutRepository(store.root, found[0] or None)
            yield name, entry.digest, partial(layout.delete_tag, name.rpartition(":")[2])


def _is_in(subject: str, listed: set[Digest]) -> bool:
    try:
        return Digest.parse(subject) in listed
    except InvalidInput:
        return True


def _blob_files(store: Store) -> Iterator[tuple[Digest, tuple[Path, int]]]:
    for path in sorted((store.root / "blobs").glob("sha*/*")):
        with suppress(StowageError, FileNotFoundError):
            digest = Digest(path.parent.name, path.name)
            yield digest, (path, path.stat().st_size)


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield path


def _bytes_in(folder: Path, *, only_single: bool = False) -> int:
    """Bytes of the files in a folder; with `only_single` those that no other name leads to."""
    total = 0
    for path in _files(folder):
        with suppress(FileNotFoundError):
            status = path.stat()
            if not only_single or status.st_nlink == 1:
                total += status.st_size
    return total
