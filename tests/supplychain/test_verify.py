from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import DigestMismatch, Refused, Unauthorized, Unreachable
from artifact.layout import LayoutRepository
from artifact.reference import Reference
from supplychain.bundle import Bundle
from supplychain.decision import Decision, decide
from supplychain.dsse import Envelope, pae
from supplychain.evidence import Evidence, Form, Item
from supplychain.glob import Target
from supplychain.keys import PrivateKey, PublicKey
from supplychain.policy import Policy
from supplychain.refusal import PolicyRefused, Reason
from supplychain.sign import sign
from supplychain.statement import COSIGN_SIGN, Statement
from supplychain.verify import verify

Parse = Callable[..., Policy]
Push = Callable[..., Descriptor]
Keys = dict[str, PrivateKey]
REFERENCE = Reference.parse("registry.example/acme/model:v1")
AUTHORITIES = "version: 1\nauthorities: {release: {key: release}, ops: {key: ops}, audit: {key: audit}}\n"


def one_rule(require: str, more: str = "") -> str:
    return f"{AUTHORITIES}rules:\n  - {{name: all, match: ['**'], require: {require}}}\n{more}"


def test_signed_by_the_required_key(
    repository: LayoutRepository, subject: Descriptor, keys: Keys, policy: Parse
) -> None:
    sign(repository, subject, keys["release"])
    decision = verify(repository, REFERENCE, subject, policy())
    assert decision.allowed and not decision.warned
    assert decision.code == "allowed"
    assert decision.enforce() is decision
    assert [signer.name for signer in decision.signers] == ["release"]
    assert [step.code for step in decision.trace] == [Reason.VALID, Reason.VALID, Reason.ALLOWED]
    value = json.loads(json.dumps(decision.to_json()))
    assert value["digest"] == str(subject.digest)
    assert value["signers"] == [{"name": "release", "fingerprint": keys["release"].public.hint}]
    assert value["trace"][-1] == {
        "kind": "rule",
        "name": "everything",
        "code": "allowed",
        "detail": "signed by release",
    }


@pytest.mark.parametrize("form", ["bundle", "legacy"])
def test_either_form_is_enough(
    repository: LayoutRepository, subject: Descriptor, keys: Keys, policy: Parse, form: str
) -> None:
    bundle, _ = sign(repository, subject, keys["release"])
    if form == "bundle":
        repository.delete_tag(f"sha256-{subject.digest.hex}.sig")
    else:
        repository.drop(bundle.digest)
    decision = verify(repository, REFERENCE, subject, policy())
    assert decision.allowed
    assert len(decision.trace) == 2


def test_unsigned(repository: LayoutRepository, subject: Descriptor, policy: Parse) -> None:
    decision = verify(repository, REFERENCE, subject, policy())
    assert (decision.allowed, decision.code) == (False, "unsigned")
    with pytest.raises(PolicyRefused) as error:
        decision.enforce()
    assert isinstance(error.value, Refused)
    assert (error.value.exit_code, error.value.code) == (3, "unsigned")
    message = str(error.value)
    assert "\n" not in message
    for part in ("registry.example/acme/model:v1", subject.digest.short, "policy.yaml", "release", "packager sign"):
        assert part in message


def test_signed_by_a_stranger(repository: LayoutRepository, subject: Descriptor, keys: Keys, policy: Parse) -> None:
    sign(repository, subject, keys["stranger"])
    assert verify(repository, REFERENCE, subject, policy()).code == "unknown-signer"


def test_signed_by_an_authority_of_another_rule(
    repository: LayoutRepository, subject: Descriptor, keys: Keys, policy: Parse
) -> None:
    sign(repository, subject, keys["ops"])
    text = one_rule("{any-of: [release]}", "  - {match: ['other/**'], require: {any-of: [ops]}}\n")
    decision = verify(repository, REFERENCE, subject, policy(text))
    assert decision.code == "unknown-signer"
    assert [signer.name for signer in decision.signers] == ["ops"]


