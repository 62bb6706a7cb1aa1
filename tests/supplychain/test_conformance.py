"""The answers to sigstore's conformance protocol, and its public vectors where a copy of them is.

The vectors are another project's and are not kept here. Clone https://github.com/sigstore/sigstore-conformance and name
the folder: STOWAGE_SIGSTORE_CONFORMANCE=…/sigstore-conformance. Each vector is a bundle that has to verify or, if its
name ends in ``_fail``, must not.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sigstore
from sigstore.models import ClientTrustConfig
from sigstore.oidc import IdentityToken
from sigstore.sign import SigningContext

from artifact.digest import Digest
from artifact.errors import Refused, StowageError
from supplychain.conformance import verify_bundle
from supplychain.keys import PrivateKey, PublicKey
from supplychain.trustroot import TrustRoot
from tests.supplychain.sigstore_services import Sigstore

PLACE = os.environ.get("STOWAGE_SIGSTORE_CONFORMANCE", str(Path(__file__).parents[2] / ".cache/sigstore-conformance"))
VECTORS = sorted(path.parent for path in Path(PLACE).glob("test/assets/bundle-verify/*/bundle.sigstore.json"))

NAME = (
    "https://github.com/sigstore-conformance/extremely-dangerous-public-oidc-beacon/.github/workflows/"
    "extremely-dangerous-oidc-beacon.yml@refs/heads/main"
)
ISSUER = "https://token.actions.githubusercontent.com"
PUBLIC_ROOT = Path(sigstore.__file__).parent / "_store/https%3A%2F%2Ftuf-repo-cdn.sigstore.dev/trusted_root.json"

LIMITS = {
    "intoto-with-custom-trust-root": "log entries of the older kind intoto are not read",
    "trust-root-tsa-validity-end-inclusive": "sigstore's library takes the end of the period to be outside it",
}
"""Vectors that should verify and do not; both are refused, which is the safe side."""


def verdict(vector: Path) -> str | None:
    """Why the bundle of `vector` does not verify; None if it does."""

    def text(name: str, default: str) -> str:
        return (vector / name).read_text().strip() if (vector / name).exists() else default

    artifact, root, key = vector / "artifact", vector / "trusted_root.json", vector / "key.pub"
    content = (artifact if artifact.exists() else vector.parent / "a.txt").read_bytes()
    try:
        verify_bundle(
            (vector / "bundle.sigstore.json").read_bytes(),
            Digest.of(content),
            TrustRoot.load(root if root.exists() else PUBLIC_ROOT),
            key=PublicKey.load(str(key)) if key.exists() else None,
            name=text("identity", NAME),
            issuer=text("issuer", ISSUER),
        )
    except StowageError as error:
        return str(error)
    return None


@pytest.mark.peer
@pytest.mark.skipif(not VECTORS, reason=f"no conformance vectors in {PLACE} (STOWAGE_SIGSTORE_CONFORMANCE)")
@pytest.mark.parametrize("vector", VECTORS, ids=lambda path: str(path.name))
def test_vector(vector: Path) -> None:
    why = verdict(vector)
    if vector.name in LIMITS:
        assert why is not None, f"{vector.name} verifies now: take it off the list"
    elif vector.name.endswith("_fail"):
        assert why is not None
    else:
        assert why is None, why


@pytest.mark.parametrize(("rekor", "tsa"), [(1, False), (2, True)])
def test_a_signature_of_a_file(sigstore: Sigstore, tmp_path: Path, rekor: int, tsa: bool) -> None:
    """As sigstore-python makes it, asked about as the suite asks."""
    context = SigningContext.from_trust_config(
        ClientTrustConfig.from_json(json.dumps(sigstore.trust_config(rekor, tsa=tsa)))
    )
    with context.signer(IdentityToken(sigstore.issuer.token("alice@example.com"))) as signer:
        (tmp_path / "bundle.json").write_text(signer.sign_artifact(b"content").to_json())
    (tmp_path / "root.json").write_text(json.dumps(sigstore.trusted_root()))
    (tmp_path / "file").write_bytes(b"content")

    def ask(artifact: str, name: str = "alice@example.com") -> tuple[int, str]:
        command = [sys.executable, "-m", "supplychain.conformance", "verify-bundle", "--bundle", "bundle.json"]
        command += ["--certificate-identity", name, "--certificate-oidc-issuer", sigstore.issuer.url]
        command += ["--trusted-root", "root.json", artifact]
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        result = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False
        )  # fmt: skip
        return result.returncode, result.stderr

    assert ask("file") == (0, "")
    assert ask(str(Digest.of(b"content")))[0] == 0
    assert ask("file", "mallory@example.com")[0] == 1
    assert "another message" in ask(str(Digest.of(b"other")))[1]


def test_a_signature_of_a_file_by_a_key(sigstore: Sigstore) -> None:
    key, other, root = PrivateKey.new(), PrivateKey.new(), json.dumps(sigstore.trusted_root()).encode()

    def bundle(**more: object) -> bytes:
        message = {"signature": base64.b64encode(key.sign(b"content")).decode()}
        material = {"publicKey": {"hint": ""}, **more}
        kind = "application/vnd.dev.sigstore.bundle.v0.3+json"
        return json.dumps(
            {"mediaType": kind, "verificationMaterial": material, "messageSignature": message}
        ).encode()  # fmt: skip

    trusted = TrustRoot.parse(root, "root.json")
    verify_bundle(bundle(), Digest.of(b"content"), trusted, key=key.public)
    for artifact, by in ((b"other", key), (b"content", other)):
        with pytest.raises(Refused):
            verify_bundle(bundle(), Digest.of(artifact), trusted, key=by.public)
    entry = sigstore.bundle(b"{}")["verificationMaterial"]["tlogEntries"]
    with pytest.raises(StowageError, match="about another"):  # present, it has to be about this very signature
        verify_bundle(bundle(tlogEntries=entry), Digest.of(b"content"), trusted, key=key.public)
