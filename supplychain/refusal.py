"""Why a trust decision went against an artifact: the reason codes, and the error that carries one."""

from __future__ import annotations

from enum import StrEnum

from artifact.errors import Refused


class Reason(StrEnum):
    """Stable reason codes. Scripts may rely on them; `docs/supply-chain.md` explains each."""

    ALLOWED = "allowed"
    VALID = "valid-signature"
    NO_RULE = "no-rule"
    REVOKED_DIGEST = "revoked-digest"
    REVOKED_KEY = "revoked-key"
    UNSIGNED = "unsigned"
    INSUFFICIENT = "insufficient-signatures"
    UNKNOWN_SIGNER = "unknown-signer"
    INVALID_SIGNATURE = "invalid-signature"
    UNTRUSTED_CERTIFICATE = "untrusted-certificate"
    EXPIRED_CERTIFICATE = "expired-certificate"
    NO_TIME = "no-trusted-time"
    LOG_ENTRY = "log-entry"
    STALE = "stale"
    REVOKED_IDENTITY = "revoked-identity"
    WRONG_SUBJECT = "wrong-subject"
    WRONG_PREDICATE = "wrong-predicate"
    WRONG_PAYLOAD_TYPE = "wrong-payload-type"
    SIGNATURE_COUNT = "signature-count"
    MALFORMED = "malformed-signature"
    UNREADABLE = "unreadable-signature"
    OVERSIZED = "oversized-signature"
    TOO_MANY = "too-many-signatures"
    UNSUPPORTED = "unsupported-signature"
    VALID_ATTESTATION = "valid-attestation"
    MISSING_ATTESTATION = "missing-attestation"
    UNTRUSTED_ATTESTATION = "untrusted-attestation"
    ATTESTATION_CONDITION = "attestation-condition"
    NOT_GRANTED = "not-granted"
    LAYOUT_NOT_ALLOWED = "layout-not-allowed"
    ENGINE_NOT_ALLOWED = "engine-not-allowed"
    FLAG_NOT_ALLOWED = "flag-not-allowed"


class PolicyRefused(Refused):
    """A policy does not allow the artifact. `code` is a `Reason`."""

    def __init__(self, message: str, code: Reason) -> None:
        super().__init__(message)
        self.code = code.value
