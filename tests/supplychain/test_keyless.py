"""Keyless signatures made by the command, as our policies and other projects' verifiers see them."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sigstore.models import Bundle, TrustedRoot
from sigstore.verify import Verifier, policy

from artifact.descriptor import Descriptor
from artifact.layout import LayoutRepository
from artifact.locate import open_repository
from artifact.manifest import Manifest
from artifact.reference import Reference
from supplychain.policy import Policy
from supplychain.verify import verify
from tests.checkpoints.tiny import write_tiny_llama
from tests.registry.servers import StartRegistry
from tests.supplychain.sigstore_services import Sigstore

BIN = Path(sys.executable).parent
ALICE = "alice@example.com"
REFERENCE = Reference.parse("registry.example/acme/model:v1")
WORKFLOW = "https://ci.example/acme/build.yml@refs/heads/main"

RULES = """
version: 1
authorities:
  signer:
    keyless: {{{who}, issuer: "{issuer}", trust-root: root.json}}
rules:
  - {{name: everything, match: ["**"], require: {{any-of: [signer]}}{more}}}
{end}
"""


@pytest.fixture
def files(sigstore: Sigstore, tmp_path: Path) -> Path:
    """A folder with the trust root, and a trust config for each way to sign."""
    (tmp_path / "root.json").write_text(json.dumps(sigstore.trusted_root()))
    (tmp_path / "config.json").write_text(json.dumps(sigstore.trust_config()))
    (tmp_path / "config2.json").write_text(json.dumps(sigstore.trust_config(2, tsa=True)))
    (tmp_path / "config-untimed.json").write_text(json.dumps(sigstore.trust_config(2)))
    return tmp_path


@pytest.fixture
def rules(sigstore: Sigstore, files: Path) -> Callable[..., Policy]:
    def rules(who: str = f'identity: "{ALICE}"', *, issuer: str = "", more: str = "", end: str = "") -> Policy:
        path = files / "policy.yaml"
        path.write_text(RULES.format(who=who, issuer=issuer or sigstore.issuer.url, more=more, end=end))
        return Policy.load(path)

    return rules


@pytest.fixture
def packager(files: Path, repository: LayoutRepository) -> Callable[..., subprocess.CompletedProcess[str]]:
    def packager(command: str, *arguments: str, status: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        reference = f"oci:{repository.root}:v1"
        result = subprocess.run(
            [str(BIN / "packager"), command, reference, *arguments], cwd=files, capture_output=True, text=True,
            timeout=120, env={"PATH": "/usr/bin:/bin", "HOME": str(files), **env}, check=False,
        )  # fmt: skip
        assert result.returncode == status, result.stderr
        assert "Traceback" not in result.stderr, result.stderr
        return result

    return packager


@pytest.fixture
def repository(tmp_path: Path) -> LayoutRepository:
    return LayoutRepository(tmp_path / "layout")


def bundle_of(repository: LayoutRepository, subject: Descriptor) -> bytes:
    (referrer,) = repository.referrers(subject.digest)
    return repository.read_blob(Manifest.parse(repository.manifest(referrer.digest)[1]).layers[0])


Run = Callable[..., subprocess.CompletedProcess[str]]
Rules = Callable[..., Policy]


@pytest.mark.parametrize("config", ["config.json", "config2.json"])
def test_sign_and_verify(
    sigstore: Sigstore, packager: Run, rules: Rules, repository: LayoutRepository, subject: Descriptor, config: str
) -> None:
    token = sigstore.issuer.token(ALICE)
    result = packager("sign", "--keyless", "--trust-config", config, "--identity-token", token)
    assert result.stdout.strip().endswith(str(subject.digest))
    assert f"signed with the identity {ALICE} (by {sigstore.issuer.url})" in result.stderr
    decision = verify(repository, REFERENCE, subject, rules())
    assert decision.allowed and decision.code == "allowed", decision.reason
    assert decision.to_json()["signers"] == [{"name": "signer", "identity": ALICE, "issuer": sigstore.issuer.url}]
    assert ALICE in decision.trace[0].detail
    manifest = Manifest.parse(repository.manifest(repository.referrers(subject.digest)[0].digest)[1])
    assert manifest.annotations["dev.sigstore.bundle.predicateType"] == "https://sigstore.dev/cosign/sign/v1"


@pytest.mark.parametrize("config", ["config.json", "config2.json"])
def test_sigstore_python_accepts_it(
    sigstore: Sigstore, packager: Run, files: Path, repository: LayoutRepository, subject: Descriptor, config: str
) -> None:
    packager("sign", "--keyless", "--trust-config", config, SIGSTORE_ID_TOKEN=sigstore.issuer.token(ALICE))
    verifier = Verifier(trusted_root=TrustedRoot.from_file(str(files / "root.json")))
    who = policy.Identity(identity=ALICE, issuer=sigstore.issuer.url)
    kind, payload = verifier.verify_dsse(Bundle.from_json(bundle_of(repository, subject)), who)
    assert kind == "application/vnd.in-toto+json"
    assert json.loads(payload)["subject"] == [{"digest": {"sha256": subject.digest.hex}, "name": ""}]


@pytest.mark.peer
def test_npm_sigstore_accepts_it(
    sigstore: Sigstore, packager: Run, files: Path, modules: Path, repository: LayoutRepository, subject: Descriptor
) -> None:
    """Over Rekor's first API: this version of it takes the digest in an entry of the second for one of the payload."""
    packager("sign", "--keyless", "--trust-config", "config.json", SIGSTORE_ID_TOKEN=sigstore.issuer.token(ALICE))
    (files / "bundle.json").write_bytes(bundle_of(repository, subject))

    def node(identity: str, issuer: str) -> subprocess.CompletedProcess[str]:
        script = str(Path(__file__).with_name("verify_keyless.mjs"))
        command = ["node", script, str(modules), str(files / "bundle.json"), str(files / "root.json"), identity, issuer]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    good = node(ALICE, sigstore.issuer.url)
    assert good.returncode == 0, good.stderr
    assert json.loads(good.stdout)["subject"][0]["digest"] == {"sha256": subject.digest.hex}
    assert node("mallory@example.com", sigstore.issuer.url).returncode != 0


