"""What a verifier that only asks "is there a valid signature by the right key?" gets wrong.

Nearly every forgery here carries a genuine signature by the key the policy requires; only what was signed, or where
it lies, is not what it has to be.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.layout import LayoutRepository
from artifact.manifest import Index, Manifest
from artifact.progress import Quiet
from artifact.reference import Reference
from artifact.source import bytes_source
from supplychain import evidence
from supplychain.bundle import Bundle
from supplychain.decision import Decision
from supplychain.dsse import Envelope, pae
from supplychain.keys import PrivateKey
from supplychain.policy import Policy
from supplychain.sign import sign
from supplychain.simplesigning import SIGNATURE, SimpleSigning
from supplychain.statement import COSIGN_SIGN, OMS_SIGN, Statement
from supplychain.verify import verify

KEY, STRANGER = PrivateKey.new(), PrivateKey.new()
POLICY = Policy.parse(
    b"version: 1\nauthorities: {release: {key: k}}\nrules: [{match: ['**'], require: {any-of: [release]}}]\n",
    "policy.yaml",
    lambda _: KEY.public,
)
REFERENCE = Reference.parse("registry.example/acme/model:v1")
BUNDLE, IN_TOTO = mediatypes.SIGSTORE_BUNDLE, mediatypes.IN_TOTO


class Registry(LayoutRepository):
    """A repository, and ways of putting into it what its users may put there."""

    def blob(self, content: bytes, media_type: str, annotations: dict[str, str] | None = None) -> Descriptor:
        descriptor = Descriptor.of(content, media_type)
        self.push_blob(descriptor, bytes_source(content), Quiet())
        return Descriptor.of(content, media_type, annotations)

    def model(self, content: bytes, tag: str | None = None) -> Descriptor:
        config = self.blob(b"{}", mediatypes.MODEL_CONFIG)
        layer = self.blob(content, mediatypes.MODEL_WEIGHT)
        manifest = Manifest(config, (layer,), artifact_type=mediatypes.MODEL_MANIFEST)
        return self.push_manifest(manifest.to_bytes(), manifest.media_type, tag)

    def refer(self, subject: Descriptor, content: bytes, *, artifact_type: str = BUNDLE) -> Descriptor:
        empty = self.blob(b"{}", mediatypes.EMPTY)
        layer = self.blob(content, artifact_type)
        manifest = Manifest(empty, (layer,), artifact_type=artifact_type, subject=subject)
        return self.push_manifest(manifest.to_bytes(), manifest.media_type)

    def legacy(self, tag: str, *payloads: tuple[bytes, bytes]) -> Descriptor:
        layers = [
            self.blob(payload, mediatypes.SIMPLE_SIGNING, {SIGNATURE: base64.b64encode(signature).decode()})
            for payload, signature in payloads
        ]
        manifest = Manifest(self.blob(b"{}", mediatypes.IMAGE_CONFIG), tuple(layers))
        return self.push_manifest(manifest.to_bytes(), manifest.media_type, tag)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry", "registry.example/acme/model")


@pytest.fixture
def model(registry: Registry) -> Descriptor:
    return registry.model(b"model", "v1")


def check(registry: LayoutRepository, model: Descriptor) -> Decision:
    return verify(registry, REFERENCE, model, POLICY)


def bundle(
    payload: bytes, kind: str = IN_TOTO, keys: tuple[PrivateKey, ...] = (KEY,), hint: str | None = None
) -> bytes:
    signatures = tuple(key.sign(pae(kind, payload)) for key in keys)
    return Bundle(Envelope(payload, kind, signatures), hint=hint or KEY.public.hint).to_bytes()


def signature_of(subject: Descriptor) -> bytes:
    return Statement.about(subject.digest, COSIGN_SIGN).to_bytes()


def signature_tag(subject: Descriptor) -> str:
    return f"sha256-{subject.digest.hex}.sig"


def simple(subject: Descriptor, key: PrivateKey = KEY) -> tuple[bytes, bytes]:
    payload = SimpleSigning(subject.digest, "registry.example/acme/model").to_bytes()
    return payload, key.sign(payload)


def test_the_builders_here_make_good_signatures(registry: Registry, model: Descriptor) -> None:
    """Without this, every refusal below could be for the wrong reason."""
    registry.refer(model, bundle(signature_of(model)))
    assert check(registry, model).allowed
    other = registry.model(b"other")
    registry.legacy(signature_tag(other), simple(other))
    assert check(registry, other).allowed


@pytest.mark.parametrize(
    "predicate_type", ["https://spdx.dev/Document", "https://slsa.dev/provenance/v1", "", f"{COSIGN_SIGN}/", "cosign"]
)
def test_an_attestation_is_not_a_signature(registry: Registry, model: Descriptor, predicate_type: str) -> None:
    payload = Statement.about(model.digest, predicate_type, {"verdict": "malicious"}).to_bytes()
    registry.refer(model, bundle(payload))
    assert check(registry, model).code == ("wrong-predicate" if predicate_type else "malformed-signature")


def test_a_signature_of_another_artifact(registry: Registry, model: Descriptor) -> None:
    registry.refer(model, bundle(signature_of(registry.model(b"other"))))
    assert check(registry, model).code == "wrong-subject"


def test_a_subject_named_by_another_algorithm(registry: Registry, model: Descriptor) -> None:
    payload = Statement(({"sha512": model.digest.hex, "sha1": model.digest.hex},), COSIGN_SIGN).to_bytes()
    registry.refer(model, bundle(payload))
    assert check(registry, model).code == "wrong-subject"


def test_a_referrer_listed_under_a_subject_it_does_not_have(registry: Registry, model: Descriptor) -> None:
    other = registry.model(b"other")
    stray = registry.refer(other, bundle(signature_of(model)))
    entry = Descriptor(stray.media_type, stray.digest, stray.size, artifact_type=BUNDLE)
    index = Index((entry,)).to_bytes()
    registry.push_manifest(index, mediatypes.IMAGE_INDEX, f"sha256-{model.digest.hex}")
    assert check(registry, model).code == "wrong-subject"


def test_a_signature_found_by_the_fallback_tag_counts(registry: Registry, model: Descriptor) -> None:
    """Registries without the referrers API keep the listing under a tag."""
    signed = registry.refer(model, bundle(signature_of(model)))
    entry = Descriptor(signed.media_type, signed.digest, signed.size, artifact_type=BUNDLE)
    registry.push_manifest(Index((entry,)).to_bytes(), mediatypes.IMAGE_INDEX, f"sha256-{model.digest.hex}")

    class Old(Registry):
        def referrers(self, subject: Digest, artifact_type: str | None = None) -> list[Descriptor]:
            return []

    assert check(Old(registry.root, registry.name), model).allowed


def test_two_signatures_in_one_envelope(registry: Registry, model: Descriptor) -> None:
    for keys in ((KEY, STRANGER), (STRANGER, KEY), (KEY, KEY), ()):
        registry.refer(model, bundle(signature_of(model), keys=keys))
    decision = check(registry, model)
    assert decision.code == "signature-count"
    assert len(decision.trace) == 5


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "application/vnd.in-toto+json;x=y"])
def test_another_payload_type(registry: Registry, model: Descriptor, kind: str) -> None:
    registry.refer(model, bundle(signature_of(model), kind))
    assert check(registry, model).code == "wrong-payload-type"


def test_a_payload_type_changed_after_signing(registry: Registry, model: Descriptor) -> None:
    value = json.loads(bundle(signature_of(model), "application/json"))
    value["dsseEnvelope"]["payloadType"] = IN_TOTO
    registry.refer(model, json.dumps(value).encode())
    assert check(registry, model).code == "invalid-signature"


def test_a_signature_over_the_bare_payload(registry: Registry, model: Descriptor) -> None:
    payload = signature_of(model)
    raw = Bundle(Envelope(payload, IN_TOTO, (KEY.sign(payload),)), hint=KEY.public.hint).to_bytes()
    registry.refer(model, raw)
    assert check(registry, model).code == "invalid-signature"


def test_a_bundle_that_borrows_the_hint(registry: Registry, model: Descriptor) -> None:
    registry.refer(model, bundle(signature_of(model), keys=(STRANGER,), hint=KEY.public.hint))
    decision = check(registry, model)
    assert (decision.code, decision.signers) == ("invalid-signature", ())


def test_a_bundle_by_another_key(registry: Registry, model: Descriptor) -> None:
    registry.refer(model, bundle(signature_of(model), keys=(STRANGER,), hint=STRANGER.public.hint))
    assert check(registry, model).code == "unknown-signer"


def test_a_bundle_cut_short_anywhere(registry: Registry, model: Descriptor) -> None:
    raw = bundle(signature_of(model))
    for length in (0, 1, len(raw) // 2, len(raw) - 1):
        registry.refer(model, raw[:length])
    decision = check(registry, model)
    assert decision.code == "malformed-signature"
    assert [step.code for step in decision.trace[:-1]] == ["malformed-signature"] * 4
    registry.refer(model, raw)
    assert check(registry, model).allowed


def test_a_damaged_or_missing_signature_hides_no_other(registry: Registry, model: Descriptor) -> None:
    for number, damage in enumerate((b"bytes of another length", None)):
        raw = bundle(signature_of(model), hint=f"number {number}")
        registry.refer(model, raw)
        path = registry.blob_path(Digest.of(raw))
        path.unlink()
        if damage:
            path.write_bytes(damage)
    lost = registry.refer(model, bundle(signature_of(model), hint="lost"))
    registry.blob_path(lost.digest).unlink()
    decision = check(registry, model)
    assert decision.code == "unreadable-signature"
    assert [step.code for step in decision.trace[:-1]] == ["unreadable-signature"] * 3
    registry.refer(model, bundle(signature_of(model)))
    assert check(registry, model).allowed


def test_an_oversized_bundle_is_not_read(registry: Registry, model: Descriptor) -> None:
    registry.refer(model, bundle(signature_of(model)) + b" " * evidence.bundle.MAX_BYTES)
    assert check(registry, model).code == "oversized-signature"
    registry.refer(model, bundle(signature_of(model)))
    assert check(registry, model).allowed


def test_all_signatures_together_are_bounded(registry: Registry, model: Descriptor) -> None:
    read = 0

    class Metered(Registry):
        def read_blob(self, descriptor: Descriptor, limit: int = 2**22) -> bytes:
            nonlocal read
            read += descriptor.size
            return super().read_blob(descriptor, limit)

    for number in range(12):
        registry.refer(model, b"%d" % number + b" " * (evidence.bundle.MAX_BYTES - 10))
    read_by_listing = 12 * 1000 * 3
    decision = check(Metered(registry.root, registry.name), model)
    assert decision.code == "malformed-signature"
    assert {step.code for step in decision.trace} == {"malformed-signature", "oversized-signature"}
    assert read < evidence.MAX_TOTAL + read_by_listing


def test_a_thousand_referrers(registry: Registry, model: Descriptor) -> None:
    """A flood costs a bounded number of reads, and is named as the reason where it may hide the signature."""
    fetched: list[Digest] = []

    class Flooded(Registry):
        def referrers(self, subject: Digest, artifact_type: str | None = None) -> list[Descriptor]:
            fakes = (Digest.of(b"%d" % number) for number in range(100_000))
            return [Descriptor(mediatypes.IMAGE_MANIFEST, fake, 500, artifact_type=BUNDLE) for fake in fakes]

        def manifest(self, reference: str | Digest) -> tuple[Descriptor, bytes]:
            if isinstance(reference, Digest):
                fetched.append(reference)
            return super().manifest(reference)

    flooded = Flooded(registry.root, registry.name)
    decision = check(flooded, model)
    assert decision.code == "too-many-signatures"
    assert len(fetched) == evidence.MAX_ITEMS
    assert len(decision.trace) <= evidence.MAX_ITEMS + 2
    registry.legacy(signature_tag(model), simple(model))
    assert check(flooded, model).allowed


def test_a_thousand_layers_under_the_signature_tag(registry: Registry, model: Descriptor) -> None:
    good = registry.blob(*(lambda pair: (pair[0], mediatypes.SIMPLE_SIGNING))(simple(model)))
    flood = [Descriptor(good.media_type, good.digest, good.size, {SIGNATURE: "AAAA"})] * 800
    manifest = Manifest(registry.blob(b"{}", mediatypes.IMAGE_CONFIG), tuple(flood))
    registry.push_manifest(manifest.to_bytes(), manifest.media_type, signature_tag(model))
    assert check(registry, model).code == "too-many-signatures"
    registry.refer(model, bundle(signature_of(model)))
    assert check(registry, model).allowed


def test_a_legacy_layer_of_another_digest(registry: Registry, model: Descriptor) -> None:
    """The .sig tag is only a name: anyone who may push can put a genuine signature of something else there."""
    other = registry.model(b"other")
    registry.legacy(signature_tag(other), simple(other))
    descriptor, raw = registry.manifest(signature_tag(other))
    registry.push_manifest(raw, descriptor.media_type, signature_tag(model))
    assert check(registry, other).allowed
    assert check(registry, model).code == "wrong-subject"


def test_a_legacy_annotation_moved_to_another_payload(registry: Registry, model: Descriptor) -> None:
    other = registry.model(b"other")
    registry.legacy(signature_tag(model), (simple(model)[0], simple(other)[1]))
    assert check(registry, model).code == "unknown-signer"


def test_a_legacy_signature_by_another_key(registry: Registry, model: Descriptor) -> None:
    registry.legacy(signature_tag(model), simple(model, STRANGER), (simple(model)[0], b""))
    assert check(registry, model).code == "unknown-signer"


def test_a_legacy_payload_of_another_type(registry: Registry, model: Descriptor) -> None:
    payload = simple(model)[0].replace(b"cosign container image signature", b"atomic container signature")
    registry.legacy(signature_tag(model), (payload, KEY.sign(payload)))
    assert check(registry, model).code == "malformed-signature"


def test_a_legacy_payload_that_says_two_things(registry: Registry, model: Descriptor) -> None:
    named = f'"docker-manifest-digest":"{model.digest}"'.encode()
    other = f'"docker-manifest-digest":"{registry.model(b"other").digest}"'.encode()
    payload = simple(model)[0].replace(named, other + b"," + named)
    registry.legacy(signature_tag(model), (payload, KEY.sign(payload)))
    assert check(registry, model).code == "malformed-signature"


def test_a_statement_passed_off_as_a_legacy_payload(registry: Registry, model: Descriptor) -> None:
    """A DSSE signature is over its encoding with the type, so it fits no legacy layer, whatever the bytes."""
    payload = signature_of(model)
    signature = KEY.sign(pae(IN_TOTO, payload))
    registry.legacy(signature_tag(model), (payload, signature), (pae(IN_TOTO, payload), signature))
    decision = check(registry, model)
    assert not decision.allowed
    assert [step.code for step in decision.trace[:-1]] == ["unknown-signer", "malformed-signature"]


def test_the_signature_tag_may_hold_nonsense(registry: Registry, model: Descriptor) -> None:
    registry.push_manifest(Index(()).to_bytes(), mediatypes.IMAGE_INDEX, signature_tag(model))
    assert check(registry, model).code == "malformed-signature"
    registry.refer(model, bundle(signature_of(model)))
    assert check(registry, model).allowed


def test_a_tag_moved_between_resolve_and_verify(registry: Registry, model: Descriptor) -> None:
    """What was resolved is what is verified: the tag is not asked again."""
    sign(registry, model, KEY)
    unsigned = registry.model(b"unsigned")
    resolved = registry.resolve("v1")
    descriptor, raw = registry.manifest(unsigned.digest)
    registry.push_manifest(raw, descriptor.media_type, "v1")
    assert check(registry, resolved).allowed
    assert check(registry, registry.resolve("v1")).code == "unsigned"


def test_a_listing_that_mislabels_its_referrers(registry: Registry, model: Descriptor) -> None:
    """The listing's word about a type is not signed: an attestation relabelled as a bundle stays what it is."""
    relabelled = registry.refer(model, bundle(signature_of(model)), artifact_type="application/spdx+json")

    class Mislabelled(Registry):
        def referrers(self, subject: Digest, artifact_type: str | None = None) -> list[Descriptor]:
            return [Descriptor(relabelled.media_type, relabelled.digest, relabelled.size, artifact_type=BUNDLE)]

    assert check(Mislabelled(registry.root, registry.name), model).code == "malformed-signature"


