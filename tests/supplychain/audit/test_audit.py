"""What an audit says about every kind of artifact: in our registry, in one without referrers, in a layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from artifact.layout import LayoutRepository
from artifact.progress import Quiet
from artifact.remote import RemoteRepository
from artifact.transfer import copy_artifact
from supplychain.keys import PrivateKey
from supplychain.predicate import PROVENANCE
from supplychain.sign import sign
from tests.registry.servers import RunningRegistry
from tests.supplychain.audit.conftest import Audit
from tests.supplychain.audit.zoo import NAME, Zoo, blob, fill, push

STATUSES = {
    "signed": ("signed", "allowed"),
    "again": ("signed", "allowed"),
    "bundle-only": ("signed", "allowed"),
    "legacy-only": ("signed", "allowed"),
    "attested": ("signed", "allowed"),
    "also-forged": ("signed", "allowed"),
    "unsigned": ("unsigned", "unsigned"),
    "index": ("unsigned", "unsigned"),
    "attested-only": ("unsigned", "wrong-predicate"),
    "unknown": ("unknown", "unknown-signer"),
    "invalid": ("invalid", "invalid-signature"),
    "malformed": ("invalid", "malformed-signature"),
    "revoked": ("revoked", "revoked-key"),
    "notation": ("unsupported", "unsupported-signature"),
    "oms": ("unsupported", "unsupported-signature"),
}
FORMS = {
    "signed": {("cosign-legacy", "release"), ("sigstore-bundle", "release")},
    "bundle-only": {("sigstore-bundle", "security")},
    "legacy-only": {("cosign-legacy", "release")},
    "unknown": {("cosign-legacy", None), ("sigstore-bundle", None)},
    "invalid": {("sigstore-bundle", None)},
    "notation": {("notation", None)},
    "oms": {("model-signing", None)},
    "unsigned": set(),
    "attested-only": set(),
}


@pytest.fixture(params=["ours", pytest.param("docker-registry", marks=pytest.mark.peer)])
def anywhere(request: pytest.FixtureRequest, keys: dict[str, PrivateKey]) -> Zoo:
    """The same artifacts in our registry, and in one that knows no referrers."""
    if request.param == "ours":
        return request.getfixturevalue("zoo")
    return fill(request.getfixturevalue("docker_registry"), keys)


def check(records: list[dict[str, Any]], zoo: Zoo) -> None:
    tagged = {record["tag"]: record for record in records if record["tag"]}
    assert {tag: (record["status"], record["code"]) for tag, record in tagged.items()} == STATUSES
    assert {tag: record["digest"] for tag, record in tagged.items()} == {
        tag: str(descriptor.digest) for tag, descriptor in zoo.artifacts.items()
    }
    assert all(record["allowed"] == (record["code"] == "allowed") for record in tagged.values())
    for tag, forms in FORMS.items():
        assert {(item["form"], item["signer"]) for item in tagged[tag]["signatures"]} == forms, tag
    untagged = {record["digest"]: record["status"] for record in records if not record["tag"]}
    assert untagged == {str(zoo.loose["member"].digest): "signed", str(zoo.loose["untagged"].digest): "unknown"}
    for tag in ("attested", "attested-only"):
        (attested,) = tagged[tag]["attestations"]
        assert (attested["predicateType"], attested["code"]) == (PROVENANCE, "valid-attestation")
        assert attested["signer"] == "release"
        assert attested["source"] == f"referrer {attested['manifest']}"


def test_every_kind_is_told_apart(anywhere: Zoo, audit: Audit) -> None:
    ran = audit(anywhere.host)
    check(ran.records, anywhere)
    assert "17 artifacts in 1 repositories" in ran.err


def test_a_copy_in_a_layout(zoo: Zoo, audit: Audit, tmp_path: Path) -> None:
    layout, source = LayoutRepository(tmp_path / "layout"), RemoteRepository(zoo.host, NAME)
    everything = [*zoo.artifacts.items(), *((None, descriptor) for descriptor in zoo.loose.values())]
    for tag, descriptor in everything:
        copy_artifact(source, layout, descriptor.digest, tag=tag, progress=Quiet(), referrers=True)
    ran = audit(f"oci:{tmp_path}/layout")
    check(ran.records, zoo)
    assert all(record["repository"] == f"{tmp_path}/layout".strip("/") for record in ran.records)


def test_what_one_record_says(zoo: Zoo, audit: Audit, keys: dict[str, PrivateKey]) -> None:
    record = audit(f"{zoo.host}/{NAME}").by_tag(NAME)["signed"]
    subject = zoo.artifacts["signed"]
    assert record.pop("signatures") and record.pop("reason")
    assert record == {
        "reference": f"{zoo.host}/{NAME}:signed@{subject.digest}",
        "registry": zoo.host,
        "repository": NAME,
        "tag": "signed",
        "digest": str(subject.digest),
        "mediaType": subject.media_type,
        "artifactType": "application/vnd.cncf.model.manifest.v1+json",
        "size": subject.size,
        "status": "signed",
        "allowed": True,
        "warned": False,
        "code": "allowed",
        "rules": ["everything"],
        "signers": [{"name": "release", "fingerprint": keys["release"].public.hint}],
        "attestations": [],
        "referrers": {"application/vnd.dev.sigstore.bundle.v0.3+json": 1},
        "reused": False,
        "incomplete": False,
        "summary": None,
    }


@pytest.mark.parametrize(
    ("wanted", "status"),
    [
        ("unsigned", 3), ("invalid", 3), ("unknown", 3), ("revoked", 3), ("refused", 3), ("broken", 0), ("expired", 0),
        ("broken,expired", 0), ("broken,unsigned", 3),
    ],
)  # fmt: skip
def test_it_fails_on_what_it_is_told_to(zoo: Zoo, audit: Audit, wanted: str, status: int) -> None:
    ran = audit(zoo.host, "--fail-on", wanted, status=status)
    assert len(ran.records) == 17, "all of it is looked at in any case"
    assert ("(--fail-on)" in ran.err) == (status == 3)


def test_repositories_are_chosen_by_pattern_or_by_name(kept: RunningRegistry, audit: Audit, tmp_path: Path) -> None:
    for name in ("pick/one", "pick/two", "pick/deep/three", "pickles"):
        push(RemoteRepository(kept.host, name), name.encode(), "v1")

    def names(*arguments: str | Path) -> set[str]:
        return {record["repository"] for record in audit(*arguments).records}

    assert names(f"{kept.host}/pick/*") == {"pick/one", "pick/two"}
    assert names(f"{kept.host}/pick/**") == {"pick/one", "pick/two", "pick/deep/three"}
    assert names(f"{kept.host}/pickles", f"{kept.host}/pick/one") == {"pickles", "pick/one"}
    (tmp_path / "names").write_text("pick/one # the first\n\npickles\n")
    assert names(f"{kept.host}/pick*", "--repositories", tmp_path / "names") == {"pickles"}


def test_a_rule_for_a_tag_decides_about_that_tag(
    kept: RunningRegistry, audit: Audit, policy: Path, keys: dict[str, PrivateKey]
) -> None:
    repository = RemoteRepository(kept.host, "rules/model")
    subject = push(repository, b"weights", "v1")
    repository.push_manifest(repository.manifest("v1")[1], subject.media_type, "draft")
    other = policy.with_name("by-tag.yaml")
    other.write_text(
        "version: 1\nauthorities: {release: {key: release.pub}}\nrules:\n"
        '  - {name: drafts, match: ["**:draft"], require: nothing}\n'
        '  - {name: rest, match: ["**"], except: ["**:draft"], require: {any-of: [release]}}\n'
    )
    found = audit(f"{kept.host}/rules/model", "--policy", other).by_tag("rules/model")
    assert {tag: (record["allowed"], record["rules"]) for tag, record in found.items()} == {
        "draft": (True, ["drafts"]), "v1": (False, ["rest"]),
    }  # fmt: skip
    assert found["draft"]["status"] == "unsigned", "that it may be used does not make it signed"
    sign(repository, subject, keys["release"])
    assert audit(f"{kept.host}/rules/model", "--policy", other).by_tag("rules/model")["v1"]["allowed"]


def test_nothing_hides_behind_the_name_of_a_signature(kept: RunningRegistry, audit: Audit) -> None:
    """Whoever may push may choose any tag: one that looks like a signature's is believed only if it holds one."""
    repository = RemoteRepository(kept.host, "hidden/model")
    names = [f"sha256-{'0' * 64}{suffix}" for suffix in ("", ".sig", ".att")]
    for name in names:
        push(repository, name.encode(), name)
    found = audit(f"{kept.host}/hidden/model").by_tag("hidden/model")
    assert {tag: record["status"] for tag, record in found.items()} == dict.fromkeys(names, "unsigned")