def test_the_credentials_of_a_ci_job(
    sigstore: Sigstore, packager: Run, rules: Rules, repository: LayoutRepository, subject: Descriptor
) -> None:
    """As GitHub Actions offers them: an address to ask for a token at, and a secret to ask with."""
    env = {
        "GITHUB_ACTIONS": "true",
        "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "request-token",
        "ACTIONS_ID_TOKEN_REQUEST_URL": f"{sigstore.url}/github?x=1",
    }
    packager("sign", "--keyless", "--trust-config", "config.json", **env)
    for who, allowed in (
        (f'identity: "{WORKFLOW}"', True),
        ('identity-glob: "https://ci.example/acme/*.yml@refs/heads/main"', True),
        ('identity-glob: "https://ci.example/*@refs/heads/main"', False),  # one * stops at a slash
        ('identity-glob: "https://ci.example/other/**"', False),
    ):
        assert verify(repository, REFERENCE, subject, rules(who)).allowed is allowed, who
    refused = packager("sign", "--keyless", "--trust-config", "config.json", status=2, GITHUB_ACTIONS="true")
    assert "the identity token cannot be used: GitHub: missing or insufficient" in refused.stderr


def test_an_attestation(
    sigstore: Sigstore, packager: Run, files: Path, rules: Rules, repository: LayoutRepository, subject: Descriptor
) -> None:
    (files / "scan.json").write_text('{"verdict": "pass"}')
    token = sigstore.issuer.token(ALICE)
    arguments = ("--keyless", "--trust-config", "config.json", "--identity-token", token)
    packager("attest", "--predicate", "scan.json", "--type", "scan", *arguments)
    more = ", attestations: [{type: scan, conditions: [{verdict: pass}]}]"
    assert verify(repository, REFERENCE, subject, rules(more=more)).code == "wrong-predicate"
    packager("sign", *arguments)
    assert verify(repository, REFERENCE, subject, rules(more=more)).allowed
    wrong = ", attestations: [{type: scan, conditions: [{verdict: fail}]}]"
    assert verify(repository, REFERENCE, subject, rules(more=wrong)).code == "attestation-condition"


