"""Trust roots: the certificate authorities, logs and timestamp authorities that keyless signatures rest on.

Source: sigstore/protobuf-specs, sigstore_trustroot.proto. A trust root is a file of the user's, so a bad one is
`InvalidInput`. Nothing here reads a clock or asks a server: what a root says is judged at the time of the signature.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.x509 import Certificate, load_der_x509_certificate

from artifact.errors import InvalidInput, Malformed
from artifact.manifest import canonical_json, load_json
from supplychain.dsse import decode_base64

if TYPE_CHECKING:  # takes half a second to import, and only keyless signatures need it
    from sigstore.models import ClientTrustConfig
    from sigstore.verify import Verifier

MAX_BYTES = 1024 * 1024
"""Largest trust root that is read, in bytes."""

_TRUSTED_ROOT = "application/vnd.dev.sigstore.trustedroot"
_CLIENT_CONFIG = "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json"
_CAS = "certificateAuthorities"
_INLINE = "{"


@dataclass(frozen=True)
class Period:
    """When something counts; without an end, from `start` on. Both ends are inside."""

    start: datetime
    end: datetime | None = None

    def __contains__(self, time: datetime) -> bool:
        return self.start <= time and (self.end is None or time <= self.end)


@dataclass(frozen=True)
class Log:
    """A transparency log: its identifier, its public key (DER) and when the key counts."""

    id: bytes
    spki: bytes
    valid: Period

    @cached_property
    def _key(self) -> Any:
        return serialization.load_der_public_key(self.spki)

    def verify(self, signature: bytes, data: bytes) -> bool:
        """Whether `signature` is the log's over `data`."""
        key = self._key
        try:
            if isinstance(key, ec.EllipticCurvePublicKey):
                algorithm: hashes.HashAlgorithm = {384: hashes.SHA384(), 521: hashes.SHA512()}.get(
                    key.curve.key_size, hashes.SHA256()
                )
                key.verify(signature, data, ec.ECDSA(algorithm))
            elif isinstance(key, ed25519.Ed25519PublicKey):
                key.verify(signature, data)
            elif isinstance(key, rsa.RSAPublicKey):
                key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
            else:
                return False
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class TimestampAuthority:
    """Who signs RFC 3161 timestamps: its certificates, its own first and the root last, and when they count."""

    certificates: tuple[Certificate, ...]
    valid: Period


@dataclass(frozen=True)
class TrustRoot:
    """A trust root, identified by its content. `document` is its canonical JSON."""

    document: bytes
    logs: Mapping[bytes, Log] = field(compare=False, repr=False)
    timestamp_authorities: Sequence[TimestampAuthority] = field(compare=False, repr=False)

    @classmethod
    def load(cls, path: Path) -> TrustRoot:
        """Read the trust root in a file. Raises `InvalidInput`."""
        try:
            with path.open("rb") as stream:
                raw = stream.read(MAX_BYTES + 1)
        except OSError as error:
            raise InvalidInput(f"cannot read trust root {path}: {error.strerror}") from None
        return cls.parse(raw, str(path))

    @classmethod
    def parse(cls, raw: bytes, source: str) -> TrustRoot:
        """Read a ``trusted_root.json``, or the trusted root in a client trust config. Raises `InvalidInput`."""
        try:
            value = load_json(raw, source, MAX_BYTES)
            if value.get("mediaType") == _CLIENT_CONFIG:
                value = value.get("trustedRoot") or {}
            if not str(value.get("mediaType")).startswith(_TRUSTED_ROOT):
                raise Malformed(f"its mediaType is {str(value.get('mediaType'))[:80]!r}, not {_TRUSTED_ROOT}")
            root = cls(
                canonical_json(value),
                {log.id: log for log in map(_log, value.get("tlogs", ()))},
                tuple(map(_timestamp_authority, value.get("timestampAuthorities", ()))),
            )
            root.verifier, root.authorities  # noqa: B018  read once more by who will verify with it: a bad file is refused here
        except InvalidInput:
            raise
        except Exception as error:  # whatever two strict readers make of a file that is no trust root
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InvalidInput(f"{source} is no trust root that can be used: {reason[:200]}") from None
        return root

    @classmethod
    def of(cls, config: ClientTrustConfig) -> TrustRoot:
        """The trust root in a client trust config that sigstore's library has read. Raises `InvalidInput`."""
        return cls.parse(config._inner.trusted_root.to_json().encode(), "the trust root")

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of the canonical document."""
        return hashlib.sha256(self.document).hexdigest()

    @cached_property
    def authorities(self) -> tuple[Certificate, ...]:
        """The certificates of the certificate authorities, roots and those in between."""
        chains = (authority["certChain"]["certificates"] for authority in load_json(self.document, "trust root")[_CAS])
        return tuple(
            load_der_x509_certificate(decode_base64(item["rawBytes"], "")) for chain in chains for item in chain
        )

    @cached_property
    def verifier(self) -> Verifier:
        """sigstore's verifier with this root."""
        from sigstore.models import TrustedRoot
        from sigstore.verify import Verifier
        from sigstore_models.trustroot.v1 import TrustedRoot as Document

        return Verifier(trusted_root=TrustedRoot(Document.from_json(self.document)))


def is_inline(text: str) -> bool:
    """Whether a trust root is written out where its path could stand."""
    return text.lstrip().startswith(_INLINE)


def _log(value: Mapping[str, Any]) -> Log:
    key = value["publicKey"]
    spki = decode_base64(key["rawBytes"], "the key of a log")
    try:
        serialization.load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm):
        raise Malformed("the key of a log cannot be read") from None
    return Log(decode_base64(value["logId"]["keyId"], "the identifier of a log"), spki, _period(key.get("validFor")))


def _timestamp_authority(value: Mapping[str, Any]) -> TimestampAuthority:
    chain = [decode_base64(item["rawBytes"], "a certificate") for item in value["certChain"]["certificates"]]
    return TimestampAuthority(tuple(map(load_der_x509_certificate, chain)), _period(value.get("validFor")))


def _period(value: Any) -> Period:
    if not isinstance(value, dict) or "start" not in value:
        raise Malformed("a period of validity has no start")
    end = value.get("end")
    return Period(_time(value["start"]), _time(end) if end else None)


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise Malformed(f"the time {text!r} has no zone")
    return time
