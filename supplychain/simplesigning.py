"""The payload of cosign's older signatures ("simple signing"). Source: containers/image, containers-signature.5."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from artifact.digest import Digest
from artifact.errors import InvalidInput, Malformed
from artifact.manifest import canonical_json, load_json

TYPE = "cosign container image signature"

SIGNATURE = "dev.cosignproject.cosign/signature"
"""Layer annotation: base64 of the signature over the layer's bytes."""

CERTIFICATE = "dev.sigstore.cosign/certificate"
"""Layer annotation that marks a keyless signature."""

MAX_BYTES = 64 * 1024
"""Largest payload that is read, in bytes."""


@dataclass(frozen=True)
class SimpleSigning:
    """Which manifest was signed, and where it was then.

    `docker_reference` is informative: an artifact may be copied with its signatures, so it is bound to no place.
    """

    digest: Digest
    docker_reference: str

    @classmethod
    def parse(cls, raw: bytes) -> SimpleSigning:
        """Read a payload. Raises `Malformed`."""
        value = load_json(raw, "signature payload", MAX_BYTES)
        critical = _object(value, "critical")
        if critical.get("type") != TYPE:
            raise Malformed(f"signature payload has another type: {str(critical.get('type'))[:80]!r}")
        digest = _object(critical, "image").get("docker-manifest-digest")
        reference = _object(critical, "identity").get("docker-reference")
        if not isinstance(digest, str) or not isinstance(reference, str):
            raise Malformed("signature payload needs docker-manifest-digest and docker-reference")
        try:
            return cls(Digest.parse(digest), reference)
        except InvalidInput as error:
            raise Malformed(f"signature payload: {error}") from None

    def to_bytes(self) -> bytes:
        """The payload's canonical bytes."""
        critical = {
            "identity": {"docker-reference": self.docker_reference},
            "image": {"docker-manifest-digest": str(self.digest)},
            "type": TYPE,
        }
        return canonical_json({"critical": critical, "optional": None})


def _object(value: dict[str, Any], key: str) -> dict[str, Any]:
    inner = value.get(key)
    if not isinstance(inner, dict):
        raise Malformed(f"signature payload: {key} must be an object")
    return inner
