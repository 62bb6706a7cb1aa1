"""What an audit says about one artifact.

`Record.to_json` is the output other programs read; `docs/audit.md` documents its fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import StowageError
from supplychain.decision import Decision


class Status(StrEnum):
    """How an artifact is signed, whatever the policy requires of it. The best signature counts.

    ``signed`` by someone the policy names; by a ``revoked`` key or identity, or the artifact itself is; with signatures
    that are ``invalid``, or have ``expired``; by nobody the policy names (``unknown``); only in a form that is not
    judged (``unsupported``); not at all (``unsigned``). ``broken``: the artifact or its repository cannot be read.
    """

    SIGNED = "signed"
    REVOKED = "revoked"
    INVALID = "invalid"
    EXPIRED = "expired"
    UNKNOWN = "unknown"
    UNSUPPORTED = "unsupported"
    UNSIGNED = "unsigned"
    BROKEN = "broken"


@dataclass(frozen=True)
class Signature:
    """One signature that was found: its `form`, where (`source`), the reason code it was given, and by whom. `manifest`
    is the referrer that carries it."""

    form: str
    source: str
    code: str
    detail: str
    signer: str | None = None
    manifest: Digest | None = None

    def to_json(self) -> dict[str, Any]:
        return {"form": self.form, **_found(self)}


@dataclass(frozen=True)
class Attested:
    """One attestation that was found. `predicate_type` is its own word where the code is not ``valid-attestation``."""

    predicate_type: str
    source: str
    code: str
    detail: str
    signer: str | None = None
    manifest: Digest | None = None

    def to_json(self) -> dict[str, Any]:
        return {"predicateType": self.predicate_type, **_found(self)}


def _found(item: Signature | Attested) -> dict[str, Any]:
    """What is said of both."""
    return {
        "source": item.source,
        "code": item.code,
        "detail": item.detail,
        "signer": item.signer,
        "manifest": str(item.manifest) if item.manifest else None,
    }


@dataclass(frozen=True)
class Subject:
    """What a record is about: an artifact, by its tag or (without one) its digest; with neither, a repository; without
    that, a registry. `place` is ``HOST/NAME`` or ``oci:PATH``."""

    registry: str
    repository: str
    place: str
    tag: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.place}{tag}" + (f"@{self.digest}" if self.digest else "")


@dataclass(frozen=True)
class Record:
    """What was found about one artifact under one tag. `decision` is None for what is broken, which says why in `code`
    and `reason`. `reused`: nothing about it had changed, and nothing was fetched again. `incomplete`: it could not be
    looked at now; another run may."""

    subject: Subject
    status: Status
    code: str
    reason: str
    decision: Decision | None = None
    descriptor: Descriptor | None = None
    artifact_type: str | None = None
    signatures: tuple[Signature, ...] = ()
    attestations: tuple[Attested, ...] = ()
    referrers: Mapping[str, int] = field(default_factory=dict)
    reused: bool = False
    incomplete: bool = False
    summary: str | None = None

    @classmethod
    def broken(cls, subject: Subject, error: StowageError, *, incomplete: bool = False) -> Record:
        """The record of something that cannot be read."""
        return cls(subject, Status.BROKEN, error.code, str(error), incomplete=incomplete)

    @property
    def allowed(self) -> bool:
        """Whether the policy lets it be used."""
        return self.decision is not None and self.decision.allowed

    @property
    def warned(self) -> bool:
        """Whether it may be used only because the policy warns where it could refuse."""
        return self.decision is not None and self.decision.warned

    def to_json(self) -> dict[str, Any]:
        """The record as JSON."""
        return {
            "reference": str(self.subject),
            "registry": self.subject.registry,
            "repository": self.subject.repository,
            "tag": self.subject.tag,
            "digest": self.subject.digest,
            "mediaType": self.descriptor.media_type if self.descriptor else None,
            "artifactType": self.artifact_type,
            "size": self.descriptor.size if self.descriptor else None,
            "status": self.status.value,
            "allowed": None if self.decision is None else self.allowed,
            "warned": self.warned,
            "code": self.code,
            "reason": self.reason,
            "rules": list(self.decision.rules) if self.decision else [],
            "signers": self.decision.to_json()["signers"] if self.decision else [],
            "signatures": [item.to_json() for item in self.signatures],
            "attestations": [item.to_json() for item in self.attestations],
            "referrers": dict(self.referrers),
            "reused": self.reused,
            "incomplete": self.incomplete,
            "summary": self.summary,
        }
