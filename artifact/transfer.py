"""Moving whole artifacts between repositories, in an order in which nothing incomplete is ever named."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import Malformed, NotFound, ServerError, Unauthorized
from artifact.manifest import EMPTY_CONFIG, Index, Manifest
from artifact.parallel import Stopped, run_all, stoppable
from artifact.progress import Progress
from artifact.reference import is_tag
from artifact.remote import RemoteRepository
from artifact.remote.delta import LEAST, Base, Delta, base_of
from artifact.repository import Repository
from artifact.source import Source, bytes_source
from artifact.tensorindex.attach import index_digest, push_referrer
from artifact.tensorindex.format import MAX_BYTES

CONCURRENCY = 4
"""How many blobs move at the same time unless the caller says otherwise."""

MAX_REFERRERS = 512
"""Most manifests that refer to one artifact, at any distance, that are copied with it."""

MAX_REFERRER_BYTES = 1024 * 1024 * 1024
"""Most bytes copied for them together."""

EMPTY = Descriptor.of(EMPTY_CONFIG, mediatypes.EMPTY)
"""The config of a manifest that needs none."""

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
    base: Base | None = None,
) -> Descriptor:
    """Copy the manifest `digest` with all it needs, and point `tag` at it in the target.

    A registry that can makes large blobs of what it has in `base`, or else in what `tag` points at now, and of what
    is new; so only that travels. Raises `InvalidInput` if `base` is in another registry than the target.

    Blobs go first and the manifest last, so the target never shows a manifest whose parts are missing. With
    `referrers` everything that refers to it (signatures, attestations; also under cosign's tags) follows.
    Returns the manifest's descriptor. Every byte is checked against its digest where it arrives.
    """
    copy = _Copy(source, target, progress, concurrency, base_of(target, tag, base))
    descriptor = copy.manifest(digest, tag)
    if referrers:
        copy.referrers(digest)
    return descriptor


def copy_referrers(
    source: Repository, target: Repository, subject: Digest, progress: Progress, concurrency: int = CONCURRENCY
) -> None:
    """Copy whatever refers to `subject`: by the referrers API, and by cosign's tag scheme.

    Anyone who can push can add referrers, so they are bounded: raises `Malformed` above `MAX_REFERRERS` of them or
    `MAX_REFERRER_BYTES` together.
    """
    _Copy(source, target, progress, concurrency).referrers(subject)


class _Copy:
    """One copy from place to place, with what it may still move."""

    def __init__(
        self, source: Repository, target: Repository, progress: Progress, concurrency: int, base: Base | None = None
    ) -> None:
        self._source, self._target, self._base = source, target, base
        self._progress, self._concurrency = progress, concurrency
        self._seen: set[Digest] = set()
        self._members: set[Digest] = set()
        self._manifests = 0
        self._left = MAX_REFERRER_BYTES

    def manifest(self, digest: Digest, tag: str | None, depth: int = 0, *, bounded: bool = False) -> Descriptor:
        if depth > _MAX_DEPTH:
            raise Malformed(f"{self._source.place}: manifests refer to one another more than {_MAX_DEPTH} levels deep")
        descriptor, raw = self._source.manifest(digest)
        index: Descriptor | None = None
        if descriptor.media_type in (mediatypes.IMAGE_INDEX, mediatypes.DOCKER_MANIFEST_LIST):
            if bounded:
                self._spend(len(raw))
            for member in Index.parse(raw, descriptor.media_type).manifests:
                if self._is_new(member.digest, self._members, bounded=bounded):
                    self.manifest(member.digest, None, depth + 1, bounded=bounded)
        else:
            manifest = Manifest.parse(raw, descriptor.media_type)
            if bounded:
                self._spend(len(raw) + sum(blob.size for blob in manifest.blobs))
            index = self._index(manifest) if depth == 0 else None
            delta = self._delta(manifest) if depth == 0 else None
            contents = {blob: self._source.blob_source(blob) for blob in manifest.blobs}
            if index is not None:  # which is no layer, but the next version can rest on it
                contents[index] = self._source.blob_source(index)
                contents[EMPTY] = bytes_source(EMPTY_CONFIG)
            push_blobs(self._target, contents, self._progress, self._concurrency, self._source, delta)
        self._target.push_manifest(raw, descriptor.media_type, tag)
        if index is not None:
            with suppress(ServerError, Unauthorized):  # the artifact is there: without it, it only travels slower
                push_referrer(self._target, descriptor, index)
        return descriptor

    def _index(self, manifest: Manifest) -> Descriptor | None:
        """The tensor index, if the artifact has one and the source holds it."""
        with suppress(Malformed):
            digest = index_digest(manifest)
            size = self._source.blob_size(digest) if digest is not None else None
            if digest is not None and size is not None and size <= MAX_BYTES:
                return Descriptor(mediatypes.TENSOR_INDEX, digest, size)
        return None

    def _delta(self, manifest: Manifest) -> Delta | None:
        if self._base is None or not isinstance(self._target, RemoteRepository):
            return None
        return Delta(self._source, self._target, manifest, self._base)

    def referrers(self, subject: Digest, depth: int = 1) -> None:
        for item in self._source.referrers(subject):
            if self._is_new(item.digest, self._seen):
                self.manifest(item.digest, None, depth, bounded=True)
                self.referrers(item.digest, depth + 1)
        for suffix in _COSIGN_SUFFIXES:
            tag = f"{subject.algorithm}-{subject.hex}{suffix}"
            if is_tag(tag):  # a sha512 digest is too long to be one
                with suppress(NotFound):
                    self.manifest(self._source.resolve(tag).digest, tag, depth, bounded=True)

    def _is_new(self, digest: Digest, known: set[Digest], *, bounded: bool = True) -> bool:
        """Whether `digest` was not among `known`, where it is from now on. What is `bounded` counts."""
        if digest in known:
            return False
        known.add(digest)
        self._manifests += bounded
        if self._manifests > MAX_REFERRERS:
            raise Malformed(f"{self._source.place}: more than {MAX_REFERRERS} manifests refer to this one: not copied")
        return True

    def _spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise Malformed(
                f"{self._source.place}: the referrers are larger than {MAX_REFERRER_BYTES} bytes: not copied"
            )


def copy_blobs(
    source: Repository,
    target: Repository,
    blobs: Iterable[Descriptor],
    progress: Progress,
    concurrency: int,
    delta: Delta | None = None,
) -> None:
    """Copy blobs side by side. The first failure stops the others at their next buffer and is raised."""
    contents = {blob: source.blob_source(blob) for blob in blobs}
    push_blobs(target, contents, progress, concurrency, origin=source, delta=delta)


def push_blobs(
    target: Repository,
    contents: Mapping[Descriptor, Source],
    progress: Progress,
    concurrency: int = CONCURRENCY,
    origin: Repository | None = None,
    delta: Delta | None = None,
) -> None:
    """Store blobs side by side, the largest beside the small ones, which do not wait behind large ones.

    Where `origin` has them, they are mounted if the target can do that; of large ones only what `delta` does not know
    to be there is sent. The first failure stops the others.
    """
    ordered = sorted(contents.items(), key=lambda item: item[0].size)
    if concurrency > 1:
        ordered = [*ordered[-1:], *ordered[:-1]]
    work = [partial(_push_blob, target, blob, content, progress, origin, delta) for blob, content in ordered]
    run_all(work, concurrency)


def _push_blob(
    target: Repository,
    blob: Descriptor,
    content: Source,
    progress: Progress,
    origin: Repository | None,
    delta: Delta | None,
    stop: threading.Event,
) -> None:
    if stop.is_set():
        raise Stopped("stopped")
    if origin is not None and target.mount_blob(blob.digest, origin):
        progress.finish(str(blob.digest), "mounted")
    elif delta is not None and isinstance(target, RemoteRepository) and blob.size >= LEAST:
        target.compose_blob(blob, stoppable(content, stop), partial(delta.composition, blob.digest), progress)
    else:
        target.push_blob(blob, stoppable(content, stop), progress)
