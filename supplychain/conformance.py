"""``python -m supplychain.conformance verify-bundle``: one bundle against one trust root and one signer.

The question that sigstore's public conformance suite asks of every client, in the words of its protocol
(sigstore/sigstore-conformance, docs/cli_protocol.md). Unlike the policies, which are about artifacts in registries, it
is also about files: besides statements it reads signatures of plain bytes, and bundles of the older versions. Exit
status 0 if the bundle verifies, 1 if not, with the reason on standard error.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

from artifact.digest import Digest
from artifact.errors import Malformed, Refused, StowageError
from artifact.manifest import load_json
from supplychain import bundle
from supplychain.dsse import Envelope, decode_base64
from supplychain.identity import NotCertified, Sealed, certify
from supplychain.keys import PublicKey
from supplychain.logentry import Signed, logged_at
from supplychain.statement import Statement
from supplychain.timestamp import stamped_at
from supplychain.trustroot import TrustRoot

_VERSIONS = re.compile(r"application/vnd\.dev\.sigstore\.bundle(\.v0\.3\+json|\+json;version=0\.[123])")


def verify_bundle(
    raw: bytes, artifact: Digest, root: TrustRoot, *, key: PublicKey | None = None, name: str = "", issuer: str = ""
) -> None:
    """Check that the bundle `raw` is a signature of `artifact`, or a statement about it, by `key`, or without one by
    `name`, for whom `issuer` vouches, under `root`. Raises `Malformed`, `Refused`."""
    value = load_json(raw, "bundle", bundle.MAX_BYTES)
    if not _VERSIONS.fullmatch(str(value.get("mediaType"))):
        raise Malformed(f"unsupported bundle version: mediaType is {str(value.get('mediaType'))[:80]!r}")
    material = _object(value, "verificationMaterial")
    entries, timestamps = material.get("tlogEntries", []), _object(material, "timestampVerificationData")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise Malformed("tlogEntries must be a list of objects")
    if key is not None:
        if "publicKey" not in material:
            raise Refused("the bundle is not signed with a key")
        signed = _signed(value, artifact, key.spki)
        stamped = stamped_at(timestamps, signed.signature, root)
        for entry in entries:
            logged_at(entry, signed, root, stamped)
        if not key.verify_digest(signed.signature, bytes.fromhex(signed.data_sha256)):
            raise Refused("the signature is not by this key")
        return
    certificate = _certificate(material)
    sealed = Sealed(_signed(value, artifact, certificate), certificate, entries, timestamps, raw)
    try:
        found = certify(sealed, (root,)).identity
    except NotCertified as error:
        raise Refused(f"{error.code}: {error}") from None
    if found.person != (name, issuer):
        raise Refused(f"it is by {found}, not by {name}")


def _signed(value: dict[str, Any], artifact: Digest, signer: bytes) -> Signed:
    """What the bundle says was signed, if that is about `artifact`. Raises `Malformed`, `Refused`."""
    if ("messageSignature" in value) == ("dsseEnvelope" in value):
        raise Malformed("a bundle has either a message signature or a DSSE envelope")
    if "dsseEnvelope" in value:
        envelope = Envelope.from_json(value["dsseEnvelope"])
        if len(envelope.signatures) != 1:
            raise Malformed("a DSSE envelope has exactly one signature")
        if not Statement.parse(envelope.payload).names(artifact):
            raise Refused("the statement is about another artifact")
        return Signed.of(envelope, signer)
    message = _object(value, "messageSignature")
    stated = _object(message, "messageDigest")
    if stated and decode_base64(stated.get("digest"), "the message's digest").hex() != artifact.hex:
        raise Refused("the signature is of another message")
    return Signed(decode_base64(message.get("signature"), "the signature"), signer, artifact.hex)


def _certificate(material: dict[str, Any]) -> bytes:
    """The signer's own certificate. Raises `Malformed`."""
    if "certificate" in material:
        return decode_base64(_object(material, "certificate").get("rawBytes"), "the certificate")
    chain = _object(material, "x509CertificateChain").get("certificates")
    if not isinstance(chain, list) or not chain or not isinstance(chain[0], dict):
        raise Malformed("the bundle has no certificate")
    return decode_base64(chain[0].get("rawBytes"), "the certificate")


def _object(value: dict[str, Any], name: str) -> dict[str, Any]:
    found = value.get(name, {})
    if not isinstance(found, dict):
        raise Malformed(f"{name} must be an object")
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m supplychain.conformance")
    parser.add_argument("command", choices=["verify-bundle"])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--certificate-identity", default="")
    parser.add_argument("--certificate-oidc-issuer", default="")
    parser.add_argument("--key")
    parser.add_argument("--trusted-root", type=Path)
    parser.add_argument("artifact", help="a file, or sha256:HEX")
    return parser.parse_args()


def _digest(artifact: str) -> Digest:
    if re.fullmatch(r"sha256:[0-9a-f]{64}", artifact) and not Path(artifact).exists():
        return Digest.parse(artifact)
    with Path(artifact).open("rb") as stream:
        return Digest("sha256", hashlib.file_digest(stream, "sha256").hexdigest())


def _root(path: Path | None) -> TrustRoot:
    """The trust root in a file; without one that of the public instance, as sigstore's library brings it along."""
    if path is not None:
        return TrustRoot.load(path)
    from sigstore.models import ClientTrustConfig

    return TrustRoot.of(ClientTrustConfig.production(offline=True))


def main() -> NoReturn:
    """Answer the question, once."""
    stated = _arguments()
    if bool(stated.key) == bool(stated.certificate_identity and stated.certificate_oidc_issuer):
        sys.exit("give either --key, or --certificate-identity and --certificate-oidc-issuer")
    try:
        verify_bundle(
            stated.bundle.read_bytes(),
            _digest(stated.artifact),
            _root(stated.trusted_root),
            key=PublicKey.load(stated.key) if stated.key else None,
            name=stated.certificate_identity,
            issuer=stated.certificate_oidc_issuer,
        )
    except (StowageError, OSError) as error:
        sys.exit(f"error: {error}")
    sys.exit(0)


if __name__ == "__main__":
    main()
