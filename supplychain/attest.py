"""Attestations: signed statements about an artifact, written beside it and read back.

Each is one in-toto statement in a sigstore bundle that refers to the artifact's manifest, as cosign writes them.
"""

from __future__ import annotations

from collections.abc import Sequence

from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import InvalidInput
from artifact.repository import Repository
from supplychain.attestation import Attestation, judge_attestation
from supplychain.bundle import Bundle
from supplychain.evidence import Evidence, collect
from supplychain.keyless import KeylessSigner
from supplychain.keys import PrivateKey, PublicKey
from supplychain.predicate import predicate_type
from supplychain.referrer import attach_statement, stated_time
from supplychain.sign import check_room
from supplychain.statement import Statement


def attest(
    repository: Repository,
    subject: Descriptor,
    statement: Statement,
    key: PrivateKey | KeylessSigner,
    *,
    created: str | None = None,
) -> Descriptor:
    """Sign `statement` about `subject` with `key`; the descriptor of the referrer that carries it.

    The same statement signed by the same key already is left as it is; a keyless one is made anew, of its own time.
    `created` is the RFC 3339 time the referrer's manifest states; by default ``SOURCE_DATE_EPOCH``, else the epoch.
    Raises `NotFound` if the subject is not in the repository, `InvalidInput` on a statement of a signature's type,
    about another artifact, too large, or that is no JSON, and `Malformed` if the artifact has so many referrers that
    this one would not be read.
    """
    repository.resolve(subject.digest)
    if predicate_type(statement.predicate_type) != statement.predicate_type:
        raise InvalidInput(f"{statement.predicate_type} is a short name: the statement has to have the whole type")
    if not statement.names(subject.digest):
        raise InvalidInput(f"the statement is not about {subject.digest.short}")
    payload = _payload(statement)
    evidence = collect(repository, subject.digest)
    if isinstance(key, PrivateKey):
        existing = _existing(evidence, payload, key.public)
        if existing is not None:
            return repository.resolve(existing)
    check_room(repository, evidence)
    stated = created if created is not None else stated_time()
    return attach_statement(repository, subject, statement, key, stated)


def attestations(repository: Repository, subject: Digest, keys: Sequence[PublicKey]) -> list[Attestation]:
    """Every attestation of `subject` that `repository` holds, judged with `keys`; those that do not count say why.

    Read with the caps of signatures. Raises `Unreachable`, `Unauthorized`, `ServerError`.
    """
    return _judged(collect(repository, subject), keys)


def _judged(evidence: Evidence, keys: Sequence[PublicKey]) -> list[Attestation]:
    judged = (judge_attestation(item, evidence.subject, keys) for item in evidence.items)
    return [attestation for attestation in judged if attestation is not None]


def _existing(evidence: Evidence, payload: bytes, key: PublicKey) -> Digest | None:
    for item in evidence.items:
        if isinstance(item.content, Bundle) and item.content.envelope.payload == payload:
            judged = judge_attestation(item, evidence.subject, (key,))
            if judged is not None and judged.valid:
                return judged.manifest
    return None


def _payload(statement: Statement) -> bytes:
    try:
        return statement.to_bytes()
    except (ValueError, TypeError, RecursionError):  # lone surrogates, numbers out of range, endless nesting
        raise InvalidInput(f"the predicate of type {statement.predicate_type} cannot be written as JSON") from None