def test_pack_signs_and_attests_in_one_go(
    sigstore: Sigstore, files: Path, rules: Rules, registry_server: StartRegistry
) -> None:
    """In a registry, as its referrers."""
    write_tiny_llama(files / "tiny")
    place = f"{registry_server(files / 'storage').host}/acme/tiny"
    command = ["pack", "tiny", f"{place}:v1", "--push", "--sign-keyless", "--trust-config", "config.json"]
    env = {"PATH": "/usr/bin:/bin", "HOME": str(files), "SIGSTORE_ID_TOKEN": sigstore.issuer.token(ALICE)}
    entries = len(sigstore.rekor.leaves)
    result = subprocess.run([str(BIN / "packager"), *command], cwd=files, env=env, capture_output=True, text=True,
                            timeout=200, check=False)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert len(sigstore.rekor.leaves) == entries + 4
    more = ", attestations: [slsaprovenance1, cyclonedx, {type: scan, which: every, conditions: [{verdict: pass}]}]"
    reference = Reference.parse(f"{place}:v1")
    repository = open_repository(reference)
    decision = verify(repository, reference, repository.resolve("v1"), rules(more=more + ", max-age: 1d"))
    assert decision.allowed, decision.reason


def test_who_does_not_match(
    sigstore: Sigstore, packager: Run, rules: Rules, repository: LayoutRepository, subject: Descriptor
) -> None:
    token = sigstore.issuer.token(ALICE)
    packager("sign", "--keyless", "--trust-config", "config.json", "--identity-token", token)
    for who, issuer in (
        ('identity: "bob@example.com"', ""),
        (f'identity: "{ALICE}"', "https://another.example"),
        ('identity: "alice@example.co"', ""),
        ('identity-glob: "*@example.org"', ""),
    ):
        decision = verify(repository, REFERENCE, subject, rules(who, issuer=issuer))
        assert (decision.allowed, decision.code) == (False, "unknown-signer")
        assert f"signed by {ALICE}" in decision.reason
    assert verify(repository, REFERENCE, subject, rules('identity-glob: "*@example.com"')).allowed


def test_a_revoked_identity(
    sigstore: Sigstore, packager: Run, rules: Rules, repository: LayoutRepository, subject: Descriptor
) -> None:
    token = sigstore.issuer.token(ALICE)
    packager("sign", "--keyless", "--trust-config", "config.json", "--identity-token", token)
    for who, code in (
        (f'identity: "{ALICE}"', "revoked-identity"),
        ('identity-glob: "alice@*"', "revoked-identity"),
        (f'identity: "{ALICE}", issuer: "https://another.example"', "allowed"),
        ('identity: "bob@example.com"', "allowed"),
    ):
        decision = verify(
            repository, REFERENCE, subject, rules(end=f"revoked: {{identities: [{{{who}, reason: left}}]}}")
        )
        assert decision.code == code, decision.reason
        assert code == "allowed" or "left" in decision.reason


def test_freshness_is_by_trusted_time(
    sigstore: Sigstore, packager: Run, rules: Rules, repository: LayoutRepository, subject: Descriptor
) -> None:
    payload = (
        f'{{"_type":"https://in-toto.io/Statement/v1","subject":[{{"digest":{{"sha256":"{subject.digest.hex}"}}}}],'
    )
    payload += '"predicateType":"https://sigstore.dev/cosign/sign/v1","predicate":{}}'
    sigstore.clock.offset = timedelta(days=-40)
    put(repository, subject, sigstore.bundle(payload.encode()))
    assert verify(repository, REFERENCE, subject, rules()).allowed
    assert verify(repository, REFERENCE, subject, rules(more=", max-age: 41d")).allowed
    decision = verify(repository, REFERENCE, subject, rules(more=", max-age: 39d"))
    assert (decision.code, "more than 39d ago" in decision.reason) == ("stale", True)
    sigstore.clock.offset = timedelta()
    put(repository, subject, sigstore.bundle(payload.encode()))
    assert verify(repository, REFERENCE, subject, rules(more=", max-age: 39d")).allowed


