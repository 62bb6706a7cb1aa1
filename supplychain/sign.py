"""Signing a manifest's digest: with a key, written in both forms that cosign reads, or keyless, in the newer one."""

from __future__ import annotations

import base64
from typing import Any

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import Malformed, NotFound
from artifact.manifest import Manifest, canonical_json
from artifact.repository import Repository
from supplychain import simplesigning
from supplychain.evidence import MAX_ITEMS, REFERRERS, Evidence, Form, Item, collect, signature_tag
from supplychain.keyless import KeylessSigner
from supplychain.keys import PrivateKey, PublicKey
from supplychain.referrer import attach_statement, push_bytes, stated_time
from supplychain.refusal import Reason
from supplychain.signature import judge
from supplychain.simplesigning import SimpleSigning
from supplychain.statement import COSIGN_SIGN, Statement

_ZERO_TIME = "0001-01-01T00:00:00Z"
_LAYOUT = "oci:"


def sign(
    repository: Repository, subject: Descriptor, key: PrivateKey | KeylessSigner, *, created: str | None = None
) -> list[Descriptor]:
    """Sign `subject` with `key`: a bundle that refers to it, and a layer under the ``sha256-<hex>.sig`` tag.

    Returns the descriptors of the two manifests. A form in which the key has signed already is left as it is. Only
    the first is written for a digest that is not sha256, which the older form cannot name, and for a keyless signature,
    which is made anew each time: it is of its own time. `created` is the RFC 3339
    time the bundle's manifest states; by default ``SOURCE_DATE_EPOCH``, else the epoch. Raises `NotFound` if the
    subject is not in the repository, `Malformed` if it has so many referrers that this one would not be read.
    """
    repository.resolve(subject.digest)
    stated = created if created is not None else stated_time()
    evidence = collect(repository, subject.digest)
    if isinstance(key, KeylessSigner):
        check_room(repository, evidence)
        return [attach_statement(repository, subject, Statement.about(subject.digest, COSIGN_SIGN), key, stated)]
    written = [_bundle(repository, subject, key, stated, evidence)]
    if subject.digest.algorithm == "sha256":
        written.append(_legacy(repository, subject.digest, key, evidence))
    return written


def check_room(repository: Repository, evidence: Evidence) -> None:
    """Check that one more referrer of `evidence.subject` would be read. Raises `Malformed`."""
    listed = [item for item in evidence.items if item.form is not Form.LEGACY]
    if len(listed) >= MAX_ITEMS or any(item.source == REFERRERS and item.fault is not None for item in listed):
        raise Malformed(
            f"{repository.place} holds {MAX_ITEMS} signatures and attestations of {evidence.subject.short} "
            "or more: another would not be read; delete some first"
        )


def _bundle(
    repository: Repository, subject: Descriptor, key: PrivateKey, created: str, evidence: Evidence
) -> Descriptor:
    existing = _existing(evidence, Form.BUNDLE, key.public)
    if existing is not None and existing.manifest is not None:
        return repository.resolve(existing.manifest)
    return attach_statement(repository, subject, Statement.about(subject.digest, COSIGN_SIGN), key, created)


def _legacy(repository: Repository, subject: Digest, key: PrivateKey, evidence: Evidence) -> Descriptor:
    tag = signature_tag(subject)
    if _existing(evidence, Form.LEGACY, key.public) is not None:
        return repository.resolve(tag)
    layers, annotations = _signatures_under(repository, tag)
    # A layout's path is this machine's own affair, and means nothing to whoever reads the signature.
    place = "" if repository.place.startswith(_LAYOUT) else repository.place
    payload = SimpleSigning(subject, place).to_bytes()
    blob = push_bytes(repository, payload, mediatypes.SIMPLE_SIGNING)
    signature = base64.b64encode(key.sign(payload)).decode()
    layers.append(Descriptor(blob.media_type, blob.digest, blob.size, {simplesigning.SIGNATURE: signature}))
    manifest = Manifest(
        config=push_bytes(repository, canonical_json(_image_config(layers)), mediatypes.IMAGE_CONFIG),
        layers=tuple(layers),
        annotations=annotations,
    )
    return repository.push_manifest(manifest.to_bytes(), manifest.media_type, tag)


def _signatures_under(repository: Repository, tag: str) -> tuple[list[Descriptor], dict[str, str]]:
    """What others have signed: kept as it is, a further layer goes after it."""
    try:
        descriptor, raw = repository.manifest(tag)
    except NotFound:
        return [], {}
    try:
        manifest = Manifest.parse(raw, descriptor.media_type)
    except Malformed as error:
        raise Malformed(f"{repository.place}:{tag} does not hold signatures: {error}; delete the tag first") from None
    if len(manifest.layers) >= MAX_ITEMS:
        raise Malformed(f"{repository.place}:{tag} holds {len(manifest.layers)} signatures: delete some first")
    return list(manifest.layers), dict(manifest.annotations)


def _existing(evidence: Evidence, form: Form, key: PublicKey) -> Item | None:
    for item in evidence.items:
        if item.form is form and judge(item, evidence.subject, (key,)).code is Reason.VALID:
            return item
    return None


def _image_config(layers: list[Descriptor]) -> dict[str, Any]:
    """The image config cosign writes: empty but for what an image config must have."""
    return {
        "architecture": "",
        "created": _ZERO_TIME,
        "history": [{"created": _ZERO_TIME} for _ in layers],
        "os": "",
        "rootfs": {"type": "layers", "diff_ids": [str(layer.digest) for layer in layers]},
        "config": {},
    }
