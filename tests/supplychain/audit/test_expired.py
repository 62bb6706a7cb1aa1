"""Keyless signatures in an audit: good ones, ones that have expired, and those of strangers."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from artifact.layout import LayoutRepository
from artifact.mediatypes import SIGSTORE_BUNDLE
from supplychain.statement import COSIGN_SIGN, Statement
from tests.supplychain.audit.conftest import Audit
from tests.supplychain.audit.zoo import push, refer
from tests.supplychain.sigstore_services import Sigstore

POLICY = """
version: 1
authorities:
  alice: {{keyless: {{identity: alice@example.com, issuer: "{issuer}", trust-root: root.json}}}}
rules:
  - {{name: all, match: ["**"], require: {{any-of: [alice]}}, max-age: 30d}}
revoked:
  identities: [{{identity: mallory@example.com, reason: left}}]
"""

EXPECTED = {
    "good": ("signed", "allowed", "alice"),
    "late": ("expired", "expired-certificate", None),
    "old": ("expired", "stale", "alice"),
    "stranger": ("unknown", "unknown-signer", None),
    "revoked": ("revoked", "revoked-identity", None),
}


@pytest.fixture
def layout(sigstore: Sigstore, tmp_path: Path) -> Path:
    """An artifact for each of those, signed by a local sigstore."""
    (tmp_path / "root.json").write_text(json.dumps(sigstore.trusted_root()))
    (tmp_path / "policy.yaml").write_text(POLICY.format(issuer=sigstore.issuer.url))
    repository = LayoutRepository(tmp_path / "layout")
    for tag in EXPECTED:
        subject = push(repository, tag.encode(), tag)
        payload = Statement.about(subject.digest, COSIGN_SIGN).to_bytes()
        name = {"stranger": "bob@example.com", "revoked": "mallory@example.com"}.get(tag, "alice@example.com")
        sigstore.clock.offset = timedelta(days=-40) if tag == "old" else timedelta()
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = sigstore.fulcio.issue(key.public_key(), name, sigstore.issuer.url)
        sigstore.clock.offset += timedelta(hours=1) if tag == "late" else timedelta()
        bundle = sigstore.bundle(payload, key=key, certificate=certificate)
        refer(repository, subject, json.dumps(bundle).encode(), SIGSTORE_BUNDLE)
    return tmp_path / "layout"


def test_expired_is_kept_apart(layout: Path, audit: Audit) -> None:
    policy = layout.with_name("policy.yaml")
    ran = audit(f"oci:{layout}", "--policy", policy, "--fail-on", "expired", status=3)
    found = {record["tag"]: record for record in ran.records}
    said = {tag: (record["status"], record["code"]) for tag, record in found.items()}
    assert said == {tag: (status, code) for tag, (status, code, _) in EXPECTED.items()}
    names = {tag: record["signatures"][0]["signer"] for tag, record in found.items()}
    assert names == {tag: name for tag, (_, _, name) in EXPECTED.items()}
    assert [signer["name"] for signer in found["good"]["signers"]] == ["alice"]
    rules = {result["ruleId"] for result in json.loads(audit(
        f"oci:{layout}", "--policy", policy, output="sarif").out)["runs"][0]["results"]}  # fmt: skip
    assert rules == {code for status, code, _ in EXPECTED.values() if status != "signed"}
