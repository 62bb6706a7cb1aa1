"""DSSE envelopes: a payload, its type, and signatures over both. Source: secure-systems-lab/dsse, v1.0.2."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from artifact.errors import Malformed

MAX_SIGNATURES = 16
"""Most signatures an envelope may list before it is refused unread."""

_TYPE = re.compile(r"[!-~]{1,256}")


def pae(payload_type: str, payload: bytes) -> bytes:
    """The bytes a DSSE signature is made over (protocol.md, "Pre-Authentication Encoding")."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


@dataclass(frozen=True)
class Envelope:
    """A payload with its type and signatures. That there is exactly one signature is for the verifier to require."""

    payload: bytes
    payload_type: str
    signatures: Sequence[bytes]

    @classmethod
    def from_json(cls, value: Any) -> Envelope:
        """Read an envelope from parsed JSON. Raises `Malformed`."""
        fields = exact_object(value, "DSSE envelope", {"payload", "payloadType", "signatures"})
        payload_type, signatures = fields.get("payloadType"), fields.get("signatures")
        if not isinstance(payload_type, str) or not _TYPE.fullmatch(payload_type):
            raise Malformed("DSSE envelope: payloadType must be a media type")
        if not isinstance(signatures, list) or len(signatures) > MAX_SIGNATURES:
            raise Malformed(f"DSSE envelope: signatures must be a list of at most {MAX_SIGNATURES}")
        return cls(
            payload=decode_base64(fields.get("payload"), "DSSE payload"),
            payload_type=payload_type,
            signatures=tuple(_signature(item) for item in signatures),
        )

    def to_json(self) -> dict[str, Any]:
        """The envelope as JSON."""
        return {
            "payload": base64.b64encode(self.payload).decode(),
            "payloadType": self.payload_type,
            "signatures": [{"sig": base64.b64encode(item).decode()} for item in self.signatures],
        }

    @property
    def signed_bytes(self) -> bytes:
        """What the signatures are over."""
        return pae(self.payload_type, self.payload)


def decode_base64(value: Any, what: str) -> bytes:
    """Strict base64, standard or URL-safe alphabet, padded. Raises `Malformed`."""
    if not isinstance(value, str):
        raise Malformed(f"{what} must be base64 text")
    altchars = b"-_" if "-" in value or "_" in value else None
    try:
        return base64.b64decode(value, altchars, validate=True)
    except (binascii.Error, ValueError):
        raise Malformed(f"{what} is not base64") from None


def exact_object(value: Any, what: str, known: set[str]) -> dict[str, Any]:
    """`value` if it is a JSON object with no other keys than `known`. Raises `Malformed`."""
    if not isinstance(value, dict):
        raise Malformed(f"{what} must be a JSON object")
    extra = value.keys() - known
    if extra:
        raise Malformed(f"{what} has an unknown field {min(extra)[:40]!r}")
    return value


def _signature(value: Any) -> bytes:
    fields = exact_object(value, "DSSE signature", {"sig", "keyid"})
    if not isinstance(fields.get("keyid", ""), str):
        raise Malformed("DSSE signature: keyid must be text")
    signature = decode_base64(fields.get("sig"), "DSSE signature")
    if not signature:
        raise Malformed("DSSE signature is empty")
    return signature
