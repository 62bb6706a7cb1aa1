"""What a policy says about keyless signers, ages and layouts: how it is read, and what it decides."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.errors import InvalidInput
from artifact.layout import LayoutRepository
from artifact.manifest import Manifest
from artifact.reference import Reference
from supplychain.age import Age
from supplychain.attest import attest
from supplychain.authority import Authority, vouching
from supplychain.decision import decide
from supplychain.evidence import collect, layout_of
from supplychain.glob import Target
from supplychain.keys import PrivateKey
from supplychain.policy import Policy, WhenRunning
from supplychain.referrer import push_bytes
from supplychain.refusal import Reason
from supplychain.sign import sign
from supplychain.statement import Statement
from supplychain.trustroot import TrustRoot
from supplychain.verify import verify
from tests.supplychain.conftest import ANY_OF
from tests.supplychain.sigstore_identity import b64
from tests.supplychain.sigstore_services import Sigstore

Parse = Callable[..., Policy]
REFERENCE = Reference.parse("registry.example/acme/model:v1")
NOW = datetime(2026, 1, 31, tzinfo=UTC)
TYPE = "https://example.com/evaluation/v1"

KEYLESS = """version: 1
authorities:
  ci:
    keyless: {KEYLESS}
rules: [{match: ["**"], require: {any-of: [ci]}}]
"""


@pytest.mark.parametrize(
    ("keyless", "message"),
    [
        ("{issuer: x, trust-root: root.json}", "named by identity or by identity-glob"),
        ("{identity: a, identity-glob: b, issuer: x, trust-root: root.json}", "named by identity or by identity-glob"),
        ("{identity: a, trust-root: root.json}", "'issuer' is missing"),
        ("{identity: a, issuer: x}", "'trust-root' is missing"),
        ("{identity-glob: '**', issuer: x, trust-root: root.json}", "means everybody"),
        ("{identity-glob: 'a***', issuer: x, trust-root: root.json}", "a pattern has"),
        ("{identity: a, issuer: x, trust-root: missing.json}", "cannot read trust root"),
        ("{identity: a, issuer: x, trust-root: broken.json}", "no trust root that can be used"),
        ("{identity: a, issuer: x, trust-root: other.json}", "its mediaType is"),
        ("{identity: a, issuer: x, trust-root: keyless.json}", "no trust root that can be used"),
        ("{identity: a, issuer: x, trust-root: root.json, extra: 1}", "unknown key 'extra'"),
        ("a", "must be a mapping"),
    ],
)
def test_a_mistake_is_pointed_at(sigstore: Sigstore, tmp_path: Path, keyless: str, message: str) -> None:
    root = sigstore.trusted_root()
    (tmp_path / "root.json").write_text(json.dumps(root))
    (tmp_path / "broken.json").write_text('{"mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1"}')
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "keyless.json").write_text(json.dumps({**root, "certificateAuthorities": []}))
    path = tmp_path / "policy.yaml"
    path.write_text(KEYLESS.replace("{KEYLESS}", keyless))
    with pytest.raises(InvalidInput, match=message) as error:
        Policy.load(path)
    assert f"{path}:4: " in str(error.value) or f"{path}:3: " in str(error.value)


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.text(max_size=20),
    st.binary(max_size=99).map(b64),
    st.just([]),
    st.just({}),
)


@given(data=st.data())
def test_a_trust_root_is_read_or_refused(sigstore_services: Sigstore, data: st.DataObject) -> None:
    root = copy.deepcopy(sigstore_services.trusted_root())
    at, step = root, data.draw(st.sampled_from(sorted(root)))
    while isinstance(at[step], dict | list) and data.draw(st.booleans(), "deeper"):
        at = at[step]
        if not at:
            return
        step = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
    at[step] = data.draw(JUNK)
    try:
        TrustRoot.parse(json.dumps(root).encode(), "root.json")
    except InvalidInput as error:
        assert str(error).startswith("root.json") and "\n" not in str(error)


def test_the_same_identity_under_two_names(sigstore: Sigstore, tmp_path: Path) -> None:
    (tmp_path / "root.json").write_text(json.dumps(sigstore.trusted_root()))
    who = "{keyless: {identity: a, issuer: x, trust-root: root.json}}"
    path = tmp_path / "policy.yaml"
    path.write_text(f"version: 1\nauthorities:\n  a: {who}\n  b: {who}\nrules: []\n")
    with pytest.raises(InvalidInput, match="'a' and 'b' have the same identity"):
        Policy.load(path)


def test_a_trust_root_may_be_written_out_and_come_in_a_trust_config(sigstore: Sigstore, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(sigstore.trust_config()))
    policies = []
    for root in ("config.json", "'" + json.dumps(sigstore.trusted_root()) + "'"):
        path = tmp_path / "policy.yaml"
        path.write_text(KEYLESS.replace("{KEYLESS}", f"{{identity: a, issuer: x, trust-root: {root}}}"))
        policies.append(Policy.load(path))
    assert policies[0].roots == policies[1].roots and len(policies[0].roots) == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("max-age: 5", "must be text"),
        ("max-age: 0d", "a number of days, hours or minutes"),
        ("max-age: 5y", "a number of days, hours or minutes"),
        ("layouts: [ollama]", "must be modelpack or docker"),
        ("layouts: modelpack", "must be a list"),
    ],
)
def test_a_rule_that_cannot_be_read(policy: Parse, more: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        policy(f"{ANY_OF}    {more}\n")


def test_what_happens_to_what_runs(policy: Parse) -> None:
    assert policy().when_running is WhenRunning.REPORT
    assert policy(f"{ANY_OF}on-revocation: stop\n").when_running is WhenRunning.STOP
    with pytest.raises(InvalidInput, match="report or stop"):
        policy(f"{ANY_OF}on-revocation: kill\n")


def test_a_time_that_the_signer_states(
    repository: LayoutRepository, subject: Descriptor, keys: dict[str, PrivateKey], policy: Parse
) -> None:
    """A key signature proves no time; what the key's holder says of one is worth what the holder's word is."""
    sign(repository, subject, keys["release"])
    text = f"{ANY_OF}    attestations: [{{type: {TYPE!r}, conditions: [{{path: /finishedOn, max-age: 30d}}]}}]\n"
    for stated, code in (
        ("2026-01-20T00:00:00Z", "allowed"),
        ("2026-01-20T00:00:00+02:00", "allowed"),
        ("2025-12-01T00:00:00Z", "attestation-condition"),
        ("2026-02-20T00:00:00Z", "attestation-condition"),  # not in the past
        ("2026-01-20T00:00:00", "attestation-condition"),  # where?
        ("yesterday", "attestation-condition"),
        (1, "attestation-condition"),
    ):
        said = Statement.about(subject.digest, TYPE, {"finishedOn": stated})
        written = attest(repository, subject, said, keys["release"])
        found = replace(collect(repository, subject.digest), at=NOW)
        assert decide(policy(text), Target("model"), found).code == code, stated
        repository.drop(written.digest)


def test_a_key_attestation_has_no_trusted_time(
    repository: LayoutRepository, subject: Descriptor, keys: dict[str, PrivateKey], policy: Parse
) -> None:
    sign(repository, subject, keys["release"])
    attest(repository, subject, Statement.about(subject.digest, TYPE), keys["release"])
    text = f"{ANY_OF}    attestations: [{{type: {TYPE!r}, max-age: 30d}}]\n"
    decision = verify(repository, REFERENCE, subject, policy(text))
    assert decision.code == "no-trusted-time"
    assert [step.kind for step in decision.trace].count("freshness") == 1


@given(st.integers(-60 * 24 * 400, 60 * 24 * 400))
def test_ages(minutes: int) -> None:
    age, time = Age(timedelta(days=30), "30d"), NOW - timedelta(minutes=minutes)
    found = age.exceeded(time, NOW)
    assert (found is None) == (-10 <= minutes <= 30 * 24 * 60)
    assert age.exceeded(None, NOW) is not None and age.exceeded(time, None) is not None


def test_layouts(repository: LayoutRepository, subject: Descriptor, keys: dict[str, PrivateKey], policy: Parse) -> None:
    config = push_bytes(repository, b"{}", "application/vnd.docker.ai.model.config.v0.2+json")
    layer = push_bytes(repository, b"weights", mediatypes.DOCKER_GGUF)
    manifest = Manifest(config, (layer,))
    docker = repository.push_manifest(manifest.to_bytes(), manifest.media_type)
    assert [layout_of(repository, item.digest) for item in (subject, docker)] == ["modelpack", "docker"]
    for item in (subject, docker):
        sign(repository, item, keys["release"])
    for layouts, wanted in (
        ("[modelpack]", ["allowed", "layout-not-allowed"]),
        ("[docker, modelpack]", ["allowed"] * 2),
    ):
        rules = policy(f"{ANY_OF}    layouts: {layouts}\n")
        assert [verify(repository, REFERENCE, item, rules).code for item in (subject, docker)] == wanted
    image = Manifest(push_bytes(repository, b"{}", mediatypes.IMAGE_CONFIG), (layer,))
    other = repository.push_manifest(image.to_bytes(), image.media_type)
    assert layout_of(repository, other.digest) == "other"


def test_the_time_is_part_of_the_evidence(
    repository: LayoutRepository, subject: Descriptor, keys: dict[str, PrivateKey], policy: Parse
) -> None:
    sign(repository, subject, keys["release"])
    found = collect(repository, subject.digest)
    assert found.at is not None
    stated = replace(found, at=NOW)
    first, again = (decide(policy(), Target("model"), stated).to_json() for _ in range(2))
    assert first == again
    assert decide(policy(), Target("model"), replace(found, at=None)).code is Reason.ALLOWED


SIGNERS = [PrivateKey.new().public for _ in range(4)]


@given(st.lists(st.sets(st.sampled_from(range(4)), max_size=3), min_size=1, max_size=4))
def test_each_signer_stands_for_one_authority(signed_by: list[set[int]]) -> None:
    """As many authorities as possible, never two by one signer: compared with trying every choice."""

    class Several(Authority):
        def is_author(self, signer: object) -> bool:
            return signer in {SIGNERS[number] for number in signed_by[int(self.name)]}

    chosen = vouching([Several(str(number)) for number in range(len(signed_by))], SIGNERS)
    choices = itertools.product(*([*sorted(numbers), None] for numbers in signed_by))
    taken = ([number for number in choice if number is not None] for choice in choices)
    assert len(chosen) == max(len(numbers) for numbers in taken if len(set(numbers)) == len(numbers))


@pytest.mark.parametrize("page", ["keyless.md", "examples/policy-keyless.yaml"])
def test_what_the_documentation_shows_is_a_policy(
    sigstore: Sigstore, tmp_path: Path, keys: dict[str, PrivateKey], page: str
) -> None:
    text = (Path(__file__).parents[2] / "docs" / page).read_text()
    shown = text.partition("```yaml\n")[2].partition("```")[0] or text
    (tmp_path / "trusted_root.json").write_text(json.dumps(sigstore.trusted_root()))
    (tmp_path / "policy.yaml").write_text(shown.replace('"TRUSTED_ROOT"', "trusted_root.json"))
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "release.pub").write_bytes(keys["release"].public.pem)
    policy = Policy.load(tmp_path / "policy.yaml")
    assert len(policy.roots) == 1 and policy.rules[0].requirement.authorities[0].keyless is not None
