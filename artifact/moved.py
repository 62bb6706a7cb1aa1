"""How much of an artifact has travelled, for people."""

from __future__ import annotations

import threading

from artifact.descriptor import Descriptor
from artifact.errors import Malformed
from artifact.manifest import Manifest
from artifact.progress import Progress
from artifact.repository import Repository
from artifact.tensorindex.attach import index_digest


class Moved:
    """Progress that is passed on to `progress` and counted: `count` is the number of bytes that were moved."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self.count = 0

    def begin(self, name: str, total: int) -> None:
        self._progress.begin(name, total)

    def advance(self, name: str, count: int) -> None:
        with self._lock:
            self.count += count
        self._progress.advance(name, count)

    def finish(self, name: str, note: str = "") -> None:
        self._progress.finish(name, note)

    def of(self, total: int) -> str:
        """``moved 1.2 MB of 40 GB``, where `total` is the number of bytes of the artifact. What goes along with it
        (signatures, attestations) is counted as well, so there are as many at least as were moved."""
        return moved(self.count, max(total, self.count))


def moved(count: int, total: int) -> str:
    """How many of how many bytes travelled: ``moved 1.2 MB of 40 GB``."""
    return f"moved {size_text(count)} of {size_text(total)}"


def total_size(repository: Repository, descriptor: Descriptor) -> int:
    """The size of an artifact: of its blobs and its tensor index, each counted once, in bytes. 0 if it is not a plain
    artifact."""
    try:
        manifest = Manifest.parse(repository.manifest(descriptor.digest)[1], descriptor.media_type)
        index = index_digest(manifest)
    except Malformed:
        return 0
    held = (repository.blob_size(index) or 0) if index is not None else 0
    return sum({blob.digest: blob.size for blob in manifest.blobs}.values()) + held


def size_text(count: int) -> str:
    """A number of bytes in decimal units, with two digits at least: ``1.2 MB``."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.1f} {unit}" if value < 9.95 and unit != "B" else f"{value:.0f} {unit}"