def test_a_revoked_digest(kept: RunningRegistry, audit: Audit, policy: Path, keys: dict[str, PrivateKey]) -> None:
    repository = RemoteRepository(kept.host, "revoked/model")
    subject = push(repository, b"regretted", "v1")
    sign(repository, subject, keys["release"])
    other = policy.with_name("revoking.yaml")
    other.write_text(policy.read_text() + f'  digests: [{{digest: "{subject.digest}", reason: bad data}}]\n')
    record = audit(f"{kept.host}/revoked/model", "--policy", other).by_tag("revoked/model")["v1"]
    assert (record["status"], record["code"], record["allowed"]) == ("revoked", "revoked-digest", False)
    assert {item["code"] for item in record["signatures"]} == {"valid-signature"}


def test_what_is_broken_is_a_finding_and_no_end(
    registry_server: Callable[..., RunningRegistry], audit: Audit, tmp_path: Path
) -> None:
    server = registry_server(tmp_path / "storage")
    repository = RemoteRepository(server.host, "broken/model")
    subjects = {tag: push(repository, tag.encode(), tag) for tag in ("damaged", "gone", "whole")}
    blob(RemoteRepository(server.host, "only/blobs"), b"content", "text/plain")
    (stored,) = (tmp_path / "storage").rglob(f"_manifests/sha256/{subjects['damaged'].digest.hex}*")
    stored.write_bytes(stored.read_bytes()[:-1] + b" ")
    for path in (tmp_path / "storage").rglob(f"_manifests/sha256/{subjects['gone'].digest.hex}*"):
        path.unlink()
    ran = audit(server.host)
    found = ran.by_tag("broken/model")
    assert {tag: (record["status"], record["code"]) for tag, record in found.items()} == {
        "damaged": ("broken", "digest-mismatch"), "gone": ("broken", "not-found"), "whole": ("unsigned", "unsigned"),
    }  # fmt: skip
    assert found["gone"]["allowed"] is None
    audit(server.host, "--fail-on", "broken", status=3)


