"""RFC 3161 timestamps: when a timestamp authority of a trust root saw a signature."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from artifact.errors import Malformed
from supplychain.dsse import decode_base64, exact_object
from supplychain.trustroot import TimestampAuthority, TrustRoot

MAX_TIMESTAMPS = 8
"""Most timestamps of one signature that are looked at."""


def stamped_at(timestamps: Mapping[str, Any], signature: bytes, root: TrustRoot) -> list[datetime]:
    """When authorities of `root` saw `signature`, by a bundle's `timestamps`; one by another authority, or over
    something else, is passed over. Raises `Malformed` if one is no timestamp at all."""
    listed = exact_object(timestamps, "timestampVerificationData", {"rfc3161Timestamps"}).get("rfc3161Timestamps", [])
    if not isinstance(listed, list) or len(listed) > MAX_TIMESTAMPS:
        raise Malformed(f"rfc3161Timestamps must be a list of at most {MAX_TIMESTAMPS}")
    times = [_stamped_at(_token(item), signature, root) for item in listed]
    return [time for time in times if time is not None]


def _token(value: Any) -> bytes:
    return decode_base64(exact_object(value, "timestamp", {"signedTimestamp"}).get("signedTimestamp"), "timestamp")


def _stamped_at(token: bytes, signature: bytes, root: TrustRoot) -> datetime | None:
    from rfc3161_client import decode_timestamp_response  # comes with sigstore, and as rarely needed

    try:
        response = decode_timestamp_response(token)
        time: datetime = response.tst_info.gen_time
    except ValueError:
        raise Malformed("a timestamp is no RFC 3161 response") from None
    seen = (authority for authority in root.timestamp_authorities if time in authority.valid)
    return time if any(_is_by(authority, response, signature) for authority in seen) else None


def _is_by(authority: TimestampAuthority, response: Any, signature: bytes) -> bool:
    from rfc3161_client import VerificationError, VerifierBuilder

    if len(authority.certificates) < 2:
        return False
    own, *between, root = authority.certificates
    builder = VerifierBuilder(tsa_certificate=own, intermediates=list(between), roots=[root])
    try:
        return builder.build().verify_message(response, signature)
    except (VerificationError, ValueError):
        return False
