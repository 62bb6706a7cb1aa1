"""Attestations written and read back, and everything that must not pass for one."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from in_toto_attestation.v1 import statement as official

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import InvalidInput, Malformed, NotFound
from artifact.layout import LayoutRepository
from artifact.manifest import Manifest
from artifact.progress import Quiet
from artifact.reference import Reference
from artifact.source import bytes_source
from supplychain import evidence
from supplychain.attest import attest, attestations
from supplychain.bundle import MAX_BYTES, Bundle
from supplychain.dsse import Envelope, pae
from supplychain.keys import PrivateKey
from supplychain.predicate import CYCLONEDX, PROVENANCE, SCAN, SPDX, check_uri, predicate_type
from supplychain.sign import sign
from supplychain.statement import COSIGN_SIGN, OMS_SIGN, Statement
from supplychain.verify import verify

Keys = dict[str, PrivateKey]
Push = Callable[..., Descriptor]
BUNDLE, IN_TOTO = mediatypes.SIGSTORE_BUNDLE, mediatypes.IN_TOTO
TYPE = "https://example.com/reviewed/v1"


def said(subject: Descriptor, predicate: dict[str, Any] | None = None, type_: str = TYPE) -> Statement:
    return Statement.about(subject.digest, type_, predicate or {"by": "someone"})


def bundle_of(repository: LayoutRepository, written: Descriptor) -> dict[str, Any]:
    (layer,) = Manifest.parse(repository.manifest(written.digest)[1]).layers
    value = json.loads(repository.read_blob(layer))
    assert isinstance(value, dict)
    return value


def refer(repository: LayoutRepository, subject: Descriptor, raw: bytes, artifact_type: str = BUNDLE) -> Descriptor:
    """Put anything at all where bundles lie."""
    blobs = [Descriptor.of(b"{}", mediatypes.EMPTY), Descriptor.of(raw, artifact_type)]
    for blob, content in zip(blobs, (b"{}", raw), strict=True):
        repository.push_blob(blob, bytes_source(content), Quiet())
    manifest = Manifest(blobs[0], (blobs[1],), artifact_type=artifact_type, subject=subject)
    return repository.push_manifest(manifest.to_bytes(), manifest.media_type)


def signed(payload: bytes, *keys: PrivateKey, kind: str = IN_TOTO, hint: str | None = None) -> bytes:
    signatures = tuple(key.sign(pae(kind, payload)) for key in keys)
    return Bundle(Envelope(payload, kind, signatures), hint=hint or keys[0].public.hint).to_bytes()


def test_the_form(repository: LayoutRepository, subject: Descriptor, keys: Keys) -> None:
    written = attest(repository, subject, said(subject), keys["release"])
    assert [item.digest for item in repository.referrers(subject.digest)] == [written.digest]
    manifest = json.loads(repository.manifest(written.digest)[1])
    assert manifest["artifactType"] == "application/vnd.dev.sigstore.bundle.v0.3+json"
    assert manifest["config"]["mediaType"] == "application/vnd.oci.empty.v1+json"
    assert manifest["subject"] == {
        "mediaType": subject.media_type, "digest": str(subject.digest), "size": subject.size,
    }  # fmt: skip
    assert manifest["annotations"] == {
        "dev.sigstore.bundle.content": "dsse-envelope",
        "dev.sigstore.bundle.predicateType": TYPE,
        "org.opencontainers.image.created": "1970-01-01T00:00:00Z",
    }
    (layer,) = manifest["layers"]
    assert layer["mediaType"] == manifest["artifactType"]
    bundle = bundle_of(repository, written)
    assert bundle["verificationMaterial"] == {"publicKey": {"hint": keys["release"].public.hint}}
    payload = base64.b64decode(bundle["dsseEnvelope"]["payload"])
    assert json.loads(payload) == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"digest": {"sha256": subject.digest.hex}}],
        "predicateType": TYPE,
        "predicate": {"by": "someone"},
    }
    (signature,) = bundle["dsseEnvelope"]["signatures"]
    assert keys["release"].public.verify(base64.b64decode(signature["sig"]), pae(IN_TOTO, payload))


def test_the_statement_is_one_to_in_totos_own_library(
    repository: LayoutRepository, subject: Descriptor, keys: Keys
) -> None:
    bundle = bundle_of(repository, attest(repository, subject, said(subject), keys["release"]))
    value = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    from google.protobuf.json_format import ParseDict

    parsed = ParseDict(value, official.Statement([], "", {}).pb)  # refuses fields it does not know
    official.Statement.copy_from_pb(parsed).validate()


def test_it_is_read_back(repository: LayoutRepository, subject: Descriptor, keys: Keys) -> None:
    written = attest(repository, subject, said(subject), keys["release"])
    (found,) = attestations(repository, subject.digest, [keys["ops"].public, keys["release"].public])
    assert found.valid and found.code == "valid-attestation"
    assert (found.predicate_type, found.signer, found.manifest) == (TYPE, keys["release"].public, written.digest)
    assert found.statement is not None and found.statement.predicate == {"by": "someone"}


def test_the_same_again_adds_nothing_and_anything_else_does(
    repository: LayoutRepository, subject: Descriptor, keys: Keys
) -> None:
    first = attest(repository, subject, said(subject), keys["release"])
    assert attest(repository, subject, said(subject), keys["release"]) == first
    assert len(repository.referrers(subject.digest)) == 1
    attest(repository, subject, said(subject), keys["ops"])
    attest(repository, subject, said(subject, {"by": "someone else"}), keys["release"])
    attest(repository, subject, said(subject, type_=SPDX), keys["release"])
    assert len(repository.referrers(subject.digest)) == 4
    assert len(attestations(repository, subject.digest, [keys["release"].public, keys["ops"].public])) == 4


def test_a_forgery_in_its_place_does_not_stop_an_attestation(
    repository: LayoutRepository, subject: Descriptor, keys: Keys
) -> None:
    """The same statement, badly signed in our name, is no reason not to write a good one."""
    refer(repository, subject, signed(said(subject).to_bytes(), keys["stranger"], hint=keys["release"].public.hint))
    attest(repository, subject, said(subject), keys["release"])
    found = attestations(repository, subject.digest, [keys["release"].public])
    assert sorted(item.code for item in found) == ["invalid-signature", "valid-attestation"]


def test_everything_but_the_signature_is_reproducible(tmp_path: Path, push: Push, keys: Keys) -> None:
    found = []
    for folder in ("a", "b"):
        repository = LayoutRepository(tmp_path / folder, "acme/model")
        subject = push(repository)
        written = attest(repository, subject, said(subject), keys["release"], created="2026-01-02T03:04:05Z")
        manifest = json.loads(repository.manifest(written.digest)[1])
        assert manifest["annotations"]["org.opencontainers.image.created"] == "2026-01-02T03:04:05Z"
        del manifest["layers"]
        bundle = bundle_of(repository, written)
        del bundle["dsseEnvelope"]["signatures"]
        found.append((manifest, bundle))
    assert found[0] == found[1]


def test_an_attestation_is_no_signature_and_a_signature_no_attestation(
    repository: LayoutRepository, subject: Descriptor, keys: Keys, policy: Callable[[], Any]
) -> None:
    attest(repository, subject, said(subject), keys["release"])
    reference = Reference.parse("registry.example/acme/model:v1")
    assert verify(repository, reference, subject, policy()).code == "wrong-predicate"
    sign(repository, subject, keys["release"])
    assert verify(repository, reference, subject, policy()).allowed
    assert [item.predicate_type for item in attestations(repository, subject.digest, [keys["release"].public])] == [
        TYPE
    ]


@pytest.mark.parametrize("type_", [COSIGN_SIGN, OMS_SIGN])
def test_a_signature_cannot_be_made_by_attesting(
    repository: LayoutRepository, subject: Descriptor, keys: Keys, type_: str
) -> None:
    with pytest.raises(InvalidInput, match="type of a signature"):
        attest(repository, subject, said(subject, type_=type_), keys["release"])
    assert repository.referrers(subject.digest) == []


@pytest.mark.parametrize(
    "type_", ["", "reviewed", "//example.com/x", "https://example.com/a b", "x:" + "y" * 300, "cyclonedx"]
)
def test_a_type_has_to_be_a_whole_uri(
    repository: LayoutRepository, subject: Descriptor, keys: Keys, type_: str
) -> None:
    with pytest.raises(InvalidInput):
        attest(repository, subject, said(subject, type_=type_), keys["release"])
    assert repository.referrers(subject.digest) == []


def test_short_names() -> None:
    names = {"slsaprovenance1": PROVENANCE, "cyclonedx": CYCLONEDX, "spdx": SPDX, "scan": SCAN}
    assert {name: predicate_type(name) for name in names} == names
    assert predicate_type("urn:example:x") == "urn:example:x"
    assert names["slsaprovenance1"] == "https://slsa.dev/provenance/v1"
    assert names["cyclonedx"] == "https://cyclonedx.org/bom"
    assert names["spdx"] == "https://spdx.dev/Document"
    assert check_uri("https://ci.example/1", "--builder") == "https://ci.example/1"
    with pytest.raises(InvalidInput, match="--builder"):
        check_uri("ci", "--builder")


def test_another_artifact_or_none(repository: LayoutRepository, subject: Descriptor, push: Push, keys: Keys) -> None:
    other = push(repository, b"other", None)
    with pytest.raises(InvalidInput, match="not about"):
        attest(repository, subject, said(other), keys["release"])
    missing = Descriptor(subject.media_type, Digest("sha256", "0" * 64), subject.size)
    with pytest.raises(NotFound):
        attest(repository, missing, said(missing), keys["release"])
    assert repository.referrers(subject.digest) == []


@pytest.mark.parametrize("predicate", [{"x": "\ud800"}, {"x": float("inf")}, {"x": {1, 2}}])
def test_what_is_no_json_is_not_signed(
    repository: LayoutRepository, subject: Descriptor, keys: Keys, predicate: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInput, match="JSON"):
        attest(repository, subject, said(subject, predicate), keys["release"])


def test_nothing_is_written_that_could_not_be_read_again(
    repository: LayoutRepository, subject: Descriptor, keys: Keys
) -> None:
    with pytest.raises(InvalidInput, match="too large"):
        attest(repository, subject, said(subject, {"x": "y" * MAX_BYTES}), keys["release"])
    assert repository.referrers(subject.digest) == []
    for number in range(evidence.MAX_ITEMS):
        refer(repository, subject, b"%d" % number)
    with pytest.raises(Malformed, match="delete some first"):
        attest(repository, subject, said(subject), keys["release"])


def test_many_signatures_under_the_tag_do_not_stop_an_attestation(
    repository: LayoutRepository, subject: Descriptor, keys: Keys
) -> None:
    sign(repository, subject, keys["release"])
    tag = f"sha256-{subject.digest.hex}.sig"
    descriptor, raw = repository.manifest(tag)
    old = Manifest.parse(raw, descriptor.media_type)
    flooded = Manifest(old.config, tuple(old.layers) * (evidence.MAX_ITEMS + 1))
    repository.push_manifest(flooded.to_bytes(), flooded.media_type, tag)
    attest(repository, subject, said(subject), keys["release"])
    assert [item.code for item in attestations(repository, subject.digest, [keys["release"].public])] == [
        "valid-attestation"
    ]


# What a reader that only asks "is it signed by the right key?" gets wrong.


def codes(repository: LayoutRepository, subject: Descriptor, keys: Keys) -> list[str]:
    return [item.code.value for item in attestations(repository, subject.digest, [keys["release"].public])]


def test_the_builder_here_makes_good_attestations(
    repository: LayoutRepository, subject: Descriptor, keys: Keys
) -> None:
    """Without this, every refusal below could be for the wrong reason."""
    refer(repository, subject, signed(said(subject).to_bytes(), keys["release"]))
    assert codes(repository, subject, keys) == ["valid-attestation"]


def test_an_attestation_of_another_artifact(
    repository: LayoutRepository, subject: Descriptor, push: Push, keys: Keys
) -> None:
    other = push(repository, b"other", None)
    refer(repository, subject, signed(said(other).to_bytes(), keys["release"]))
    assert codes(repository, subject, keys) == ["wrong-subject"]


@pytest.mark.parametrize("who", [("release", "stranger"), ("stranger", "release"), ("release", "release")])
def test_two_signatures_in_one_envelope(
    repository: LayoutRepository, subject: Descriptor, keys: Keys, who: tuple[str, str]
) -> None:
    refer(repository, subject, signed(said(subject).to_bytes(), *(keys[name] for name in who)))
    assert codes(repository, subject, keys) == ["signature-count"]


def test_another_payload_type(repository: LayoutRepository, subject: Descriptor, keys: Keys) -> None:
    refer(repository, subject, signed(said(subject).to_bytes(), keys["release"], kind="application/json"))
    assert codes(repository, subject, keys) == ["wrong-payload-type"]


def test_by_another_key(repository: LayoutRepository, subject: Descriptor, keys: Keys) -> None:
    payload = said(subject).to_bytes()
    refer(repository, subject, signed(payload, keys["stranger"]))
    refer(repository, subject, signed(payload, keys["stranger"], hint=keys["release"].public.hint))
    assert sorted(codes(repository, subject, keys)) == ["invalid-signature", "unknown-signer"]
    assert all(item.statement is None for item in attestations(repository, subject.digest, [keys["release"].public]))


def test_a_statement_changed_after_signing(repository: LayoutRepository, subject: Descriptor, keys: Keys) -> None:
    value = json.loads(signed(said(subject).to_bytes(), keys["release"]))
    changed = said(subject, {"by": "an attacker"}).to_bytes()
    value["dsseEnvelope"]["payload"] = base64.b64encode(changed).decode()
    refer(repository, subject, json.dumps(value).encode())
    assert codes(repository, subject, keys) == ["invalid-signature"]


def test_not_a_statement(repository: LayoutRepository, subject: Descriptor, keys: Keys) -> None:
    twice = said(subject).to_bytes().replace(b'"predicate":', b'"predicate":{},"predicate":')
    for payload in (b"{}", b"[]", b"", twice):
        refer(repository, subject, signed(payload, keys["release"]))
    assert codes(repository, subject, keys) == ["malformed-signature"] * 4


def test_damage_and_size(repository: LayoutRepository, subject: Descriptor, keys: Keys) -> None:
    lost = signed(said(subject, {"lost": True}).to_bytes(), keys["release"])
    refer(repository, subject, lost)
    repository.blob_path(Digest.of(lost)).unlink()
    refer(repository, subject, signed(said(subject).to_bytes(), keys["release"]) + b" " * MAX_BYTES)
    refer(repository, subject, signed(said(subject).to_bytes(), keys["release"])[:-9])
    assert sorted(codes(repository, subject, keys)) == [
        "malformed-signature", "oversized-signature", "unreadable-signature",
    ]  # fmt: skip


def test_a_thousand_referrers(repository: LayoutRepository, subject: Descriptor, keys: Keys) -> None:
    fetched = 0

    class Flooded(LayoutRepository):
        def referrers(self, subject: Digest, artifact_type: str | None = None) -> list[Descriptor]:
            fakes = (Digest.of(b"%d" % number) for number in range(5000))
            return [Descriptor(mediatypes.IMAGE_MANIFEST, fake, 500, artifact_type=BUNDLE) for fake in fakes]

        def manifest(self, reference: str | Digest) -> tuple[Descriptor, bytes]:
            nonlocal fetched
            fetched += isinstance(reference, Digest)
            return super().manifest(reference)

    found = attestations(Flooded(repository.root, repository.name), subject.digest, [keys["release"].public])
    assert fetched == evidence.MAX_ITEMS
    assert found[-1].code == "too-many-signatures"


def test_other_referrers_are_passed_over(repository: LayoutRepository, subject: Descriptor, keys: Keys) -> None:
    refer(repository, subject, b"{}", "application/vnd.cyclonedx+json")
    refer(repository, subject, b"jws", "application/vnd.cncf.notary.signature")
    assert codes(repository, subject, keys) == []