def test_mistakes_are_told_apart_from_findings(zoo: Zoo, audit: Audit, tmp_path: Path) -> None:
    for arguments, said in (
        ((f"http://{zoo.host}",), "not a registry"),
        ((f"{zoo.host}/{NAME}:v1",), "not a pattern"),
        ((f"{zoo.host}/***",), "not a pattern"),
        ((zoo.host, "--fail-on", "rain"), "--fail-on 'rain'"),
        ((zoo.host, "--output", "xml"), "--output 'xml'"),
        ((zoo.host, "--output", "table"), "only one --output"),
        ((zoo.host, "--output", f"sarif={tmp_path}/no/where"), "create it first"),
        ((zoo.host, "--policy", tmp_path / "none.yaml"), "cannot read policy"),
        ((zoo.host, "--vsa-dir", tmp_path), "--vsa-dir needs --vsa-key"),
        ((zoo.host, "--repositories", tmp_path), "cannot read"),
        ((zoo.host, "--state", tmp_path), "to remember the audit"),
    ):
        assert said in audit(*arguments, status=2).err
    missing = audit(f"{zoo.host}/no/such", status=1)
    assert (missing.records[0]["status"], missing.records[0]["code"]) == ("broken", "server-error")


@pytest.mark.parametrize("pattern", ["nope/**", "**/nope"])
def test_an_audit_that_sees_nothing_has_not_found_everything_in_order(
    zoo: Zoo, audit: Audit, tmp_path: Path, pattern: str
) -> None:
    """A catalog leaves out what a login may not see, and a pattern may be misspelt."""
    out = tmp_path / "audit.prom"
    ran = audit(f"{zoo.host}/{pattern}", f"{zoo.host}/{NAME}", output=f"prometheus={out}", status=1)
    assert f"error: {zoo.host}/{pattern}: no repository was found there" in ran.err
    assert f"packager login {zoo.host}" in ran.err
    assert "stowage_audit_complete 0.0" in out.read_text()
