"""What a repository holds in favour of an artifact.

`collect` reads the signatures of a digest from everywhere they may be: the referrers listing, the fallback tag that
stands in for it, and cosign's older ``.sig`` tag. It judges nothing. One that cannot be read becomes an item that says
so and hides no other; a repository that cannot be reached or wants credentials raises, so that the caller fails closed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from itertools import islice

from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import DigestMismatch, InvalidInput, Malformed, NotFound
from artifact.manifest import Index, Manifest
from artifact.mediatypes import IMAGE_MANIFEST, SIGSTORE_BUNDLE, SIMPLE_SIGNING
from artifact.reference import referrers_tag
from artifact.repository import Repository
from supplychain import bundle, simplesigning
from supplychain.bundle import Bundle
from supplychain.dsse import decode_base64
from supplychain.refusal import Reason

NOTATION = "application/vnd.cncf.notary.signature"
"""Artifact type of Notary Project signatures; recognised, not judged."""

MAX_ITEMS = 128
"""Most signatures of one artifact that are looked at. What lies beyond is reported, not read."""

MAX_MANIFEST = 256 * 1024
"""Largest manifest of a signature that is read, in bytes."""

MAX_TOTAL = 32 * 1024 * 1024
"""Most bytes read for the evidence of one artifact, together."""

REFERRERS = "referrers"
"""`Item.source` of what is said about the listing of referrers as a whole."""

_UNREADABLE = (NotFound, Malformed, DigestMismatch, InvalidInput)


class Form(StrEnum):
    """How a signature is kept."""

    BUNDLE = "sigstore-bundle"
    LEGACY = "cosign-legacy"
    NOTATION = "notation"
    LISTING = "listing"


@dataclass(frozen=True)
class Legacy:
    """A signature in cosign's older form: the signed bytes and the signature over them."""

    payload: bytes
    signature: bytes
    keyless: bool = False


@dataclass(frozen=True)
class Fault:
    """Why an item could not be read."""

    code: Reason
    detail: str


@dataclass(frozen=True)
class Item:
    """One signature as found. `source` says where; `content` is None for a `Fault` or a form not judged here.

    `manifest` is the digest of the referrer that carries it.
    """

    form: Form
    source: str
    content: Bundle | Legacy | None = None
    fault: Fault | None = None
    manifest: Digest | None = None


@dataclass(frozen=True)
class Evidence:
    """All that was found for `subject`. `at` is when it was looked for: what a policy says about ages is judged against
    it. `layout` is how the artifact is written (`layout_of`), `also` are digests of the same manifest by other
    algorithms (`other_digests`), where somebody asked."""

    subject: Digest
    items: tuple[Item, ...] = ()
    at: datetime | None = None
    layout: str | None = None
    also: frozenset[Digest] = frozenset()


def signature_tag(subject: Digest) -> str:
    """The tag cosign's older form keeps the signatures of `subject` under. Only sha256 digests have one."""
    return f"{subject.algorithm}-{subject.hex}.sig"


def collect(repository: Repository, subject: Digest) -> Evidence:
    """Everything `repository` holds in favour of `subject`. Raises `Unreachable`, `Unauthorized`, `ServerError`."""
    reader = _Reader(repository, subject)
    # Each place has a cap of its own, so that a flood of one does not crowd out the other.
    items = (*_bounded(reader.legacy(), "signature tag"), *_bounded(reader.referrers(), REFERRERS))
    return Evidence(subject, items, datetime.now(UTC))


LAYOUTS = {"modelpack": "application/vnd.cncf.model.config.", "docker": "application/vnd.docker.ai."}
"""Ways an artifact can be written, and how the media type of its config begins."""


def layout_of(repository: Repository, subject: Digest) -> str:
    """How the artifact is written: one of `LAYOUTS`, or ``other``. Raises `NotFound`, `Malformed`, and as `collect`."""
    descriptor, raw = repository.manifest(subject)
    try:
        config = Manifest.parse(raw, descriptor.media_type).config.media_type
    except Malformed:
        return "other"  # an index, or nothing a model could be
    return next((name for name, prefix in LAYOUTS.items() if config.startswith(prefix)), "other")


def other_digests(repository: Repository, subject: Digest, algorithms: Iterable[str]) -> frozenset[Digest]:
    """What else the manifest is called, by those of `algorithms` that are not the subject's own: which one a tag leads
    to is the registry's choice. Raises `NotFound`, and as `collect`."""
    others = set(algorithms) - {subject.algorithm}
    if not others:
        return frozenset()
    _, raw = repository.manifest(subject)
    return frozenset(Digest.of(raw, algorithm) for algorithm in others)


_Read = Callable[[], "Item | None"]


def _bounded(found: Iterator[_Read], place: str) -> Iterator[Item]:
    """Read at most `MAX_ITEMS`, and say so when there are more."""
    for read in islice(found, MAX_ITEMS):
        item = read()
        if item is not None:
            yield item
    if next(found, None) is not None:
        fault = Fault(Reason.TOO_MANY, f"more than {MAX_ITEMS} signatures: the rest was not looked at")
        yield Item(Form.LISTING, place, fault=fault)


class _TooLarge(Exception):
    """A size limit was met."""


