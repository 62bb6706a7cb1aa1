"""Moving whole artifacts between repositories, in an order in which nothing incomplete is ever named."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import Malformed, NotFound
from artifact.manifest import Index, Manifest
from artifact.parallel import Stopped, run_all, stoppable
from artifact.progress import Progress
from artifact.repository import Repository
from artifact.source import Source

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
    source: Repository, target: Repository, blobs: Iterable[Descriptor], progress: Progress, concurrency: int
) -> None:
    """Copy blobs side by side. The first failure stops the others at their next buffer and is raised."""
    contents = {blob: partial(source.open_blob, blob) for blob in blobs}
    push_blobs(target, contents, progress, concurrency, origin=source)


def push_blobs(
    target: Repository,
    contents: Mapping[Descriptor, Source],
    progress: Progress,
    concurrency: int = CONCURRENCY,
    origin: Repository | None = None,
) -> None:
    """Store blobs side by side, small ones first so that they do not wait behind large ones.

    Where `origin` has them, they are mounted if the target can do that. The first failure stops the others.
    """
    ordered = sorted(contents.items(), key=lambda item: item[0].size)
    run_all([partial(_push_blob, target, blob, content, progress, origin) for blob, content in ordered], concurrency)


def _push_blob(
    target: Repository,
    blob: Descriptor,
    content: Source,
    progress: Progress,
    origin: Repository | None,
    stop: threading.Event,
) -> None:
    if stop.is_set():
        raise Stopped("stopped")
    if origin is not None and target.mount_blob(blob.digest, origin):
        progress.finish(str(blob.digest), "mounted")
        return
    target.push_blob(blob, stoppable(content, stop), progress)
