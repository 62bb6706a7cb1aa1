"""Results as SARIF 2.1.0 (OASIS), for code scanning and dashboards: one result for everything that is not in order.

``error`` is what the policy refuses or what is broken, ``warning`` what it only warns of, ``note`` what it allows
although no good signature by someone it names is there.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any, TextIO

from artifact.errors import (
    DigestMismatch,
    InvalidInput,
    Malformed,
    NotFound,
    ServerError,
    StowageError,
    Unauthorized,
    Unreachable,
)
from artifact.version import __version__
from supplychain.audit.record import Record, Status
from supplychain.audit.tally import Tally
from supplychain.audit.vsa import package_url
from supplychain.refusal import Reason

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"

_BROKEN = (StowageError, NotFound, Malformed, DigestMismatch, InvalidInput, Unreachable, Unauthorized, ServerError)
_GOOD = (Reason.ALLOWED, Reason.VALID, Reason.VALID_ATTESTATION)
_RULES = [*(reason.value for reason in Reason if reason not in _GOOD), *(error.code for error in _BROKEN)]
_INDEX = {rule: number for number, rule in enumerate(_RULES)}
_NOTES = {
    Status.REVOKED: Reason.REVOKED_KEY,
    Status.INVALID: Reason.INVALID_SIGNATURE,
    Status.EXPIRED: Reason.EXPIRED_CERTIFICATE,
    Status.UNKNOWN: Reason.UNKNOWN_SIGNER,
    Status.UNSUPPORTED: Reason.UNSUPPORTED,
    Status.UNSIGNED: Reason.UNSIGNED,
}


class Sarif:
    """Writes a SARIF log as the records come."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._first = True
        driver = {"name": "registry audit", "semanticVersion": __version__, "rules": [_rule(rule) for rule in _RULES]}
        head = {"$schema": SCHEMA, "version": "2.1.0"}
        stream.write(f'{json.dumps(head)[:-1]}, "runs": [{{"tool": {json.dumps({"driver": driver})}, "results": [')

    def add(self, record: Record) -> None:
        found = _finding(record)
        if found is not None:
            self._stream.write("\n" if self._first else ",\n")
            self._stream.write(json.dumps(_result(record, *found)))
            self._first = False

    def end(self, tally: Tally) -> None:
        invocation = {
            "executionSuccessful": tally.complete,
            "startTimeUtc": _time(tally.began),
            "endTimeUtc": _time(tally.ended),
            "properties": {"artifacts": tally.artifacts, "repositories": tally.repositories, "reused": tally.reused},
        }
        self._stream.write(f'\n], "invocations": [{json.dumps(invocation)}]}}]}}\n')
        self._stream.flush()


def _rule(code: str) -> dict[str, Any]:
    return {"id": code, "shortDescription": {"text": code.replace("-", " ").capitalize() + "."}}


def _finding(record: Record) -> tuple[str, str] | None:
    """The rule a record breaks, and how bad that is."""
    if record.decision is None or not record.allowed:
        return record.code, "error"
    if record.warned:
        return record.code, "warning"
    return (_NOTES[record.status].value, "note") if record.status in _NOTES else None


def _result(record: Record, code: str, level: str) -> dict[str, Any]:
    subject = record.subject
    identity = "\0".join((subject.place, subject.tag or "", subject.digest or "", code))
    location = {
        "physicalLocation": {"artifactLocation": {"uri": package_url(subject)}},
        "logicalLocations": [{"fullyQualifiedName": str(subject), "kind": "resource"}],
    }
    return {
        "ruleId": code,
        **({"ruleIndex": _INDEX[code]} if code in _INDEX else {}),
        "level": level,
        "message": {"text": record.reason},
        "locations": [location],
        "partialFingerprints": {"artifact/v1": hashlib.sha256(identity.encode()).hexdigest()},
        "properties": {
            "registry": subject.registry,
            "repository": subject.repository,
            "tag": subject.tag,
            "digest": subject.digest,
            "status": record.status.value,
        },
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