class _WrongSubject(Exception):
    """A listed manifest refers to something else."""


class _Reader:
    def __init__(self, repository: Repository, subject: Digest) -> None:
        self._repository = repository
        self._subject = subject
        self._left = MAX_TOTAL

    def legacy(self) -> Iterator[_Read]:
        if self._subject.algorithm != "sha256":
            return
        tag = signature_tag(self._subject)
        try:
            manifest = self._manifest(tag)
        except NotFound:
            return
        except (*_UNREADABLE, _TooLarge) as error:
            yield partial(_faulty, Form.LEGACY, f"tag {tag}", error)
            return
        for layer in manifest.layers:
            if layer.media_type == SIMPLE_SIGNING:
                yield partial(self._legacy, f"tag {tag}, layer {layer.digest}", layer)

    def referrers(self) -> Iterator[_Read]:
        listing: list[Descriptor] = []
        for read in (self._listed, self._fallback):
            try:
                listing += read()
            except NotFound:
                continue
            except (*_UNREADABLE, _TooLarge) as error:
                yield partial(_faulty, Form.LISTING, REFERRERS, error)
        for entry in _relevant(listing):
            yield partial(self._referrer, f"referrer {entry.digest}", entry)

    def _listed(self) -> list[Descriptor]:
        return self._repository.referrers(self._subject)

    def _fallback(self) -> list[Descriptor]:
        descriptor, raw = self._repository.manifest(referrers_tag(self._subject))
        self._spend(len(raw))
        return list(Index.parse(raw, descriptor.media_type).manifests)

    def _legacy(self, source: str, layer: Descriptor) -> Item:
        try:
            payload = self._blob(layer, simplesigning.MAX_BYTES)
            signature = decode_base64(layer.annotations.get(simplesigning.SIGNATURE), "signature annotation")
        except (*_UNREADABLE, _TooLarge) as error:
            return _faulty(Form.LEGACY, source, error)
        return Item(Form.LEGACY, source, Legacy(payload, signature, simplesigning.CERTIFICATE in layer.annotations))

    def _referrer(self, source: str, entry: Descriptor) -> Item | None:
        if entry.artifact_type == NOTATION:
            return Item(Form.NOTATION, source)
        try:
            if entry.size > MAX_MANIFEST:
                raise _TooLarge(f"manifest is larger than {MAX_MANIFEST} bytes")
            manifest = self._manifest(entry.digest)
            if entry.artifact_type is None and manifest.referrer_type != SIGSTORE_BUNDLE:
                return Item(Form.NOTATION, source) if manifest.referrer_type == NOTATION else None
            return Item(Form.BUNDLE, source, self._bundle(manifest), manifest=entry.digest)
        except _WrongSubject:
            fault = Fault(Reason.WRONG_SUBJECT, "it is listed here but refers to another manifest")
            return Item(Form.BUNDLE, source, fault=fault)
        except (*_UNREADABLE, _TooLarge) as error:
            return _faulty(Form.BUNDLE, source, error)

    def _bundle(self, manifest: Manifest) -> Bundle:
        if manifest.subject is None or manifest.subject.digest != self._subject:
            raise _WrongSubject
        if [layer.media_type for layer in manifest.layers] != [SIGSTORE_BUNDLE]:
            raise Malformed("a bundle's manifest must have one layer, the bundle")
        return Bundle.parse(self._blob(manifest.layers[0], bundle.MAX_BYTES))

    def _manifest(self, reference: str | Digest) -> Manifest:
        descriptor, raw = self._repository.manifest(reference)
        self._spend(len(raw))
        if len(raw) > MAX_MANIFEST:
            raise _TooLarge(f"manifest is larger than {MAX_MANIFEST} bytes")
        return Manifest.parse(raw, descriptor.media_type)

    def _blob(self, descriptor: Descriptor, limit: int) -> bytes:
        if descriptor.size > limit:
            raise _TooLarge(f"blob of {descriptor.size} bytes is larger than {limit}")
        self._spend(descriptor.size)
        return self._repository.read_blob(descriptor, limit)

    def _spend(self, count: int) -> None:
        if count > self._left:
            raise _TooLarge(f"the signatures together are larger than {MAX_TOTAL} bytes")
        self._left -= count


def _relevant(listing: Iterable[Descriptor]) -> list[Descriptor]:
    """The signatures among referrers, each once. An entry without a type is looked at: only its manifest can tell.

    Two listings may say different things of one manifest. The one by which it is read decides: whoever can write the
    fallback tag cannot hide with it what the registry itself lists.
    """
    unique: dict[Digest, Descriptor] = {}
    for entry in listing:
        if entry.media_type == IMAGE_MANIFEST and entry.artifact_type in (SIGSTORE_BUNDLE, NOTATION, None):
            known = unique.get(entry.digest)
            if known is None or known.artifact_type == NOTATION:
                unique[entry.digest] = entry
    return list(unique.values())


def _faulty(form: Form, source: str, error: Exception) -> Item:
    codes = {NotFound: Reason.UNREADABLE, DigestMismatch: Reason.UNREADABLE, _TooLarge: Reason.OVERSIZED}
    return Item(form, source, fault=Fault(codes.get(type(error), Reason.MALFORMED), str(error)))