@pytest.mark.parametrize(
    ("require", "signers", "code"),
    [
        ("{any-of: [release, ops]}", ["ops"], "allowed"),
        ("{all-of: [release, ops]}", ["release"], "insufficient-signatures"),
        ("{all-of: [release, ops]}", ["release", "ops"], "allowed"),
        ("{at-least: {count: 2, of: [release, ops, audit]}}", ["audit"], "insufficient-signatures"),
        ("{at-least: {count: 2, of: [release, ops, audit]}}", ["audit", "ops"], "allowed"),
        ("{at-least: {count: 2, of: [release, ops, audit]}}", ["stranger"], "unknown-signer"),
        ("nothing", [], "allowed"),
    ],
)
def test_requirements(
    repository: LayoutRepository,
    subject: Descriptor,
    keys: Keys,
    policy: Parse,
    require: str,
    signers: list[str],
    code: str,
) -> None:
    for name in signers:
        sign(repository, subject, keys[name])
    decision = verify(repository, REFERENCE, subject, policy(one_rule(require)))
    assert (decision.code, decision.allowed) == (code, code == "allowed")


def test_a_revoked_digest_is_refused_even_when_signed_and_only_warned_about(
    repository: LayoutRepository, subject: Descriptor, keys: Keys, policy: Parse
) -> None:
    sign(repository, subject, keys["release"])
    more = f"mode: warn\nrevoked: {{digests: [{{digest: '{subject.digest}', reason: leaks secrets}}]}}\n"
    decision = verify(repository, REFERENCE, subject, policy(one_rule("{any-of: [release]}", more)))
    assert (decision.allowed, decision.code) == (False, "revoked-digest")
    assert "leaks secrets" in decision.reason


@pytest.mark.parametrize("how", ["key", "fingerprint"])
def test_a_revoked_key_does_not_count(
    repository: LayoutRepository, subject: Descriptor, keys: Keys, policy: Parse, how: str
) -> None:
    sign(repository, subject, keys["release"])
    named = "release" if how == "key" else keys["release"].public.hint
    more = f"revoked: {{keys: [{{{how}: '{named}', reason: laptop lost}}]}}\n"
    text = one_rule("{any-of: [release, ops]}", more)
    decision = verify(repository, REFERENCE, subject, policy(text))
    assert (decision.allowed, decision.code, decision.signers) == (False, "revoked-key", ())
    assert "laptop lost" in decision.reason
    sign(repository, subject, keys["ops"])
    assert verify(repository, REFERENCE, subject, policy(text)).allowed


def test_default_deny(repository: LayoutRepository, subject: Descriptor, keys: Keys, policy: Parse) -> None:
    sign(repository, subject, keys["release"])
    text = f"{AUTHORITIES}rules: [{{match: ['other.example/**'], require: nothing}}]\n"
    decision = verify(repository, REFERENCE, subject, policy(text))
    assert (decision.allowed, decision.code) == (False, "no-rule")


def test_warn_mode_allows_and_says_so(repository: LayoutRepository, subject: Descriptor, policy: Parse) -> None:
    decision = verify(repository, REFERENCE, subject, policy(one_rule("{any-of: [release]}", "mode: warn\n")))
    assert (decision.allowed, decision.warned, decision.code) == (True, True, "unsigned")
    assert "warning" in decision.reason
    assert decision.enforce() is decision


def test_every_rule_that_matches_must_be_satisfied_in_any_order(
    repository: LayoutRepository, subject: Descriptor, keys: Keys, policy: Parse
) -> None:
    sign(repository, subject, keys["release"])
    strict = "{name: strict, match: ['registry.example/acme/*'], require: {all-of: [release, ops]}}"
    lax = "{name: lax, match: ['**'], require: {any-of: [release]}}"
    warning = "{name: warning, match: ['**'], require: {any-of: [audit]}, mode: warn}"
    for order in ([strict, lax, warning], [warning, lax, strict]):
        decision = verify(repository, REFERENCE, subject, policy(f"{AUTHORITIES}rules: [{', '.join(order)}]\n"))
        assert (decision.allowed, decision.code) == (False, "insufficient-signatures")
        assert "'strict'" in decision.reason
        assert sorted(decision.rules) == ["lax", "strict", "warning"]
    decision = verify(repository, REFERENCE, subject, policy(f"{AUTHORITIES}rules: [{lax}, {warning}]\n"))
    assert (decision.allowed, decision.warned) == (True, True)


EXCEPT = """rules:
  - name: strict
    match: ['registry.example/**']
    except: ['registry.example/acme/model:dev-*']
    require: {any-of: [ops]}
  - {name: base, match: ['**'], require: {any-of: [release]}}
"""


