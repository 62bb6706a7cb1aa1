"""Predicate types: which kind of statement an attestation makes, and the short names people write for them."""

from __future__ import annotations

import re

from artifact.errors import InvalidInput
from supplychain.statement import COSIGN_SIGN, OMS_SIGN

PROVENANCE = "https://slsa.dev/provenance/v1"
"""How an artifact was made, and from what (SLSA, provenance v1)."""

CYCLONEDX = "https://cyclonedx.org/bom"
"""What an artifact consists of: the predicate is a CycloneDX document."""

SPDX = "https://spdx.dev/Document"
"""What an artifact consists of: the predicate is an SPDX document."""

SCAN = "https://stowage.dev/attestations/scan/v1"
"""What a scan of the artifact found (`supplychain.scan`)."""

SHORT_NAMES = {"slsaprovenance1": PROVENANCE, "cyclonedx": CYCLONEDX, "spdx": SPDX, "scan": SCAN}
"""Names for the types above; cosign knows the first three by the same ones."""

SIGNATURES = (COSIGN_SIGN, OMS_SIGN)
"""Predicate types of statements that are signatures. No attestation may have one."""

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+")
MAX_LENGTH = 256
"""Longest URI that is accepted, in characters."""


def predicate_type(text: str) -> str:
    """The predicate type a user means: a short name, or an absolute URI (RFC 3986). Raises `InvalidInput`."""
    if text in SHORT_NAMES:
        return SHORT_NAMES[text]
    if len(text) > MAX_LENGTH or not _URI.fullmatch(text):
        known = ", ".join(SHORT_NAMES)
        raise InvalidInput(f"not a predicate type: {text[:80]!r} (want an absolute URI, or one of {known})")
    if text in SIGNATURES:
        raise InvalidInput(f"{text} is the type of a signature, not of an attestation")
    return text


def check_uri(text: str, what: str) -> str:
    """`text` if it is an absolute URI; `what` names it in the error. Raises `InvalidInput`."""
    if len(text) > MAX_LENGTH or not _URI.fullmatch(text):
        raise InvalidInput(f"{what} is not an absolute URI: {text[:80]!r}")
    return text


def short_name(type_: str) -> str:
    """The shortest way to write a predicate type, for messages."""
    return next((name for name, known in SHORT_NAMES.items() if known == type_), type_)
