"""Sigstore bundles, version 0.3. Source: sigstore/protobuf-specs, sigstore_bundle.proto.

Written with a public key's hint. Read strictly: one kind of key material and one DSSE envelope, no field unknown to
the specification. What only keyless signatures carry (certificate, log entries, timestamps) is kept as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from artifact.errors import Malformed
from artifact.manifest import canonical_json, load_json
from artifact.mediatypes import SIGSTORE_BUNDLE
from supplychain.dsse import Envelope, decode_base64, exact_object

MAX_BYTES = 4 * 1024 * 1024
"""Largest bundle that is read, in bytes."""

_MAX_HINT = 256
_MAX_LOG_ENTRIES = 32
_KEY_MATERIAL = {"publicKey", "certificate", "x509CertificateChain"}


@dataclass(frozen=True)
class Bundle:
    """An envelope with what is needed to verify it: the hint of a public key, or a certificate (DER).

    `raw` are the bytes it was read from.
    """

    envelope: Envelope
    hint: str | None = None
    certificate: bytes | None = None
    log_entries: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    timestamps: Mapping[str, Any] = field(default_factory=dict)
    raw: bytes = field(default=b"", compare=False, repr=False)

    @classmethod
    def parse(cls, raw: bytes) -> Bundle:
        """Read a bundle. Raises `Malformed`."""
        value = load_json(raw, "sigstore bundle", MAX_BYTES)
        if value.get("mediaType") != SIGSTORE_BUNDLE:
            raise Malformed(f"unsupported bundle version: mediaType is {str(value.get('mediaType'))[:80]!r}")
        exact_object(value, "sigstore bundle", {"mediaType", "verificationMaterial", "dsseEnvelope"})
        known = _KEY_MATERIAL | {"tlogEntries", "timestampVerificationData"}
        material = exact_object(value.get("verificationMaterial"), "verificationMaterial", known)
        if len(_KEY_MATERIAL & material.keys()) != 1 or "x509CertificateChain" in material:
            raise Malformed("sigstore bundle: need either publicKey or certificate")
        entries = material.get("tlogEntries", [])
        if not isinstance(entries, list) or len(entries) > _MAX_LOG_ENTRIES:
            raise Malformed(f"sigstore bundle: tlogEntries must be a list of at most {_MAX_LOG_ENTRIES}")
        if not all(isinstance(entry, dict) for entry in entries):
            raise Malformed("sigstore bundle: every tlogEntry must be an object")
        timestamps = material.get("timestampVerificationData", {})
        if not isinstance(timestamps, dict):
            raise Malformed("sigstore bundle: timestampVerificationData must be an object")
        return cls(
            envelope=Envelope.from_json(value.get("dsseEnvelope")),
            hint=_hint(material["publicKey"]) if "publicKey" in material else None,
            certificate=_certificate(material["certificate"]) if "certificate" in material else None,
            log_entries=tuple(entries),
            timestamps=timestamps,
            raw=raw,
        )

    def to_bytes(self) -> bytes:
        """The canonical bytes of a public-key bundle."""
        if self.hint is None:
            raise Malformed("only public-key bundles can be written")
        return canonical_json(
            {
                "mediaType": SIGSTORE_BUNDLE,
                "verificationMaterial": {"publicKey": {"hint": self.hint}},
                "dsseEnvelope": self.envelope.to_json(),
            }
        )


def _hint(value: Any) -> str:
    hint = exact_object(value, "publicKey", {"hint"}).get("hint", "")
    if not isinstance(hint, str) or len(hint) > _MAX_HINT:
        raise Malformed("sigstore bundle: the key hint must be short text")
    return hint


def _certificate(value: Any) -> bytes:
    return decode_base64(exact_object(value, "certificate", {"rawBytes"}).get("rawBytes"), "certificate")
