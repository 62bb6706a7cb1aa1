"""Writing what refers to a manifest: signed bundles, and documents as they are."""

from __future__ import annotations

import os
from datetime import UTC, datetime

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.errors import InvalidInput
from artifact.manifest import EMPTY_CONFIG, Manifest
from artifact.progress import Quiet
from artifact.repository import Repository
from artifact.source import bytes_source
from supplychain import bundle
from supplychain.bundle import Bundle
from supplychain.dsse import Envelope, pae
from supplychain.keyless import KeylessSigner
from supplychain.keys import PrivateKey
from supplychain.statement import Statement

CONTENT = "dev.sigstore.bundle.content"
PREDICATE_TYPE = "dev.sigstore.bundle.predicateType"


def attach_statement(
    repository: Repository, subject: Descriptor, statement: Statement, key: PrivateKey | KeylessSigner, created: str
) -> Descriptor:
    """Sign `statement` with `key` and store the bundle as a referrer of `subject`.

    `created` is the RFC 3339 time the referrer's manifest states. Raises `InvalidInput` on a statement too large to
    be read again.
    """
    payload = statement.to_bytes()
    if len(payload) * 4 // 3 > bundle.MAX_BYTES:  # before a log has it for ever
        raise _too_large(payload)
    raw = key.sign(statement) if isinstance(key, KeylessSigner) else _bundle(payload, key)
    if len(raw) > bundle.MAX_BYTES:
        raise _too_large(payload)
    annotations = {CONTENT: "dsse-envelope", PREDICATE_TYPE: statement.predicate_type, mediatypes.CREATED: created}
    return _attach(repository, subject, raw, mediatypes.SIGSTORE_BUNDLE, annotations, {})


def _bundle(payload: bytes, key: PrivateKey) -> bytes:
    signature = key.sign(pae(mediatypes.IN_TOTO, payload))
    return Bundle(Envelope(payload, mediatypes.IN_TOTO, (signature,)), hint=key.public.hint).to_bytes()


def _too_large(payload: bytes) -> InvalidInput:
    return InvalidInput(f"a statement of {len(payload)} bytes is too large: a bundle has at most {bundle.MAX_BYTES}")


def attach_document(
    repository: Repository, subject: Descriptor, raw: bytes, media_type: str, title: str, created: str
) -> Descriptor:
    """Store `raw` as a referrer of `subject`, unsigned. The same document twice is one referrer."""
    return _attach(repository, subject, raw, media_type, {mediatypes.CREATED: created}, {mediatypes.TITLE: title})


def _attach(
    repository: Repository,
    subject: Descriptor,
    raw: bytes,
    media_type: str,
    annotations: dict[str, str],
    of_layer: dict[str, str],
) -> Descriptor:
    layer = push_bytes(repository, raw, media_type)
    manifest = Manifest(
        config=push_bytes(repository, EMPTY_CONFIG, mediatypes.EMPTY),
        layers=(Descriptor(layer.media_type, layer.digest, layer.size, of_layer),),
        artifact_type=media_type,
        subject=Descriptor(subject.media_type, subject.digest, subject.size),
        annotations=annotations,
    )
    return repository.push_manifest(manifest.to_bytes(), manifest.media_type)


def push_bytes(repository: Repository, content: bytes, media_type: str) -> Descriptor:
    """Store `content` as a blob."""
    descriptor = Descriptor.of(content, media_type)
    repository.push_blob(descriptor, bytes_source(content), Quiet())
    return descriptor


def stated_time() -> str:
    """The time a referrer is said to be from: ``SOURCE_DATE_EPOCH``, else the epoch. Raises `InvalidInput`."""
    stated = os.environ.get("SOURCE_DATE_EPOCH", "0")
    try:
        return datetime.fromtimestamp(int(stated), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        raise InvalidInput(f"SOURCE_DATE_EPOCH is not a time in seconds: {stated[:40]!r}") from None