def put(repository: LayoutRepository, subject: Descriptor, bundle: dict[str, Any]) -> None:
    from artifact import mediatypes
    from supplychain.referrer import push_bytes

    layer = push_bytes(repository, json.dumps(bundle).encode(), mediatypes.SIGSTORE_BUNDLE)
    empty = push_bytes(repository, b"{}", mediatypes.EMPTY)
    manifest = Manifest(empty, (layer,), artifact_type=mediatypes.SIGSTORE_BUNDLE, subject=subject)
    repository.push_manifest(manifest.to_bytes(), manifest.media_type)


@pytest.mark.parametrize(
    ("token", "message", "status"),
    [
        (lambda s: "no token", "identity token cannot be used", 2),
        (lambda s: s.issuer.token(ALICE, lifetime=-10), "identity token cannot be used", 2),
        (lambda s: s.issuer.token(ALICE, audience="other"), "identity token cannot be used", 2),
        (lambda s: forged(s), "the certificate authority refused (status 400): the token is not good", 1),
        (lambda s: s.issuer.token(ALICE, iss="https://other.example"), "an issuer that is not configured", 1),
        (lambda s: "", "no identity token", 2),
    ],
)
def test_tokens_that_are_no_good(
    sigstore: Sigstore, packager: Run, repository: LayoutRepository, subject: Descriptor, token: Callable[..., str],
    message: str, status: int,
) -> None:  # fmt: skip
    stated = ["--identity-token", token(sigstore)] if token(sigstore) else []
    result = packager("sign", "--keyless", "--trust-config", "config.json", *stated, status=status)
    assert message in result.stderr
    assert not repository.referrers(subject.digest)


def forged(services: Sigstore) -> str:
    """Bob's token with Alice's name written into it."""
    head, claims, signature = services.issuer.token("bob@example.com").split(".")
    value = json.loads(base64.urlsafe_b64decode(claims + "=="))
    changed = base64.urlsafe_b64encode(json.dumps({**value, "sub": ALICE}).encode()).decode().rstrip("=")
    return f"{head}.{changed}.{signature}"


def test_what_is_not_usable_is_said(sigstore: Sigstore, packager: Run, files: Path, subject: Descriptor) -> None:
    token = ("--identity-token", sigstore.issuer.token(ALICE))
    assert "say who signs" in packager("sign", status=2).stderr
    assert "say who signs" in packager("sign", "--keyless", "--key", "x", status=2).stderr
    assert "is for --keyless" in packager("sign", "--key", "x", "--trust-config", "config.json", status=2).stderr
    wrong = packager("sign", "--keyless", "--trust-config", "root.json", *token, status=2)
    assert "root.json is no client trust config" in wrong.stderr
    # A log without times and nobody to stamp them: such a signature would never verify, so none is written.
    assert (
        "timestamp" in packager("sign", "--keyless", "--trust-config", "config-untimed.json", *token, status=1).stderr
    )
    config = json.loads((files / "config.json").read_text())
    config["signingConfig"]["caUrls"][0]["url"] = "http://127.0.0.1:9"
    (files / "gone.json").write_text(json.dumps(config))
    gone = packager("sign", "--keyless", "--trust-config", "gone.json", *token, status=1)
    assert "cannot be reached" in gone.stderr


def test_the_log_is_append_only(sigstore: Sigstore) -> None:
    """The fixture itself: each checkpoint's tree is the beginning of the next one's."""
    from artifact import merkle

    before = list(sigstore.rekor.leaves)
    for number in range(5):
        sigstore.rekor.add(b"entry %d" % number)
    after = sigstore.rekor.leaves
    proof = merkle.consistency_proof(after, len(before)) if before else []
    merkle.check_consistency(len(before), len(after), proof, merkle.root_hash(before), merkle.root_hash(after))
