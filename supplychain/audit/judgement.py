"""From what was found about an artifact, and a policy, to its record. A plain function: no network, clock or disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from artifact.descriptor import Descriptor
from artifact.errors import Malformed
from supplychain.attestation import Attestation, judge_attestation
from supplychain.audit.record import Attested, Record, Signature, Status, Subject
from supplychain.audit.vsa import SUMMARY
from supplychain.authority import Signer
from supplychain.bundle import Bundle
from supplychain.decision import Decision, decide
from supplychain.evidence import Evidence, Item
from supplychain.glob import Target
from supplychain.policy import Policy
from supplychain.refusal import Reason
from supplychain.signature import judge
from supplychain.statement import OMS_SIGN, Statement
from supplychain.trace import Step

_CLASSES = {
    Reason.VALID: Status.SIGNED,
    Reason.REVOKED_KEY: Status.REVOKED,
    Reason.REVOKED_IDENTITY: Status.REVOKED,
    Reason.EXPIRED_CERTIFICATE: Status.EXPIRED,
    Reason.STALE: Status.EXPIRED,
    Reason.UNKNOWN_SIGNER: Status.UNKNOWN,
    Reason.UNTRUSTED_CERTIFICATE: Status.UNKNOWN,
    Reason.UNSUPPORTED: Status.UNSUPPORTED,
}
_REVOKED = (Reason.REVOKED_KEY, Reason.REVOKED_IDENTITY)
_BEST_FIRST = (
    Status.SIGNED, Status.REVOKED, Status.INVALID, Status.EXPIRED, Status.UNKNOWN, Status.UNSUPPORTED,
)  # fmt: skip


def judged(
    policy: Policy,
    target: Target,
    subject: Subject,
    descriptor: Descriptor,
    evidence: Evidence,
    listing: Sequence[Descriptor] = (),
    artifact_type: str | None = None,
) -> Record:
    """The record of the artifact `descriptor`, kept as `subject` and known to the policy as `target`. `listing` are its
    referrers."""
    decision = decide(policy, target, evidence)
    seen = _seen(decision, policy, target, evidence)
    signatures: list[Signature] = []
    attestations: list[Attested] = []
    heard: list[Item] = []
    required = {wanted.type for rule in policy.rules for wanted in rule.attestations}
    for item, step in zip(evidence.items, seen, strict=True):
        attestation = judge_attestation(item, evidence.subject, policy.keys, policy.roots)
        if attestation is None or not attestation.predicate_type:
            signatures.append(_signature(item, step, evidence, policy))
        else:
            attestations.append(_attested(attestation, step, policy))
            if attestation.predicate_type == SUMMARY and SUMMARY not in required:
                continue  # an earlier audit's word, which is nobody's signature
        heard.append(item)
    if len(heard) < len(evidence.items):
        decision = decide(policy, target, replace(evidence, items=tuple(heard)))
    return Record(
        subject=subject,
        status=_status(signatures, decision.code),
        code=decision.code.value,
        reason=decision.reason,
        decision=decision,
        descriptor=descriptor,
        artifact_type=artifact_type,
        signatures=tuple(signatures),
        attestations=tuple(attestations),
        referrers=dict(sorted(Counter(item.artifact_type or item.media_type for item in listing).items())),
    )


def _seen(decision: Decision, policy: Policy, target: Target, evidence: Evidence) -> list[Step]:
    """What the decision makes of each item. Of a revoked artifact it looks at none, so that is left aside here."""
    if decision.code is Reason.REVOKED_DIGEST:
        unrevoked = replace(policy, revoked=replace(policy.revoked, digests={}))
        decision = decide(unrevoked, target, evidence)
    return [step for step in decision.trace if step.kind in ("signature", "attestation")]


def _signature(item: Item, step: Step, evidence: Evidence, policy: Policy) -> Signature:
    signer = judge(item, evidence.subject, policy.keys, policy.roots).signer
    name = _name(signer, policy)
    code = _of_someone(step.code, name)
    return Signature(_form(item), item.source, code.value, step.detail, name, item.manifest)


def _attested(attestation: Attestation, step: Step, policy: Policy) -> Attested:
    # A decision that asks for no attestation takes them all for signatures, and says that they are none.
    code, detail = (step.code, step.detail) if step.code in _REVOKED else (attestation.code, attestation.detail)
    name = _name(attestation.signer, policy)
    code = _of_someone(code, name)
    return Attested(attestation.predicate_type, attestation.source, code.value, detail, name, attestation.manifest)


def _of_someone(code: Reason, name: str | None) -> Reason:
    """A keyless signature holds whomever it is by; by nobody the policy names, it is a stranger's."""
    return Reason.UNKNOWN_SIGNER if name is None and code in (Reason.VALID, Reason.VALID_ATTESTATION) else code


def _name(signer: Signer | None, policy: Policy) -> str | None:
    authorities = (authority for rule in policy.rules for authority in rule.authorities)
    return next((authority.name for authority in authorities if authority.is_author(signer)), None)


def _form(item: Item) -> str:
    if isinstance(item.content, Bundle):
        with suppress(Malformed):
            if Statement.parse(item.content.envelope.payload).predicate_type == OMS_SIGN:
                return "model-signing"
    return item.form.value


def _status(signatures: Sequence[Signature], code: Reason) -> Status:
    if code is Reason.REVOKED_DIGEST:
        return Status.REVOKED
    found = {_class(item) for item in signatures}
    best = next((status for status in _BEST_FIRST if status in found), Status.UNSIGNED)
    return Status.EXPIRED if best is Status.SIGNED and code is Reason.STALE else best


def _class(signature: Signature) -> Status:
    return (
        Status.UNSUPPORTED
        if signature.form == "model-signing"
        else _CLASSES.get(Reason(signature.code), Status.INVALID)
    )
