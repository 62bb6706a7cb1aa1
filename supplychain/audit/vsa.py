"""Verification summaries: an audit's verdict on one artifact, signed. Source: SLSA, verification_summary v1.

Each is an attestation like any other: an in-toto statement in a bundle, which refers to the artifact or is a file. One
that says the same, but for the time, is not written again.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import Malformed, StowageError
from artifact.layout.files import write_atomically
from artifact.mediatypes import IN_TOTO
from artifact.repository import Repository
from supplychain.attest import attest, attestations
from supplychain.audit.record import Attested, Record, Signature, Subject
from supplychain.bundle import Bundle
from supplychain.dsse import Envelope, pae
from supplychain.keys import PrivateKey
from supplychain.statement import Statement

SUMMARY = "https://slsa.dev/verification_summary/v1"
"""The predicate type."""

VERIFIER = "https://stowage.dev/verifiers/audit/v1"
"""Who has verified, where nothing else is said: this program."""

_TIME = "timeVerified"
_VALID = ("valid-signature", "valid-attestation")


@dataclass(frozen=True)
class Summaries:
    """Writes summaries, signed with `key`, in the name of `verifier`, of decisions under the policy file whose digest
    is `policy`: beside the artifacts, or into `folder`. Safe for several threads."""

    key: PrivateKey
    policy: Digest
    verifier: str = VERIFIER
    folder: Path | None = None
    _locks: tuple[threading.Lock, ...] = field(default_factory=lambda: tuple(threading.Lock() for _ in range(64)))

    def add(self, repository: Repository, record: Record) -> Record:
        """`record` with the place of its summary in `summary`: the digest of a referrer, or the path of a file. One
        that cannot be written makes it incomplete. What is broken has no verdict, and gets none."""
        if record.decision is None or record.descriptor is None:
            return record
        statement = Statement.about(record.decision.subject, SUMMARY, self.predicate(record))
        try:
            written = self._file(record, statement) if self.folder else self._referrer(repository, record, statement)
        except (StowageError, OSError) as error:
            return replace(record, incomplete=True, reason=f"{record.reason}; its summary cannot be written: {error}")
        return replace(record, summary=written)

    def predicate(self, record: Record) -> dict[str, Any]:
        """What the summary says: passed is what the policy lets pass, not what it only warns of."""
        assert record.decision is not None
        passed = record.allowed and not record.warned
        found: list[Signature | Attested] = [*record.signatures, *record.attestations]
        inputs = sorted({
            item.manifest.hex for item in found
            if item.manifest and item.manifest.algorithm == "sha256" and item.code in _VALID
        })  # fmt: skip
        return {
            "verifier": {"id": self.verifier},
            _TIME: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "resourceUri": package_url(record.subject),
            "policy": {"digest": {self.policy.algorithm: self.policy.hex}},
            "inputAttestations": [{"digest": {"sha256": digest}} for digest in inputs],
            "verificationResult": "PASSED" if passed else "FAILED",
            "verifiedLevels": ["SLSA_BUILD_LEVEL_UNEVALUATED"] if passed else ["FAILED"],
            "slsaVersion": "1.0",
        }

    def _referrer(self, repository: Repository, record: Record, statement: Statement) -> str:
        assert record.descriptor is not None
        # A registry without referrers keeps a list of them under a tag: two who add to it would lose one.
        with self._locks[hash(record.descriptor.digest) % len(self._locks)]:
            return self._attached(repository, record.descriptor, statement)

    def _attached(self, repository: Repository, subject: Descriptor, statement: Statement) -> str:
        for item in attestations(repository, subject.digest, (self.key.public,)):
            if item.valid and item.statement is not None and item.manifest and _equal(item.statement, statement):
                return str(item.manifest)
        created = str(statement.predicate[_TIME])
        return str(attest(repository, subject, statement, self.key, created=created).digest)

    def _file(self, record: Record, statement: Statement) -> str:
        assert self.folder is not None
        subject = record.subject
        path = self.folder / quote(subject.registry, safe="[]:") / subject.repository
        path /= f"{subject.tag or ''}@{(subject.digest or '').replace(':', '-')}.sigstore.json"
        known = self._read(path)
        if known is None or not _equal(known, statement):
            payload = statement.to_bytes()
            signature = self.key.sign(pae(IN_TOTO, payload))
            path.parent.mkdir(parents=True, exist_ok=True)
            bundle = Bundle(Envelope(payload, IN_TOTO, (signature,)), hint=self.key.public.hint)
            write_atomically(path, bundle.to_bytes())
        return str(path)

    def _read(self, path: Path) -> Statement | None:
        with suppress(FileNotFoundError, Malformed):
            envelope = Bundle.parse(path.read_bytes()).envelope
            if len(envelope.signatures) == 1 and self.key.public.verify(envelope.signatures[0], envelope.signed_bytes):
                return Statement.parse(envelope.payload)
        return None


def package_url(subject: Subject) -> str:
    """The artifact as a package URL of type ``oci``."""
    name = subject.place.rpartition("/")[2]
    digest = f"@{quote(subject.digest, safe='')}" if subject.digest else ""
    told = [] if subject.place.startswith("oci:") else [f"repository_url={quote(subject.place, safe='/:[]')}"]
    told += [f"tag={quote(subject.tag, safe='')}"] if subject.tag else []
    return f"pkg:oci/{quote(name, safe='')}{digest}" + (f"?{'&'.join(told)}" if told else "")


def _equal(one: Statement, other: Statement) -> bool:
    """Whether two statements are of the same type and say the same, but for the time."""
    if one.predicate_type != other.predicate_type:
        return False
    return _untimed(one) == _untimed(other)


def _untimed(statement: Statement) -> dict[str, Any]:
    return {key: value for key, value in statement.predicate.items() if key != _TIME}