@pytest.mark.parametrize("kind", ["notation", "oms"])
def test_other_signatures_are_recognised_and_do_not_count(registry: Registry, model: Descriptor, kind: str) -> None:
    if kind == "notation":
        registry.refer(model, b"jws", artifact_type="application/vnd.cncf.notary.signature")
    else:
        payload = Statement.about(model.digest, OMS_SIGN).to_bytes()
        registry.refer(model, bundle(payload, keys=(STRANGER,), hint="someone"))
    decision = check(registry, model)
    assert (decision.allowed, decision.code) == (False, "unsupported-signature")


def test_ordinary_referrers_are_not_taken_for_signatures(registry: Registry, model: Descriptor) -> None:
    registry.refer(model, b"{}", artifact_type="application/vnd.cyclonedx+json")
    decision = check(registry, model)
    assert decision.code == "unsigned"
    assert len(decision.trace) == 1


@pytest.mark.parametrize(
    ("text", "code"),
    [("\ud800", "malformed-signature"), ("a\nb\x1b[31m", "wrong-predicate"), ("x" * 100_000, "wrong-predicate")],
    ids=["half a character", "escapes", "long"],
)
def test_text_of_an_artifact_does_not_spoil_a_report(
    registry: Registry, model: Descriptor, text: str, code: str
) -> None:
    value = json.loads(Statement.about(model.digest, "t").to_bytes()) | {"predicateType": text}
    registry.refer(model, bundle(json.dumps(value).encode()))
    decision = check(registry, model)
    assert decision.code == code
    decision.reason.encode()
    json.dumps(decision.to_json(), ensure_ascii=False).encode()
    assert decision.reason.isprintable()
    assert len(decision.reason) < 1000
