"""in-toto statements: what is said (the predicate) about what (the subjects). Source: in-toto attestation, v1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from artifact.digest import Digest
from artifact.errors import Malformed
from artifact.manifest import canonical_json, load_json

TYPE = "https://in-toto.io/Statement/v1"

COSIGN_SIGN = "https://sigstore.dev/cosign/sign/v1"
"""Predicate type of a statement that is a signature and nothing else."""

OMS_SIGN = "https://model_signing/signature/v1.0"
"""Predicate type of OpenSSF model-signing; recognised, not judged."""

MAX_BYTES = 4 * 1024 * 1024
_MAX_SUBJECTS = 4096


@dataclass(frozen=True)
class Statement:
    """One statement. A subject is a map from digest algorithm to lower-case hexadecimal."""

    subjects: Sequence[Mapping[str, str]]
    predicate_type: str
    predicate: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def about(cls, digest: Digest, predicate_type: str, predicate: Mapping[str, Any] | None = None) -> Statement:
        """The statement that says `predicate` of the manifest `digest`."""
        return cls(({digest.algorithm: digest.hex},), predicate_type, predicate or {})

    @classmethod
    def parse(cls, raw: bytes) -> Statement:
        """Read a statement. Raises `Malformed`."""
        value = load_json(raw, "in-toto statement", MAX_BYTES)
        if value.get("_type") != TYPE:
            raise Malformed(f"not an in-toto v1 statement: _type is {str(value.get('_type'))[:80]!r}")
        predicate_type, predicate = value.get("predicateType"), value.get("predicate", {})
        if not isinstance(predicate_type, str) or not predicate_type:
            raise Malformed("in-toto statement: predicateType must be text")
        if not isinstance(predicate, dict):
            raise Malformed("in-toto statement: predicate must be an object")
        subjects = value.get("subject")
        if not isinstance(subjects, list) or not 0 < len(subjects) <= _MAX_SUBJECTS:
            raise Malformed("in-toto statement: subject must be a list that is not empty")
        return cls(tuple(_digests(item) for item in subjects), predicate_type, predicate)

    def to_bytes(self) -> bytes:
        """The statement's canonical bytes."""
        return canonical_json(
            {
                "_type": TYPE,
                "subject": [{"digest": dict(item)} for item in self.subjects],
                "predicateType": self.predicate_type,
                "predicate": dict(self.predicate),
            }
        )

    def names(self, digest: Digest) -> bool:
        """Whether `digest` is one of the subjects."""
        return any(item.get(digest.algorithm) == digest.hex for item in self.subjects)


def _digests(value: Any) -> dict[str, str]:
    digests = value.get("digest") if isinstance(value, dict) else None
    if not isinstance(digests, dict) or not digests or not all(isinstance(item, str) for item in digests.values()):
        raise Malformed("in-toto statement: every subject needs digests")
    return digests