@pytest.mark.parametrize(
    ("reference", "allowed"),
    [
        ("registry.example/acme/model:dev-1", True),
        ("registry.example/acme/model:v1", False),
        ("REGISTRY.example:443/acme/model:v1", False),
        ("registry.example/acme/model@{digest}", False),
        ("registry.example/acme/model", False),
        ("elsewhere.example/acme/model", True),
    ],
)
def test_no_spelling_reaches_a_weaker_rule(
    repository: LayoutRepository, subject: Descriptor, keys: Keys, policy: Parse, reference: str, allowed: bool
) -> None:
    sign(repository, subject, keys["release"])
    parsed = Reference.parse(reference.format(digest=subject.digest))
    assert verify(repository, parsed, subject, policy(AUTHORITIES + EXCEPT)).allowed is allowed


def test_a_layout_is_matched_by_its_real_path(
    tmp_path: Path, push: Push, policy: Parse, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    repository = LayoutRepository(tmp_path / "models" / "m")
    subject = push(repository)
    (tmp_path / "link").symlink_to(tmp_path / "models")
    text = f"{AUTHORITIES}rules: [{{match: ['oci:{tmp_path.resolve()}/models/**'], require: nothing}}]\n"
    monkeypatch.chdir(tmp_path)
    for path in ("models/m", "link/m", "link/../models/./m", str(tmp_path / "models/m")):
        assert verify(repository, Reference.parse(f"oci:{path}:v1"), subject, policy(text)).allowed
    assert not verify(repository, Reference.parse("oci:models/../other:v1"), subject, policy(text)).allowed


def test_a_digest_in_the_reference_must_agree(repository: LayoutRepository, subject: Descriptor, policy: Parse) -> None:
    with pytest.raises(DigestMismatch):
        verify(repository, REFERENCE.with_digest(Digest("sha256", "0" * 64)), subject, policy())


@pytest.mark.parametrize("error", [Unreachable("no answer"), Unauthorized("who are you")])
@pytest.mark.parametrize("call", ["referrers", "manifest", "read_blob"])
def test_no_answer_is_not_a_good_answer(
    repository: LayoutRepository, subject: Descriptor, keys: Keys, policy: Parse, call: str, error: Exception
) -> None:
    sign(repository, subject, keys["release"])

    class Failing(LayoutRepository):
        """Goes away at one call, as a registry may."""

    def fail(*_: object, **__: object) -> object:
        raise error

    setattr(Failing, call, fail)
    with pytest.raises(type(error)):
        verify(Failing(repository.root, repository.name), REFERENCE, subject, policy())


def test_ed25519_signatures_are_accepted() -> None:
    private = ed25519.Ed25519PrivateKey.generate()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    public = PublicKey.parse(private.public_key().public_bytes(serialization.Encoding.PEM, form))
    digest = Digest("sha256", "ab" * 32)
    payload = Statement.about(digest, COSIGN_SIGN).to_bytes()
    kind = "application/vnd.in-toto+json"
    envelope = Envelope(payload, kind, (private.sign(pae(kind, payload)),))
    evidence = Evidence(digest, (Item(Form.BUNDLE, "referrer", Bundle(envelope, hint="")),))
    text = "version: 1\nauthorities: {a: {key: x}}\nrules: [{match: ['**'], require: {any-of: [a]}}]"
    decision: Decision = decide(Policy.parse(text.encode(), "p", lambda _: public), Target("model"), evidence)
    assert decision.allowed


def test_a_sha512_artifact_is_signed_by_bundle_alone(policy: Parse) -> None:
    digest = Digest("sha512", "ab" * 64)
    statement = Statement.parse(Statement.about(digest, COSIGN_SIGN).to_bytes())
    assert statement.names(digest)
    assert not statement.names(Digest("sha256", "ab" * 32))


@pytest.mark.parametrize(("named", "revoked"), [("sha512", "sha256"), ("sha256", "sha512")])
@pytest.mark.parametrize("more", ["", "mode: warn\n"])
def test_a_revoked_manifest_is_refused_whatever_it_is_called(
    repository: LayoutRepository, subject: Descriptor, policy: Parse, named: str, revoked: str, more: str
) -> None:
    """Which digest a tag leads to is the registry's choice."""
    _, raw = repository.manifest(subject.digest)
    called = Descriptor(subject.media_type, Digest.of(raw, named), subject.size)

    class Renaming(LayoutRepository):
        def manifest(self, reference: str | Digest) -> tuple[Descriptor, bytes]:
            assert reference == called.digest
            return called, raw

    text = one_rule("nothing", f"{more}revoked: {{digests: ['{Digest.of(raw, revoked)}']}}\n")
    decision = verify(Renaming(repository.root, repository.name), REFERENCE, called, policy(text))
    assert (decision.allowed, decision.code) == (False, "revoked-digest")
