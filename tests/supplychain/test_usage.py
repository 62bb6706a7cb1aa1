"""What a policy lets be done with an artifact: engines, flags, and code that came with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from artifact.descriptor import Descriptor
from artifact.errors import InvalidInput
from artifact.layout import LayoutRepository
from artifact.reference import Reference
from supplychain.attest import attest
from supplychain.decision import Decision
from supplychain.keys import PrivateKey
from supplychain.policy import Policy
from supplychain.predicate import SCAN
from supplychain.refusal import PolicyRefused
from supplychain.sign import sign
from supplychain.statement import Statement
from supplychain.usage import Grant, Use
from supplychain.verify import verify

Keys = dict[str, PrivateKey]
AUTHORITIES = "version: 1\nauthorities: {release: {key: release}, ops: {key: ops}}\n"
SAID = [
    {"code": "python-code", "severity": "error", "path": "modeling.py", "message": "m", "allowed": True},
    {"code": "python-code", "severity": "error", "path": "other.py", "message": "m", "allowed": False},
    {"code": "auto-map", "severity": "error", "path": "config.json", "message": "m", "allowed": True},
    {"code": "license-missing", "severity": "warning", "path": "", "message": "m", "allowed": True},
]
GRANTED = Grant(frozenset({"modeling.py"}), frozenset({"config.json"}))


@pytest.fixture
def ask(repository: LayoutRepository, subject: Descriptor, policy: Callable[[str], Policy]) -> Callable[..., Decision]:
    """Decide under a policy with these rules."""

    def ask(*rules: str, reference: str = "registry.example/acme/model:v1") -> Decision:
        text = AUTHORITIES + "rules:\n" + "".join(f"- {{{rule}}}\n" for rule in rules)
        return verify(repository, Reference.parse(reference), subject, policy(text))

    return ask


@pytest.fixture
def scanned(repository: LayoutRepository, subject: Descriptor, keys: Keys) -> Callable[..., None]:
    """Sign the artifact, and attest a scan of it."""

    def scanned(signer: str = "release", scanner: str = "release", findings: Any = SAID) -> None:
        sign(repository, subject, keys[signer])
        attest(repository, subject, Statement.about(subject.digest, SCAN, {"findings": findings}), keys[scanner])

    return scanned


RULE = "match: ['**'], require: {any-of: [release]}"
ALLOWS = f"name: code, {RULE}, allow: [trust_remote_code]"


def test_code_is_granted_to_what_a_trusted_scan_allowed_by_name(ask, scanned):
    scanned()
    decision = ask(ALLOWS)
    assert decision.grant == GRANTED
    assert decision.to_json()["grant"] == {"code": ["modeling.py"], "configs": ["config.json"]}
    step = decision.trace[-1]
    assert (step.kind, step.name, step.code) == ("grant", "code: trust_remote_code", "allowed")
    assert step.detail == "code may run: config.json, modeling.py"


@pytest.mark.parametrize(
    ("rules", "scan", "reference", "why"),
    [
        ([RULE], {}, "", None),
        ([ALLOWS], {"scanner": "ops"}, "", "no scan that counts for the rule"),
        ([ALLOWS], {"findings": []}, "", "no scan that counts for the rule"),
        ([ALLOWS], {"findings": "x"}, "", "no scan that counts for the rule"),
        ([ALLOWS], {"findings": [7, {"code": "python-code", "path": "a.py", "allowed": 1}]}, "", "no scan"),
        ([RULE, f"{ALLOWS}, mode: warn".replace("release", "ops")], {}, "", "the rule is not satisfied"),
        ([RULE, ALLOWS.replace("'**'", "'**/model:v1'")], {}, "registry.example/acme/model", "may mean a tag"),
        ([RULE, f"{ALLOWS}, except: ['**/model:v2']"], {}, "registry.example/acme/model", "may mean a tag"),
    ],
)
def test_code_is_not_granted(ask, scanned, rules, scan, reference, why):
    scanned(**scan)
    decision = ask(*rules, **({"reference": reference} if reference else {}))
    assert decision.allowed
    assert not decision.grant
    steps = [step for step in decision.trace if step.kind == "grant"]
    assert len(steps) == (why is not None)
    if why is not None:
        assert steps[0].code == "not-granted" and why in steps[0].detail


def test_one_rule_may_grant_what_another_says_nothing_of(ask, scanned):
    scanned()
    assert ask(RULE, ALLOWS.replace("'**'", "'registry.example/acme/*'")).grant == GRANTED


def test_what_is_refused_is_granted_nothing(ask, scanned):
    scanned(signer="ops")
    decision = ask(ALLOWS)
    assert not decision.allowed and not decision.grant


@pytest.mark.parametrize(
    ("limits", "use", "code"),
    [
        ("engines: [vllm]", Use("vllm", "0.32.0"), "allowed"),
        ("engines: ['vllm==0.32.*', llama.cpp]", Use("vllm", "0.32.0"), "allowed"),
        ("engines: ['vllm==0.32.*', llama.cpp]", Use("vllm", "0.33.0"), "engine-not-allowed"),
        ("engines: [llama.cpp]", Use("llama-cpp-python", "1"), "engine-not-allowed"),
        ("engines: ['llama*']", Use("llama-cpp-python", "1"), "allowed"),
        ("engines: []", Use("vllm"), "engine-not-allowed"),
        ("flags: ['--parallel', '--rope-*']", Use("llama.cpp", "1", ("--parallel", "--rope-scaling")), "allowed"),
        ("flags: ['--parallel']", Use("llama.cpp", "1", ("--parallel", "--temp")), "flag-not-allowed"),
        ("flags: []", Use("llama.cpp", "1", ("--temp",)), "flag-not-allowed"),
        ("flags: []", Use("llama.cpp", "1"), "allowed"),
    ],
)
def test_engines_and_flags_are_limited(ask, scanned, limits, use, code):
    scanned()
    decision = ask(f"name: limited, {RULE}, {limits}").to_use(use)
    assert (decision.allowed, decision.code) == (code == "allowed", code)
    assert (decision.trace[-1].kind, decision.trace[-1].name, decision.trace[-1].code) == ("use", "limited", code)
    if code != "allowed":
        with pytest.raises(PolicyRefused, match=rf"refused by policy\.yaml: {code}: rule 'limited': ") as refusal:
            decision.enforce()
        assert refusal.value.exit_code == 3


def test_every_rule_that_applies_limits_and_one_that_warns_only_says_so(ask, scanned):
    scanned()
    wide, narrow = f"name: wide, {RULE}, engines: ['*']", f"name: narrow, {RULE}, engines: [llama.cpp]"
    assert not ask(wide, narrow).to_use(Use("vllm")).allowed
    warned = ask(wide, f"{narrow}, mode: warn").to_use(Use("vllm"))
    assert warned.warned and warned.code == "engine-not-allowed"
    other = narrow.replace("'**'", "'other.example/**'")
    assert ask(wide, other).to_use(Use("vllm")).code == "allowed"


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (f"{RULE}, allow: [everything]", "must be trust_remote_code"),
        (f"{RULE}, allow: trust_remote_code", "must be a list"),
        ("match: ['**'], require: nothing, allow: [trust_remote_code]", "the rule requires nobody"),
        (f"{RULE}, engines: vllm", "must be a list"),
        (f"{RULE}, engines: ['a b']", "an engine is NAME or NAME==VERSION"),
        (f"{RULE}, engines: [vllm==]", "an engine is NAME"),
        (f"{RULE}, flags: [parallel]", "a flag begins with -"),
        (f"{RULE}, flags: ['--a=b']", "a flag begins with -"),
    ],
)
def test_mistakes_are_pointed_at(policy, rule, message):
    with pytest.raises(InvalidInput, match=message) as error:
        policy(f"{AUTHORITIES}rules:\n- {{{rule}}}\n")
    assert str(error.value).startswith("policy.yaml:4: ")


@pytest.mark.parametrize(
    "wanted",
    [
        "conditions: [{path: /scanner/uri, equals: 'https://scans.example'}]",
        "require: {any-of: [ops]}",
        "max-age: 1d",
    ],
)
def test_a_scan_the_rule_does_not_take_grants_nothing(repository, subject, keys, ask, wanted):
    """Another scan satisfies the rule; the one that would let code run does not."""
    sign(repository, subject, keys["release"])
    wished = Statement.about(subject.digest, SCAN, {"findings": SAID, "scanner": {"uri": "https://other.example"}})
    attest(repository, subject, wished, keys["release"])
    good = Statement.about(subject.digest, SCAN, {"findings": [], "scanner": {"uri": "https://scans.example"}})
    attest(repository, subject, good, keys["ops" if "ops" in wanted else "release"])
    decision = ask(f"{ALLOWS}, attestations: [{{type: scan, {wanted}}}]")
    assert decision.allowed is ("max-age" not in wanted), "a signature by a key has no time that could be too long ago"
    assert not decision.grant
    assert [step.code for step in decision.trace if step.kind == "grant"] == ["not-granted"]
