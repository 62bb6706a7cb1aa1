"""One repository from one place to another: tags, what they point at, what refers to that, and nothing that is there
already."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import NotFound, ServerError, StowageError
from artifact.progress import Progress
from artifact.reference import referrers_tag
from artifact.remote import RemoteRepository
from registry.sync.artifacts import Artifacts, SharedBlobs
from registry.sync.places import Pair
from registry.sync.report import RepositoryReport
from supplychain.evidence import signature_tag

_ABOUT = re.compile(r"(sha(?:256|512))-([0-9a-f]{64})(\.(?:sig|att|sbom))?")
"""The fallback tag of a digest's referrers, and cosign's tags beside it."""


@dataclass(frozen=True)
class Options:
    """What is wanted of a run. `signature_tags` are the tags by which replicators that know nothing of referrers carry
    signatures."""

    concurrency: int = 4
    delete: bool = False
    dry_run: bool = False
    signature_tags: bool = False


def sync_repository(pair: Pair, options: Options, shared: SharedBlobs, progress: Progress) -> RepositoryReport:
    """Copy one repository. Whatever fails is in the report; the rest goes on."""
    report = RepositoryReport(pair.source.place, pair.target.place)
    try:
        _Sync(pair, options, shared, progress, report).run()
    except StowageError as error:
        report.failed(pair.source.place, error)
    return report


class _Sync:
    def __init__(
        self, pair: Pair, options: Options, shared: SharedBlobs, progress: Progress, report: RepositoryReport
    ) -> None:
        self._pair, self._source, self._target = pair, pair.source, pair.target
        self._options, self._report = options, report
        self._plain: set[Digest] = set()  # what is known to list no other manifests
        self._artifacts = Artifacts(pair, report, shared, progress, options.concurrency, options.dry_run)

    def run(self) -> None:
        names = self._tags()
        with ThreadPoolExecutor(self._options.concurrency, thread_name_prefix="sync") as pool:
            found = dict(zip(names, pool.map(self._resolve, names), strict=True))
            roots: dict[Digest, list[str]] = {}
            for tag, descriptor in found.items():
                if descriptor is None:
                    continue
                if descriptor.media_type == mediatypes.IMAGE_MANIFEST:
                    self._plain.add(descriptor.digest)
                if _is_listing(tag, descriptor):
                    roots.setdefault(_subject(tag), [])
                else:
                    roots.setdefault(descriptor.digest, []).append(tag)
            # What cosign's tags hold speaks of other artifacts: those come first.
            ordered = sorted(roots.items(), key=lambda root: any(map(_ABOUT.fullmatch, root[1])))
            _each(pool, lambda root: self._root(*root), ordered)
        if self._options.delete and None not in found.values():
            self._delete(set(found), set(roots))

    def _tags(self) -> list[str]:
        try:
            return self._source.tags()
        except NotFound:
            if self._pair.listed:  # some catalogs go on naming a repository whose tags are gone
                return []
            raise

    def _resolve(self, tag: str) -> Descriptor | None:
        try:
            return self._source.resolve(tag)
        except StowageError as error:
            self._report.failed(f"{self._source.place}:{tag}", error)
            return None

    def _root(self, digest: Digest, tags: list[str]) -> None:
        try:
            if tags:
                self._bring_tagged(digest, tags)
            else:
                with suppress(NotFound):  # referrers may outlive what they refer to, or come before it
                    self._artifacts.bring(digest)
            for member in self._artifacts.members(digest) if digest not in self._plain else ():
                self._artifacts.bring_referrers(member, self._options.signature_tags)
            referrers = self._artifacts.bring_referrers(digest, self._options.signature_tags)
            if self._options.signature_tags:
                self._check_signature_tag(digest, referrers)
        except StowageError as error:
            what = f"{self._source.place}:{tags[0]}" if tags else f"{self._source.place}@{digest}"
            self._report.failed(what, error)

    def _bring_tagged(self, digest: Digest, tags: list[str]) -> None:
        missing = [tag for tag in tags if self._points_at(tag) != digest]
        if missing:
            self._artifacts.bring(digest)
        for tag in missing:
            self._artifacts.tag(digest, tag)
        with self._report.lock:
            self._report.copied += missing
            self._report.unchanged += [tag for tag in tags if tag not in missing]

    def _points_at(self, tag: str) -> Digest | None:
        with suppress(NotFound):
            return self._target.resolve(tag).digest
        return None

    def _check_signature_tag(self, digest: Digest, referrers: list[Descriptor]) -> None:
        """Note an artifact that is signed by bundles alone. The older form signs another document: nobody but the
        holder of the key can make it."""
        if (
            not any(item.artifact_type == mediatypes.SIGSTORE_BUNDLE for item in referrers)
            or digest.algorithm != "sha256"
        ):
            return
        try:
            self._source.resolve(signature_tag(digest))
        except NotFound:
            with self._report.lock:
                self._report.bundles_only.append(str(digest))

    def _delete(self, wanted: set[str], kept: set[Digest]) -> None:
        """Remove the tags that the source does not have. Those that speak of an artifact that is still there stay: they
        are how the target lists signatures."""
        try:
            there = self._target.tags()
        except NotFound:
            return
        about = {referrers_tag(digest) for digest in kept}
        gone = []
        for tag in there:
            found = _ABOUT.fullmatch(tag)
            if tag not in wanted and not (found and f"{found[1]}-{found[2]}" in about):
                gone.append(tag)
        staying = [tag for tag in there if tag not in gone]
        for tag in gone:
            try:
                if not self._options.dry_run:
                    self._delete_tag(tag, staying)
                self._report.deleted.append(tag)
            except StowageError as error:
                self._report.failed(f"{self._target.place}:{tag}", error)

    def _delete_tag(self, tag: str, staying: Iterable[str]) -> None:
        """Remove a tag; where the registry deletes manifests only, its manifest, if no other tag points there."""
        try:
            self._target.delete_tag(tag)
        except ServerError as error:
            if not isinstance(self._target, RemoteRepository):
                raise
            digest = self._target.resolve(tag).digest
            others = [other for other in staying if self._points_at(other) == digest]
            if others:
                raise ServerError(
                    f"{error}; by its digest it cannot go, since {others[0]} points at the same manifest"
                ) from None
            self._target.delete_manifest(digest)


def _is_listing(tag: str, descriptor: Descriptor) -> bool:
    """Whether a tag stands in for a listing of referrers, which is written anew where the target needs it."""
    found = _ABOUT.fullmatch(tag)
    return (
        found is not None
        and found[3] is None
        and found[1] == "sha256"  # of a longer digest the tag holds a part
        and descriptor.media_type == mediatypes.IMAGE_INDEX
    )


def _subject(tag: str) -> Digest:
    return Digest.parse(tag.replace("-", ":", 1))


def _each(
    pool: ThreadPoolExecutor,
    work: Callable[[tuple[Digest, list[str]]], None],
    roots: Iterable[tuple[Digest, list[str]]],
) -> None:
    for _ in pool.map(work, roots):
        pass
