"""Verification summaries: signed, attached or in files, and not written twice."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from in_toto_attestation.predicates.vsa.v1 import vsa_pb2

from artifact.descriptor import Descriptor
from artifact.remote import RemoteRepository
from supplychain.attest import attestations
from supplychain.audit.record import Subject
from supplychain.audit.vsa import SUMMARY, package_url
from supplychain.bundle import Bundle
from supplychain.keys import PrivateKey, generate
from supplychain.sign import sign
from supplychain.statement import Statement
from tests.registry.servers import RunningRegistry
from tests.supplychain.audit.conftest import Audit
from tests.supplychain.audit.zoo import push

NAME = "summed/up"


@pytest.fixture(scope="session")
def auditor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("auditor") / "auditor", b"secret")[0]


@pytest.fixture(params=["ours", pytest.param("docker-registry", marks=pytest.mark.peer)])
def host(request: pytest.FixtureRequest) -> str:
    if request.param == "ours":
        server: RunningRegistry = request.getfixturevalue("kept")
        return server.host
    return request.getfixturevalue("docker_registry")


def summaries(repository: RemoteRepository, subject: Descriptor, key: Path) -> list[Statement]:
    private = PrivateKey.load(str(key), lambda: b"secret")
    found = attestations(repository, subject.digest, [private.public])
    return [item.statement for item in found if item.valid and item.statement and item.predicate_type == SUMMARY]


def test_a_summary_is_attached_once_and_again_when_the_verdict_changes(
    host: str, audit: Audit, auditor: Path, policy: Path, keys: dict[str, PrivateKey], tmp_path: Path
) -> None:
    repository = RemoteRepository(host, NAME)
    subject = push(repository, b"weights", "v1")
    arguments = (f"{host}/{NAME}", "--vsa-key", auditor, "--state", tmp_path / "state")

    def run() -> dict[str, Any]:
        return audit(*arguments, env={"COSIGN_PASSWORD": "secret"}).by_tag(NAME)["v1"]

    first = run()
    assert (first["status"], first["code"]) == ("unsigned", "unsigned")
    second = run()
    assert second["summary"] == first["summary"] is not None
    assert (second["status"], second["code"]) == ("unsigned", "unsigned"), "a summary is no signature"
    assert {(item["predicateType"], item["code"]) for item in second["attestations"]} == {(SUMMARY, "unknown-signer")}
    assert run()["reused"]
    sign(repository, subject, keys["release"])
    third = run()
    assert third["allowed"] and third["summary"] != first["summary"]
    assert run()["summary"] == third["summary"]

    statements = summaries(repository, subject, auditor)
    assert [item.predicate["verificationResult"] for item in statements].count("PASSED") == 1
    assert len(statements) == 2
    (passed,) = [dict(item.predicate) for item in statements if item.predicate["verificationResult"] == "PASSED"]
    # The library has this one as text, where SLSA, and everybody else, has a list.
    levels = passed.pop("verifiedLevels")
    assert levels == ["SLSA_BUILD_LEVEL_UNEVALUATED"]
    parsed = ParseDict(passed, vsa_pb2.VerificationSummary())
    assert parsed.verifier.id == "https://stowage.dev/verifiers/audit/v1"
    assert parsed.policy.digest["sha256"] == hashlib.sha256(policy.read_bytes()).hexdigest()
    digest = f"sha256%3A{subject.digest.hex}"
    assert parsed.resource_uri == f"pkg:oci/up@{digest}?repository_url={host}/{NAME}&tag=v1"
    bundles = {item["manifest"] for item in third["signatures"] if item["manifest"]}
    assert {f"sha256:{item.digest['sha256']}" for item in parsed.input_attestations} == bundles != set()
    assert parsed.time_verified.seconds > 0


def test_two_tags_of_one_artifact_have_a_summary_each(host: str, audit: Audit, auditor: Path, tmp_path: Path) -> None:
    repository = RemoteRepository(host, f"{NAME}/twice")
    subject = push(repository, b"weights", "v1")
    for tag in ("v2", "v3", "v4"):
        repository.push_manifest(repository.manifest("v1")[1], subject.media_type, tag)
    for _ in range(2):
        ran = audit(f"{host}/{NAME}/twice", "--vsa-key", auditor, env={"COSIGN_PASSWORD": "secret"})
        assert len({record["summary"] for record in ran.records}) == 4
    assert len(summaries(repository, subject, auditor)) == 4


def test_summaries_in_files(kept: RunningRegistry, audit: Audit, auditor: Path, tmp_path: Path) -> None:
    name = f"{NAME}/files"
    subject = push(RemoteRepository(kept.host, name), b"weights", "v1")
    arguments = (f"{kept.host}/{name}", "--vsa-key", auditor, "--vsa-dir", tmp_path / "out")
    arguments += ("--verifier-id", "https://ops.example/audit")
    path = Path(audit(*arguments, env={"COSIGN_PASSWORD": "secret"}).records[0]["summary"])
    assert path.relative_to(tmp_path / "out" / kept.host / name).name == f"v1@sha256-{subject.digest.hex}.sigstore.json"
    written = path.read_bytes()
    envelope = Bundle.parse(written).envelope
    key = PrivateKey.load(str(auditor), lambda: b"secret").public
    assert key.verify(envelope.signatures[0], envelope.signed_bytes)
    statement = Statement.parse(envelope.payload)
    assert statement.names(subject.digest) and statement.predicate["verificationResult"] == "FAILED"
    assert statement.predicate["verifier"] == {"id": "https://ops.example/audit"}
    audit(*arguments, env={"COSIGN_PASSWORD": "secret"})
    assert path.read_bytes() == written, "the same verdict again"
    path.write_bytes(written.replace(b"a", b"b", 1))
    audit(*arguments, env={"COSIGN_PASSWORD": "secret"})
    assert Bundle.parse(path.read_bytes()).envelope.payload != b"", "one that is no good is replaced"
    assert RemoteRepository(kept.host, name).referrers(subject.digest) == [], "files instead of referrers"


def test_a_summary_that_cannot_be_written_is_told(
    kept: RunningRegistry, audit: Audit, auditor: Path, tmp_path: Path
) -> None:
    push(RemoteRepository(kept.host, f"{NAME}/full"), b"weights", "v1")
    arguments = (f"{kept.host}/{NAME}/full", "--vsa-key", auditor)
    assert "wrong password" in audit(*arguments, env={"COSIGN_PASSWORD": "wrong"}, status=2).err
    (tmp_path / "out").write_text("a file")
    ran = audit(*arguments, "--vsa-dir", tmp_path / "out", env={"COSIGN_PASSWORD": "secret"}, status=1)
    assert ran.records[0]["summary"] is None and ran.records[0]["incomplete"]
    assert (ran.records[0]["status"], ran.records[0]["code"]) == ("unsigned", "unsigned")
    assert "error: " in ran.err and "its summary cannot be written" in ran.err


def test_a_policy_may_require_a_summary(
    kept: RunningRegistry, audit: Audit, auditor: Path, policy: Path, keys: dict[str, PrivateKey]
) -> None:
    """In place of the signatures: the auditor's word that they were good."""
    name = f"{NAME}/required"
    for tag in ("good", "bad"):
        subject = push(RemoteRepository(kept.host, name), tag.encode(), tag)
        if tag == "good":
            sign(RemoteRepository(kept.host, name), subject, keys["release"])
    audit(f"{kept.host}/{name}", "--vsa-key", auditor, env={"COSIGN_PASSWORD": "secret"})
    other = policy.with_name("by-summary.yaml")
    other.write_text(
        f"version: 1\nauthorities: {{auditor: {{key: {auditor.with_suffix('.pub')}}}}}\n"
        'rules: [{match: ["**"], require: nothing, attestations: [{type: "https://slsa.dev/verification_summary/v1", '
        "require: {any-of: [auditor]}, conditions: [{path: /verificationResult, equals: PASSED}]}]}]\n"
    )
    found = audit(f"{kept.host}/{name}", "--policy", other).by_tag(name)
    assert {tag: record["code"] for tag, record in found.items()} == {
        "good": "allowed", "bad": "attestation-condition",
    }  # fmt: skip


