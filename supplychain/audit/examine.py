"""Looking at one thing: the tags of a repository, an artifact, a tag that may hold signatures.

What one of them fails at becomes a record of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import NotFound, ServerError, StorageFull, StowageError, Unauthorized, Unreachable
from artifact.manifest import Index, Manifest
from supplychain.audit.judgement import judged
from supplychain.audit.place import Place
from supplychain.audit.record import Record, Subject
from supplychain.audit.remembering import RememberingRepository
from supplychain.audit.state import State, StateUnusable
from supplychain.audit.vsa import Summaries
from supplychain.evidence import collect, layout_of, other_digests
from supplychain.policy import Policy

MAX_MEMBERS = 256
"""Most members of one index that are looked at as artifacts."""

_INDEXES = (mediatypes.IMAGE_INDEX, mediatypes.DOCKER_MANIFEST_LIST)
_SERVICE = re.compile(r"(sha256|sha512)-([0-9a-f]{64})(\.sig|\.att|\.sbom)?")
_SERVICE_LAYERS = {
    ".sig": re.compile(re.escape(mediatypes.SIMPLE_SIGNING)),
    ".att": re.compile(r"application/vnd\.dsse\.envelope\.v1\+json"),
    ".sbom": re.compile(r"text/spdx|(text/spdx|application/vnd\.(cyclonedx|syft))\+(json|xml)"),
}
_INCOMPLETE = (Unreachable, Unauthorized, ServerError)


@dataclass(frozen=True)
class Found:
    """What came of looking at one thing.

    `tags` and `services` are those of a repository, the latter tags that by their names hold signatures. `digest` is
    what was looked at, `members` are manifests it leads to. `unreached`: the registry did not answer at all.
    """

    record: Record | None = None
    digest: Digest | None = None
    members: tuple[Digest, ...] = ()
    tags: Sequence[str] = ()
    services: Sequence[str] = ()
    unreached: bool = False


class Examiner:
    """Looks at artifacts under `policy`, remembers in `state`, and writes `summaries` where that is wanted. Safe for
    several threads."""

    def __init__(self, policy: Policy, state: State, summaries: Summaries | None = None) -> None:
        self._policy = policy
        self._state = state
        self._summaries = summaries

    def tags(self, place: Place) -> Found:
        """The tags of a repository."""

        def look() -> Found:
            tags = _listed(place)
            services = [tag for tag in tags if _SERVICE.fullmatch(tag)]
            apart = set(services)
            return Found(
                tags=[tag for tag in tags if tag not in apart], services=services, members=(*place.untagged(),)
            )

        return _guarded(place.about(), look)

    def artifact(self, place: Place, present: frozenset[str], tag: str | None, digest: Digest | None = None) -> Found:
        """One artifact, by its tag, or by a digest."""
        return _guarded(place.about(tag, digest), lambda: self._artifact(place, present, tag, digest))

    def service(self, place: Place, present: frozenset[str], tag: str) -> Found:
        """A tag whose name says that it holds signatures: the manifest they are of; or, if it holds something else,
        that as an artifact. Names are free, and nothing may hide behind one."""

        def look() -> Found:
            repository = RememberingRepository(place.repository, self._state, present)
            listed = _signatures(tag, *repository.manifest(tag))
            return self._artifact(place, present, tag, None) if listed is None else Found(members=listed)

        return _guarded(place.about(tag), look)

    def loose(self, place: Place, present: frozenset[str], digest: Digest) -> Found:
        """A manifest without a tag that something else has led to; nothing if it is not there."""

        def look() -> Found:
            try:
                return self._artifact(place, present, None, digest)
            except NotFound:
                return Found()

        return _guarded(place.about(None, digest), look)

    def passed_over(self, place: Place, why: str) -> Found:
        """What a repository has and is not looked at: a record, so that no audit is whole that is not."""
        return Found(Record.broken(place.about(), StowageError(f"{place.about()}: {why}"), incomplete=True))

    def _artifact(self, place: Place, present: frozenset[str], tag: str | None, digest: Digest | None) -> Found:
        repository = RememberingRepository(place.repository, self._state, present)
        reference = digest if digest is not None else tag
        assert reference is not None
        descriptor, raw = repository.manifest(reference)
        subject = place.about(tag, descriptor.digest)
        try:
            kind, members, refers = _read(descriptor, raw)
        except StowageError as error:
            return Found(Record.broken(subject, error), descriptor.digest)
        if refers and tag is None:
            return Found(digest=descriptor.digest)  # a referrer: it is part of what it refers to
        also = other_digests(repository, descriptor.digest, self._policy.revoked.algorithms)
        evidence = replace(collect(repository, descriptor.digest), also=also)
        if any(rule.layouts is not None for rule in self._policy.rules):
            evidence = replace(evidence, layout=layout_of(repository, descriptor.digest))
        listing = repository.referrers(descriptor.digest)
        reused = repository.traffic.reused
        record = judged(self._policy, place.target(tag), subject, descriptor, evidence, listing, kind)
        record = replace(record, reused=reused)
        if self._summaries is not None:
            record = self._summaries.add(repository, record)
        if len(members) > MAX_MEMBERS:
            why = f"it has {len(members)} members, of which {MAX_MEMBERS} are looked at"
            record = replace(record, incomplete=True, reason=f"{record.reason}; {why}")
        return Found(record, descriptor.digest, members[:MAX_MEMBERS])


def _listed(place: Place) -> list[str]:
    try:
        return place.repository.tags()
    except NotFound as error:
        if place.asked:  # the user has named it: an answer is due, and this is none
            raise ServerError(f"{error}: it has no such repository, or nothing in it") from None
        raise


def _guarded(subject: Subject, look: Callable[[], Found]) -> Found:
    """What `look` finds. What it fails at is a finding too: one broken thing does not end the walk."""
    try:
        return look()
    except (StorageFull, StateUnusable):
        raise
    except StowageError as error:
        incomplete = isinstance(error, _INCOMPLETE)
        return Found(Record.broken(subject, error, incomplete=incomplete), unreached=isinstance(error, Unreachable))
    except (OSError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
        shown = StowageError(f"{subject}: internal error: {type(error).__name__}: {error}")
        return Found(Record.broken(subject, shown, incomplete=True))


def _read(descriptor: Descriptor, raw: bytes) -> tuple[str | None, tuple[Digest, ...], bool]:
    """A manifest's artifact type, an index's members, and whether it refers to another. Raises `Malformed`."""
    if descriptor.media_type in _INDEXES:
        index = Index.parse(raw, descriptor.media_type)
        members = tuple(dict.fromkeys(item.digest for item in index.manifests))
        return index.artifact_type, members, index.subject is not None
    manifest = Manifest.parse(raw, descriptor.media_type)
    return manifest.referrer_type, (), manifest.subject is not None


def _signatures(tag: str, descriptor: Descriptor, raw: bytes) -> tuple[Digest, ...] | None:
    """The manifests that a tag of signatures leads to: what they are of, and the members of a list of referrers. None
    if it holds something else."""
    match = _SERVICE.fullmatch(tag)
    assert match is not None
    # The name of a sha512 one is cut off.
    of = (Digest("sha256", match[2]),) if match[1] == "sha256" else ()
    try:
        if match[3] is None:
            index = Index.parse(raw, descriptor.media_type)
            return (*of, *(item.digest for item in index.manifests))
        layers = Manifest.parse(raw, descriptor.media_type).layers
    except StowageError:
        return None
    return of if all(_SERVICE_LAYERS[match[3]].fullmatch(layer.media_type) for layer in layers) else None
