"""What a policy requires of attestations."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.layout import LayoutRepository
from artifact.reference import Reference
from supplychain import evidence
from supplychain.attest import attest
from supplychain.bundle import Bundle
from supplychain.decision import Decision, decide
from supplychain.dsse import Envelope, pae
from supplychain.evidence import Evidence, Fault, Form, Item, collect
from supplychain.glob import Target
from supplychain.keys import PrivateKey
from supplychain.policy import Policy
from supplychain.predicate import CYCLONEDX, PROVENANCE, SCAN, SPDX
from supplychain.refusal import Reason
from supplychain.sign import sign
from supplychain.statement import Statement
from supplychain.verify import verify

Keys = dict[str, PrivateKey]
Parse = Callable[[str], Policy]
REFERENCE = Reference.parse("registry.example/acme/model:v1")
AUTHORITIES = "version: 1\nauthorities: {release: {key: release}, ops: {key: ops}, audit: {key: audit}}\n"
MADE = {
    "buildDefinition": {
        "externalParameters": {
            "sourceURL": "https://huggingface.co/acme/model",
            "precision": "F16",
            "layout": "modelpack",
        }
    },
    "runDetails": {"builder": {"id": "https://ci.example/packager"}},
}


@pytest.fixture
def ask(repository: LayoutRepository, subject: Descriptor, policy: Parse) -> Callable[..., Decision]:
    """Decide under a policy of one rule with these ``attestations``."""

    def ask(attestations: str, require: str = "{any-of: [release]}", more: str = "") -> Decision:
        rule = f"rules:\n- {{name: all, match: ['**'], require: {require}, attestations: {attestations}}}\n"
        return verify(repository, REFERENCE, subject, policy(AUTHORITIES + rule + more))

    return ask


@pytest.fixture
def say(repository: LayoutRepository, subject: Descriptor, keys: Keys) -> Callable[..., Descriptor]:
    def say(type_: str, predicate: dict[str, Any], who: str = "release") -> Descriptor:
        return attest(repository, subject, Statement.about(subject.digest, type_, predicate), keys[who])

    return say


@pytest.fixture(autouse=True)
def signed(repository: LayoutRepository, subject: Descriptor, keys: Keys) -> None:
    sign(repository, subject, keys["release"])


Ask = Callable[..., Decision]
Say = Callable[..., Descriptor]


def test_present_or_missing(ask: Ask, say: Say) -> None:
    decision = ask("[slsaprovenance1]")
    assert (decision.allowed, decision.code) == (False, "missing-attestation")
    assert "'all'" in decision.reason and "slsaprovenance1" in decision.reason
    say(SPDX, {"a": 1})
    assert ask("[slsaprovenance1]").code == "missing-attestation"
    say(PROVENANCE, MADE)
    for written in ("slsaprovenance1", f"'{PROVENANCE}'", "{type: slsaprovenance1}"):
        assert ask(f"[{written}]").code == "allowed"
    assert ask("[slsaprovenance1, spdx]").allowed
    assert ask("[slsaprovenance1, spdx, scan]").code == "missing-attestation"


def test_an_attestation_does_not_replace_the_signature(
    ask: Ask, say: Say, repository: LayoutRepository, subject: Descriptor
) -> None:
    say(PROVENANCE, MADE, "ops")
    assert ask("[slsaprovenance1]", "{any-of: [ops]}").code == "unknown-signer"


def test_a_rule_about_attestations_alone(ask: Ask, say: Say) -> None:
    alone = "[{type: scan, require: {any-of: [audit]}}]"
    assert ask(alone, "nothing").code == "missing-attestation"
    say(SCAN, {"verdict": "pass"}, "audit")
    decision = ask(alone, "nothing")
    assert decision.allowed and any(step.detail.endswith("type scan, by audit") for step in decision.trace)


def test_by_whom(ask: Ask, say: Say) -> None:
    say(PROVENANCE, MADE, "stranger")
    assert ask("[slsaprovenance1]").code == "untrusted-attestation"
    say(PROVENANCE, MADE, "ops")
    decision = ask("[slsaprovenance1]")
    assert decision.code == "untrusted-attestation"
    assert ask("[{type: slsaprovenance1, require: {any-of: [ops]}}]").allowed
    assert ask("[{type: slsaprovenance1, require: {all-of: [release, ops]}}]").code == "untrusted-attestation"
    say(PROVENANCE, MADE, "release")
    assert ask("[slsaprovenance1]").allowed
    assert ask("[{type: slsaprovenance1, require: {all-of: [release, ops]}}]").allowed
    assert not ask("[{type: slsaprovenance1, require: {all-of: [release, audit]}}]").allowed


def test_a_key_counts_once_however_much_it_attests(ask: Ask, say: Say) -> None:
    say(PROVENANCE, MADE)
    say(PROVENANCE, MADE | {"again": True})
    two = "[{type: slsaprovenance1, require: {at-least: {count: 2, of: [release, ops]}}}]"
    decision = ask(two)
    assert decision.code == "missing-attestation"
    assert "only by release" in decision.reason
    say(PROVENANCE, MADE, "ops")
    assert ask(two).allowed


def test_the_rules_own_requirement_is_the_default(
    ask: Ask, say: Say, repository: LayoutRepository, subject: Descriptor, keys: Keys
) -> None:
    sign(repository, subject, keys["ops"])
    say(PROVENANCE, MADE)
    both = "{all-of: [release, ops]}"
    assert ask("[slsaprovenance1]", both).code == "missing-attestation"
    say(PROVENANCE, MADE, "ops")
    assert ask("[slsaprovenance1]", both).allowed


def test_a_revoked_key_attests_nothing(ask: Ask, say: Say, keys: Keys) -> None:
    say(PROVENANCE, MADE, "ops")
    wanted = "[{type: slsaprovenance1, require: {any-of: [ops, audit]}}]"
    assert ask(wanted).allowed
    for how in ("key: ops", f"fingerprint: '{keys['ops'].public.hint}'"):
        decision = ask(wanted, more=f"revoked: {{keys: [{{{how}, reason: laptop lost}}]}}\n")
        assert decision.code == "untrusted-attestation"
        assert "laptop lost" in decision.reason


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("builder: 'https://ci.example/packager'", True),
        ("builder: 'https://ci.example'", False),
        ("builder: {equals: 'https://ci.example/packager'}", True),
        ("builder: {one-of: ['https://other.example', 'https://ci.example/packager']}", True),
        ("builder: {glob: 'https://ci.example/*'}", True),
        ("builder: {glob: 'https://*/other'}", False),
        ("source: {glob: 'https://huggingface.co/acme/*'}", True),
        ("source: {glob: 'https://huggingface.co/*'}", False),
        ("source: {glob: 'https://huggingface.co/**'}", True),
        ("precision: F16", True),
        ("precision: {one-of: [BF16, F32]}", False),
        ("path: /buildDefinition/externalParameters/layout, equals: modelpack", True),
        ("path: /buildDefinition/externalParameters/layout, equals: docker", False),
        ("path: /buildDefinition/externalParameters/absent, equals: docker", False),
        ("path: /runDetails/builder, glob: '**'", False),
    ],
)
def test_conditions_on_provenance(ask: Ask, say: Say, condition: str, holds: bool) -> None:
    say(PROVENANCE, MADE)
    decision = ask(f"[{{type: slsaprovenance1, conditions: [{{{condition}}}]}}]")
    assert decision.code == ("allowed" if holds else "attestation-condition")


def bill(*licenses: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"component": {"licenses": list(licenses)}}}


ID, NAME, EXPRESSION = {"license": {"id": "MIT"}}, {"license": {"name": "Acme"}}, {"expression": "MIT AND Acme"}


@pytest.mark.parametrize(
    ("predicate", "holds"),
    [
        (bill(ID), True),
        (bill(ID, NAME), True),
        (bill(EXPRESSION), True),
        (bill(), False),
        ({}, False),
        (bill(ID, {"license": {"id": "GPL-3.0-only"}}), False),
        (bill(ID, {"license": {"name": "Proprietary"}}), False),
        (bill(ID, {"license": {}}), False),
        (bill(ID, {"acknowledgement": "declared"}), False),
        (bill({"expression": "MIT OR Acme"}), False),
        (bill({"expression": "MIT AND GPL-3.0-only"}), False),
        (bill({"expression": "(MIT AND Acme)"}), False),
        (bill({"license": {"id": 7}}), False),
        ({"metadata": {"component": {"licenses": "MIT"}}}, False),
    ],
)
def test_every_licence_has_to_be_in_the_set(ask: Ask, say: Say, predicate: dict[str, Any], holds: bool) -> None:
    say(CYCLONEDX, predicate)
    decision = ask("[{type: cyclonedx, conditions: [{license: {one-of: [MIT, Acme]}}]}]")
    assert decision.code == ("allowed" if holds else "attestation-condition")


@pytest.mark.parametrize(
    ("expression", "holds"),
    [
        ("MIT OR Acme", True),
        ("Apache-2.0", True),
        ("Apache-2.0 AND Apache-2.0", True),
        ("Apache-2.0 AND MIT OR Acme", False),  # Acme alone would do, and is not in the set
        ("Apache-2.0 AND MIT or Acme", False),
    ],
)
def test_a_choice_of_licences_is_compared_whole(ask: Ask, say: Say, expression: str, holds: bool) -> None:
    say(CYCLONEDX, bill({"expression": expression}))
    decision = ask("[{type: cyclonedx, conditions: [{license: {one-of: [Apache-2.0, MIT OR Acme, MIT or Acme]}}]}]")
    assert decision.allowed is holds


def test_all_conditions_on_one_attestation(ask: Ask, say: Say) -> None:
    """Two attestations that each meet one of two conditions do not meet both."""
    both = "[{type: scan, conditions: [{verdict: pass}, {path: /scanner/version, equals: '2'}]}]"
    say(SCAN, {"verdict": "pass", "scanner": {"version": "1"}})
    say(SCAN, {"verdict": "fail", "scanner": {"version": "2"}})
    assert ask(both).code == "attestation-condition"
    say(SCAN, {"verdict": "pass", "scanner": {"version": "2"}})
    assert ask(both).allowed


def test_conditions_are_not_met_by_an_attestation_that_does_not_count(ask: Ask, say: Say) -> None:
    say(SCAN, {"verdict": "fail"})
    say(SCAN, {"verdict": "pass"}, "stranger")
    say(SCAN, {"verdict": "pass"}, "ops")
    say(SPDX, {"verdict": "pass"})
    assert ask("[{type: scan, conditions: [{verdict: pass}]}]").code == "attestation-condition"


def test_any_or_every(ask: Ask, say: Say) -> None:
    say(SCAN, {"verdict": "pass"})
    every = "[{type: scan, which: every, conditions: [{verdict: pass}]}]"
    assert ask(every).allowed
    say(SCAN, {"verdict": "fail"}, "ops")  # not one of the rule's: its word counts neither for nor against
    assert ask(every).allowed
    say(SCAN, {"verdict": "fail"})
    assert ask(every).code == "attestation-condition"
    assert ask("[{type: scan, which: any, conditions: [{verdict: pass}]}]").allowed
    assert ask("[{type: scan, conditions: [{verdict: pass}]}]").allowed


def test_every_needs_one(ask: Ask) -> None:
    assert ask("[{type: scan, which: every, conditions: [{verdict: pass}]}]").code == "missing-attestation"


class Flooded(LayoutRepository):
    """A repository whose listing has far too many referrers after the good ones."""

    def referrers(self, subject: Digest, artifact_type: str | None = None) -> list[Descriptor]:
        fakes = (Digest.of(b"%d" % number) for number in range(evidence.MAX_ITEMS + 1))
        kind = mediatypes.SIGSTORE_BUNDLE
        flood = [Descriptor(mediatypes.IMAGE_MANIFEST, fake, 500, artifact_type=kind) for fake in fakes]
        return super().referrers(subject, artifact_type) + flood


def test_every_is_not_satisfied_by_what_was_not_looked_at(
    repository: LayoutRepository, subject: Descriptor, say: Say, policy: Parse
) -> None:
    """Who can push referrers must not be able to hide a bad verdict behind them."""
    say(SCAN, {"verdict": "pass"})

    def decision(which: str) -> Decision:
        rule = f"{{match: ['**'], require: {{any-of: [release]}}, attestations: [{{type: scan, which: {which}}}]}}"
        flooded = Flooded(repository.root, repository.name)
        return verify(flooded, REFERENCE, subject, policy(f"{AUTHORITIES}rules: [{rule}]"))

    assert decision("any").allowed
    assert not decision("every").allowed
    assert decision("every").code in ("too-many-signatures", "unreadable-signature")


@pytest.mark.parametrize("code", ["oversized-signature", "unreadable-signature", "malformed-signature"])
def test_every_and_one_that_cannot_be_read(
    repository: LayoutRepository, subject: Descriptor, say: Say, policy: Parse, code: str
) -> None:
    say(SCAN, {"verdict": "pass"})
    rule = "{match: ['**'], require: {any-of: [release]}, attestations: [{type: scan, which: every}]}"
    found = collect(repository, subject.digest)
    broken = replace(found, items=(*found.items, Item(Form.BUNDLE, "referrer", fault=Fault(Reason(code), "broken"))))
    decision = decide(policy(f"{AUTHORITIES}rules: [{rule}]"), Target("model"), broken)
    # What is malformed says nothing, and so nothing bad; what was not read may.
    assert decision.code == ("allowed" if code == "malformed-signature" else code)


def test_a_flood_is_named_where_it_may_hide_the_attestation(
    repository: LayoutRepository, subject: Descriptor, policy: Parse
) -> None:
    text = f"{AUTHORITIES}rules: [{{match: ['**'], require: {{any-of: [release]}}, attestations: [scan]}}]"
    decision = verify(Flooded(repository.root, repository.name), REFERENCE, subject, policy(text))
    assert decision.code == "too-many-signatures"


def test_the_trace_says_which_condition_of_which_rule_decided(ask: Ask, say: Say) -> None:
    written = say(SCAN, {"verdict": "fail", "scanner": {"version": "2"}})
    decision = ask("[{type: scan, conditions: [{path: /scanner/version, equals: '2'}, {verdict: pass}]}]")
    trace = [step.to_json() for step in decision.trace]
    assert {
        "kind": "attestation",
        "name": f"referrer {written.digest}",
        "code": "valid-attestation",
        "detail": "an attestation of type scan, by release",
    } in trace
    told = [(step["kind"], step["name"], step["code"]) for step in trace if step["kind"] in ("condition", "rule")]
    assert told == [
        ("condition", "all: scan: /scanner/version", "allowed"),
        ("condition", "all: scan: verdict", "attestation-condition"),
        ("condition", "all: scan", "attestation-condition"),
        ("rule", "all", "attestation-condition"),
    ]
    assert "verdict is 'fail', must be 'pass'" in decision.reason
    assert "\n" not in decision.reason and decision.reason.isprintable()


def test_the_trace_of_an_allowed_artifact(ask: Ask, say: Say) -> None:
    say(SCAN, {"verdict": "pass"})
    decision = ask("[{type: scan, conditions: [{verdict: pass}]}]")
    assert [step.kind for step in decision.trace] == [
        "signature", "signature", "attestation", "condition", "condition", "rule",
    ]  # fmt: skip
    assert decision.trace[-1].detail == "signed by release; scan by release"


def test_a_policy_without_attestations_sees_what_it_saw(
    repository: LayoutRepository, subject: Descriptor, policy: Parse, say: Say
) -> None:
    say(PROVENANCE, MADE)
    decision = verify(repository, REFERENCE, subject, policy())
    assert decision.allowed
    assert [(step.kind, step.code.value) for step in decision.trace] == [
        ("signature", "valid-signature"), ("signature", "valid-signature"),
        ("signature", "wrong-predicate"), ("rule", "allowed"),
    ]  # fmt: skip


def test_warn_mode(ask: Ask) -> None:
    decision = ask("[scan]", more="mode: warn\n")
    assert (decision.allowed, decision.warned, decision.code) == (True, True, "missing-attestation")


def test_every_rule_has_its_say(repository: LayoutRepository, subject: Descriptor, policy: Parse, say: Say) -> None:
    say(SCAN, {"verdict": "pass"})
    rules = [
        "{name: signed, match: ['**'], require: {any-of: [release]}}",
        "{name: scanned, match: ['**'], require: {any-of: [release]}, attestations: [scan]}",
        "{name: made, match: ['registry.example/**'], require: {any-of: [release]}, attestations: [slsaprovenance1]}",
    ]
    for order in (rules, rules[::-1]):
        decision = verify(repository, REFERENCE, subject, policy(f"{AUTHORITIES}rules: [{', '.join(order)}]"))
        assert (decision.code, "'made'" in decision.reason) == ("missing-attestation", True)


@pytest.mark.parametrize(
    ("type_", "code"),
    [("\ud800", "malformed-signature"), ("a\nb\x1b[31m", "valid-attestation"), ("x" * 100_000, "valid-attestation")],
    ids=["half a character", "escapes", "long"],
)
def test_text_of_an_attestation_does_not_spoil_a_report(type_: str, code: str) -> None:
    """A required key may have signed anything at all, elsewhere and long ago."""
    digest = Digest.of(b"manifest")
    key = PrivateKey.new()
    payload = json.dumps(
        {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"digest": {"sha256": digest.hex}}],
            "predicateType": type_,
            "predicate": {type_: type_},
        }
    ).encode()
    envelope = Envelope(payload, mediatypes.IN_TOTO, (key.sign(pae(mediatypes.IN_TOTO, payload)),))
    found = Evidence(digest, (Item(Form.BUNDLE, "referrer", Bundle(envelope, hint="")),))
    text = "version: 1\nauthorities: {a: {key: x}}\nrules: [{match: ['**'], require: nothing, "
    text += "attestations: [{type: scan, require: {any-of: [a]}}]}]"
    decision = decide(Policy.parse(text.encode(), "p", lambda _: key.public), Target("model"), found)
    assert decision.code == "missing-attestation"
    assert decision.trace[0].code == code
    for line in (decision.reason, *(step.detail for step in decision.trace)):
        line.encode()
        assert line.isprintable() and len(line) < 1000
    json.dumps(decision.to_json(), ensure_ascii=False).encode()


def test_the_decision_is_a_function_of_the_evidence(
    repository: LayoutRepository, subject: Descriptor, policy: Parse, say: Say
) -> None:
    say(SCAN, {"verdict": "pass"})
    say(SCAN, {"verdict": "fail"})
    text = f"{AUTHORITIES}rules: [{{match: ['**'], require: {{any-of: [release]}}, attestations: [scan]}}]"
    found = collect(repository, subject.digest)
    first = decide(policy(text), Target("model"), found)
    again = decide(policy(text), Target("model"), replace(found, items=found.items[::-1]))
    assert json.dumps(first.to_json()) == json.dumps(decide(policy(text), Target("model"), found).to_json())
    assert first.allowed and again.allowed