def test_package_urls() -> None:
    digest = f"sha256:{'0' * 64}"
    assert package_url(Subject("h:5", "a/b", "h:5/a/b", "v1", digest)) == (
        f"pkg:oci/b@sha256%3A{'0' * 64}?repository_url=h:5/a/b&tag=v1"
    )
    assert package_url(Subject("oci", "x/y z", "oci:/x/y z", None, digest)) == f"pkg:oci/y%20z@sha256%3A{'0' * 64}"
    assert package_url(Subject("h", "a", "h/a")) == "pkg:oci/a?repository_url=h/a"


def test_what_is_only_warned_of_has_not_passed(
    kept: RunningRegistry, audit: Audit, auditor: Path, policy: Path, tmp_path: Path
) -> None:
    """Whoever takes the summary in place of signatures would let it pass for good."""
    repository = RemoteRepository(kept.host, "summed/warned")
    subject = push(repository, b"unsigned", "v1")
    trial = policy.with_name("trial.yaml")
    trial.write_text(f"{policy.read_text()}mode: warn\n")
    arguments = (f"{kept.host}/summed/warned", "--policy", trial, "--vsa-key", auditor)
    (record,) = audit(*arguments, env={"COSIGN_PASSWORD": "secret"}).records
    assert record["allowed"] and record["warned"], record["reason"]
    (statement,) = summaries(repository, subject, auditor)
    assert statement.predicate["verificationResult"] == "FAILED"
    assert statement.predicate["verifiedLevels"] == ["FAILED"]
