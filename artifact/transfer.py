"""Moving whole artifacts between repositories, in an order in which nothing incomplete is ever named."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import Malformed, NotFound, StowageError
from artifact.manifest import Index, Manifest
from artifact.progress import Progress
from artifact.repository import Repository
from artifact.source import Reader, Source

CONCURRENCY = 4
"""How many blobs move at the same time unless the caller says otherwise."""

_MAX_DEPTH = 4
_COSIGN_SUFFIXES = (".sig", ".att", ".sbom")


def copy_artifact(
    source: Repository,
    target: Repository,
    digest: Digest,
    *,
    tag: str | None = None,
    progress: Progress,
    concurrency: int = CONCURRENCY,
    referrers: bool = False,
) -> Descriptor:
    """Copy the manifest `digest` with all it needs, and point `tag` at it in the target.

    Blobs go first and the manifest last, so the target never shows a manifest whose parts are missing. With
    `referrers` everything that refers to it (signatures, attestations; also under cosign's tags) follows.
    Returns the manifest's descriptor. Every byte is checked against its digest where it arrives.
    """
    return _copy(source, target, digest, tag, progress, concurrency, referrers, 0)


def _copy(
    source: Repository, target: Repository, digest: Digest, tag: str | None, progress: Progress, concurrency: int,
    referrers: bool, depth: int,
) -> Descriptor:  # fmt: skip
    if depth > _MAX_DEPTH:
        raise Malformed(f"{source.place}: manifests refer to one another more than {_MAX_DEPTH} levels deep")
    descriptor, raw = source.manifest(digest)
    if descriptor.media_type in (mediatypes.IMAGE_INDEX, mediatypes.DOCKER_MANIFEST_LIST):
        for member in Index.parse(raw, descriptor.media_type).manifests:
            _copy(source, target, member.digest, None, progress, concurrency, referrers, depth + 1)
    else:
        copy_blobs(source, target, Manifest.parse(raw, descriptor.media_type).blobs, progress, concurrency)
    target.push_manifest(raw, descriptor.media_type, tag)
    if referrers:
        copy_referrers(source, target, digest, progress, concurrency, depth=depth)
    return descriptor


def copy_referrers(
    source: Repository, target: Repository, subject: Digest, progress: Progress, concurrency: int = CONCURRENCY,
    *, depth: int = 0,
) -> None:  # fmt: skip
    """Copy whatever refers to `subject`: by the referrers API, and by cosign's tag scheme."""
    for item in source.referrers(subject):
        _copy(source, target, item.digest, None, progress, concurrency, True, depth + 1)
    for suffix in _COSIGN_SUFFIXES:
        name = f"{subject.algorithm}-{subject.hex}{suffix}"
        with suppress(NotFound):
            found = source.resolve(name)
            _copy(source, target, found.digest, name, progress, concurrency, False, depth + 1)


def copy_blobs(
    source: Repository, target: Repository, blobs: tuple[Descriptor, ...], progress: Progress, concurrency: int
) -> None:
    """Copy blobs side by side, small ones first so that they do not wait behind large ones.

    The first failure stops the others at their next buffer and is raised.
    """
    stop = threading.Event()
    pool = ThreadPoolExecutor(max_workers=max(1, concurrency), thread_name_prefix="blob")
    try:
        ordered = sorted(blobs, key=lambda item: item.size)
        running = [pool.submit(_copy_blob, source, target, item, progress, stop) for item in ordered]
        done, _ = wait(running, return_when=FIRST_EXCEPTION)
        failures = [error for future in done if (error := future.exception()) is not None]
        if failures:
            raise next((error for error in failures if not isinstance(error, _Stopped)), failures[0])
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


class _Stopped(StowageError):
    """Another blob failed, so this one is not needed any more."""


class _Stoppable:
    def __init__(self, reader: Reader, stop: threading.Event) -> None:
        self._reader, self._stop = reader, stop

    def readinto(self, buffer: memoryview, /) -> int | None:
        if self._stop.is_set():
            raise _Stopped("stopped")
        return self._reader.readinto(buffer)


def _copy_blob(
    source: Repository, target: Repository, blob: Descriptor, progress: Progress, stop: threading.Event
) -> None:
    @contextmanager
    def open_at(offset: int) -> Iterator[Reader]:
        with source.open_blob(blob, offset) as reader:
            yield _Stoppable(reader, stop)

    if stop.is_set():
        return
    if target.mount_blob(blob.digest, source):
        progress.finish(str(blob.digest), "mounted")
        return
    content: Source = open_at
    target.push_blob(blob, content, progress)
