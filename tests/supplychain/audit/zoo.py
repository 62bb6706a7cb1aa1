"""Artifacts in every state an audit keeps apart."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.manifest import EMPTY_CONFIG, Index, Manifest
from artifact.progress import Quiet
from artifact.remote import RemoteRepository
from artifact.repository import Repository
from artifact.source import bytes_source
from supplychain.attest import attest
from supplychain.bundle import Bundle
from supplychain.dsse import Envelope, pae
from supplychain.evidence import NOTATION, signature_tag
from supplychain.keys import PrivateKey, PublicKey
from supplychain.predicate import PROVENANCE
from supplychain.sign import sign
from supplychain.simplesigning import SIGNATURE, SimpleSigning
from supplychain.statement import COSIGN_SIGN, OMS_SIGN, Statement

NAME = "team/model"


@dataclass(frozen=True)
class Zoo:
    """A registry and what its artifacts are: tag to descriptor, in the repository `NAME`."""

    host: str
    artifacts: Mapping[str, Descriptor]
    loose: Mapping[str, Descriptor]


def push(repository: Repository, content: bytes, tag: str | None, **annotations: str) -> Descriptor:
    """A small model."""
    config = blob(repository, EMPTY_CONFIG, mediatypes.MODEL_CONFIG)
    layer = blob(repository, content, mediatypes.MODEL_WEIGHT)
    manifest = Manifest(config, (layer,), mediatypes.MODEL_MANIFEST, annotations=annotations)
    return repository.push_manifest(manifest.to_bytes(), manifest.media_type, tag)


def blob(repository: Repository, content: bytes, media_type: str) -> Descriptor:
    descriptor = Descriptor.of(content, media_type)
    repository.push_blob(descriptor, bytes_source(content), Quiet())
    return descriptor


def refer(repository: Repository, subject: Descriptor, content: bytes, media_type: str) -> Descriptor:
    """A referrer with one layer, of any kind."""
    layer = blob(repository, content, media_type)
    empty = blob(repository, EMPTY_CONFIG, mediatypes.EMPTY)
    bare = Descriptor(subject.media_type, subject.digest, subject.size)
    return repository.push_manifest(Manifest(empty, (layer,), media_type, bare).to_bytes(), mediatypes.IMAGE_MANIFEST)


def attach(
    repository: Repository, subject: Descriptor, key: PrivateKey, kind: str, *, named: PublicKey | None = None
) -> None:
    """A bundle alone, with an empty statement of any kind. With `named`, it names another key than the one it is by."""
    payload = Statement.about(subject.digest, kind).to_bytes()
    envelope = Envelope(payload, mediatypes.IN_TOTO, (key.sign(pae(mediatypes.IN_TOTO, payload)),))
    bundle = Bundle(envelope, hint=(named or key.public).hint)
    refer(repository, subject, bundle.to_bytes(), mediatypes.SIGSTORE_BUNDLE)


def sign_legacy(repository: Repository, subject: Descriptor, key: PrivateKey) -> None:
    """The older form alone."""
    payload = SimpleSigning(subject.digest, "here").to_bytes()
    layer = blob(repository, payload, mediatypes.SIMPLE_SIGNING)
    signature = base64.b64encode(key.sign(payload)).decode()
    layer = Descriptor(layer.media_type, layer.digest, layer.size, {SIGNATURE: signature})
    config = blob(repository, b'{"rootfs":{}}', mediatypes.IMAGE_CONFIG)
    repository.push_manifest(
        Manifest(config, (layer,)).to_bytes(), mediatypes.IMAGE_MANIFEST, signature_tag(subject.digest)
    )


def fill(host: str, keys: dict[str, PrivateKey]) -> Zoo:
    """Put one of each into `host`."""
    repository = RemoteRepository(host, NAME)
    tags = (
        "signed", "bundle-only", "legacy-only", "unsigned", "unknown", "invalid", "revoked", "notation", "oms",
        "attested", "attested-only", "malformed", "also-forged",
    )  # fmt: skip
    artifacts = {tag: push(repository, tag.encode(), tag) for tag in tags}
    sign(repository, artifacts["signed"], keys["release"])
    attach(repository, artifacts["bundle-only"], keys["security"], COSIGN_SIGN)
    sign_legacy(repository, artifacts["legacy-only"], keys["release"])
    sign(repository, artifacts["unknown"], keys["stranger"])
    attach(repository, artifacts["invalid"], keys["stranger"], COSIGN_SIGN, named=keys["release"].public)
    sign(repository, artifacts["revoked"], keys["lost"])
    refer(repository, artifacts["notation"], b"a COSE envelope", NOTATION)
    attach(repository, artifacts["oms"], keys["stranger"], OMS_SIGN)
    sign(repository, artifacts["attested"], keys["release"])
    for tag in ("attested", "attested-only"):
        attest(repository, artifacts[tag], _provenance(artifacts[tag]), keys["release"])
    refer(repository, artifacts["malformed"], b"no bundle", mediatypes.SIGSTORE_BUNDLE)
    attach(repository, artifacts["also-forged"], keys["stranger"], COSIGN_SIGN, named=keys["release"].public)
    sign(repository, artifacts["also-forged"], keys["release"])
    artifacts["again"] = repository.push_manifest(*_again(repository, artifacts["signed"]), "again")
    loose = {name: push(repository, name.encode(), None) for name in ("member", "untagged")}
    sign(repository, loose["member"], keys["release"])
    sign_legacy(repository, loose["untagged"], keys["stranger"])
    index = Index([loose["member"]])
    artifacts["index"] = repository.push_manifest(index.to_bytes(), index.media_type, "index")
    return Zoo(host, artifacts, loose)


def _provenance(subject: Descriptor) -> Statement:
    predicate: dict[str, Any] = {"runDetails": {"builder": {"id": "https://builder.example"}}}
    return Statement.about(subject.digest, PROVENANCE, predicate)


def _again(repository: Repository, subject: Descriptor) -> tuple[bytes, str]:
    return repository.manifest(subject.digest)[1], subject.media_type
