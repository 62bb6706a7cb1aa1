"""The decision: may this artifact be used, under this policy, given this evidence.

`decide` is a function of its arguments alone. It touches no network, clock or disk, so the same question has the same
answer at admission, at pull, at load and in an audit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from artifact.digest import Digest
from supplychain.attestation import Attestation, judge_attestation
from supplychain.authority import Authority, Signer, vouching
from supplychain.evidence import Evidence
from supplychain.glob import Target
from supplychain.identity import Identity
from supplychain.policy import Mode, Policy, Rule
from supplychain.predicate import SCAN
from supplychain.refusal import PolicyRefused, Reason
from supplychain.signature import Finding, judge
from supplychain.trace import Step
from supplychain.usage import NO_CODE, NO_LIMITS, Grant, Use, granted

_WORST_FIRST = (
    Reason.REVOKED_KEY,
    Reason.REVOKED_IDENTITY,
    Reason.INVALID_SIGNATURE,
    Reason.UNTRUSTED_CERTIFICATE,
    Reason.LOG_ENTRY,
    Reason.EXPIRED_CERTIFICATE,
    Reason.WRONG_SUBJECT,
    Reason.STALE,
    Reason.NO_TIME,
    Reason.TOO_MANY,
    Reason.UNKNOWN_SIGNER,
    Reason.WRONG_PREDICATE,
    Reason.WRONG_PAYLOAD_TYPE,
    Reason.SIGNATURE_COUNT,
    Reason.MALFORMED,
    Reason.OVERSIZED,
    Reason.UNREADABLE,
    Reason.UNSUPPORTED,
)
"""Which finding explains a refusal, where there are several."""

_SIGN_IT = "sign it with packager sign, or name its signer in the policy"


@dataclass(frozen=True)
class Decision:
    """May the artifact be used. `code` is a `Reason`; `reason` is one line for people.

    `allowed` with another code than ``allowed`` means that a rule in warn mode is not satisfied: see `warned`.
    `signers` are the authorities whose valid signatures were found, required or not. `applied` are the rules that
    apply; `grant` names the code in the artifact that may run.
    """

    allowed: bool
    code: Reason
    reason: str
    reference: str
    subject: Digest
    policy: str
    rules: tuple[str, ...] = ()
    signers: tuple[Authority, ...] = ()
    trace: tuple[Step, ...] = ()
    applied: tuple[Rule, ...] = ()
    grant: Grant = NO_CODE

    @property
    def warned(self) -> bool:
        """Whether it is allowed only because the policy warns where it could refuse."""
        return self.allowed and self.code is not Reason.ALLOWED

    def enforce(self) -> Decision:
        """This decision if it allows. Raises `PolicyRefused` (exit status 3) with its reason and code if not."""
        if not self.allowed:
            raise PolicyRefused(self.reason, self.code)
        return self

    def to_use(self, use: Use) -> Decision:
        """This decision about running the artifact in one way: refused if a rule's limits do not let it pass, with a
        step for every rule that limits something."""
        steps: list[tuple[Rule, Step]] = []
        for rule in self.applied:
            exceeded = rule.limits.exceeded(use)
            code, detail = exceeded or (Reason.ALLOWED, f"{use.engine} with its flags is within the limits")
            if exceeded or rule.limits != NO_LIMITS:
                steps.append((rule, Step("use", rule.name, code, detail)))
        trace = (*self.trace, *(step for _, step in steps))
        failed = sorted(
            ((rule, step) for rule, step in steps if step.code is not Reason.ALLOWED),
            key=lambda outcome: outcome[0].mode is Mode.WARN,
        )
        if not failed or not self.allowed:
            return replace(self, trace=trace)
        rule, step = failed[0]
        allowed = rule.mode is Mode.WARN
        verb = "allowed with a warning" if allowed else "refused"
        told = f"{self.reference}@{self.subject.short} {verb} by {self.policy}: {step.code.value}: "
        told += f"rule {rule.name!r}: {step.detail}"
        return replace(self, allowed=allowed, code=step.code, reason=told, trace=trace)

    def to_json(self) -> dict[str, Any]:
        """The decision as JSON, with everything it rests on."""
        return {
            "reference": self.reference,
            "digest": str(self.subject),
            "policy": self.policy,
            "allowed": self.allowed,
            "warned": self.warned,
            "code": self.code.value,
            "reason": self.reason,
            "rules": list(self.rules),
            "grant": self.grant.to_json(),
            "limits": [
                {"rule": rule.name, "engines": rule.limits.engines, "flags": rule.limits.flags} for rule in self.applied
            ],
            "signers": [signer.to_json() for signer in self.signers],
            "trace": [step.to_json() for step in self.trace],
        }


def decide(policy: Policy, target: Target, evidence: Evidence) -> Decision:
    """Decide about `evidence.subject`, asked for as `target`.

    A revoked digest is refused in every mode. Otherwise each rule that applies has to be satisfied; one in warn mode
    is reported and does not refuse. A reference that no rule is about is treated as the policy's own mode says.
    """
    rules = policy.rules_for(target)
    subject = evidence.subject
    revoked = next((digest for digest in (subject, *sorted(evidence.also)) if digest in policy.revoked.digests), None)
    if revoked is not None:
        why = policy.revoked.digests[revoked] or "no reason given"
        step = Step("revocation", str(revoked), Reason.REVOKED_DIGEST, why)
        return _decision(policy, target, subject, step, Mode.ENFORCE, rules, (), (step,))
    judged = (judge(item, subject, policy.keys, policy.roots) for item in evidence.items)
    findings = [_unless_revoked(finding, policy) for finding in judged]
    asked = any(rule.attestations or rule.allows_code for rule in rules)
    attested = _attested(policy, evidence) if asked else {}
    seen = tuple(_seen(finding, attested.get(number), policy) for number, finding in enumerate(findings))
    signers = _signers(findings, policy)
    if not rules:
        step = Step("rule", "none", Reason.NO_RULE, "no rule of the policy is about this reference")
        return _decision(policy, target, subject, step, policy.mode, rules, signers, (*seen, step))
    applied = [(rule, _apply(rule, evidence, findings, list(attested.values()))) for rule in rules]
    trace = (*seen, *(step for _, steps in applied for step in steps))
    outcomes = [(rule, steps[-1]) for rule, steps in applied]
    failed = [(rule, step) for rule, step in outcomes if step.code is not Reason.ALLOWED]
    # An enforced rule decides before one that only warns.
    failed.sort(key=lambda outcome: outcome[0].mode is Mode.WARN)
    rule, step = (failed or outcomes)[0]
    grant, steps = _granted(outcomes, target, list(attested.values()), evidence.at)
    made = _decision(policy, target, subject, step, rule.mode, rules, signers, (*trace, *steps))
    return replace(made, grant=grant if made.allowed else NO_CODE)


def _granted(
    outcomes: Sequence[tuple[Rule, Step]], target: Target, attestations: Sequence[Attestation], now: datetime | None
) -> tuple[Grant, tuple[Step, ...]]:
    """What the rules that allow code grant together."""
    grant, steps = NO_CODE, []
    for rule, outcome in outcomes:
        if rule.allows_code:
            satisfied, sure = outcome.code is Reason.ALLOWED, rule.surely_applies(target)
            more, step = granted(rule.name, _scans(rule, attestations, now), satisfied=satisfied, sure=sure)
            grant |= more
            steps.append(step)
    return grant, tuple(steps)


def _scans(rule: Rule, attestations: Sequence[Attestation], now: datetime | None) -> list[Attestation]:
    """The scans that can grant something: where the rule says what a scan must be, those that are; else any valid one
    by somebody whom the rule names."""
    required = [item for item in rule.attestations if item.type == SCAN]
    if required:
        return [scan for item in required for scan in item.counting(attestations, now)]
    scans = [item for item in attestations if item.valid and item.predicate_type == SCAN]
    return [scan for scan in scans if any(authority.is_author(scan.signer) for authority in rule.authorities)]


def _decision(
    policy: Policy,
    target: Target,
    subject: Digest,
    step: Step,
    mode: Mode,
    rules: Sequence[Rule],
    signers: tuple[Authority, ...],
    trace: tuple[Step, ...],
) -> Decision:
    satisfied = step.code is Reason.ALLOWED
    allowed = satisfied or mode is Mode.WARN
    verb = "allowed" if satisfied else "allowed with a warning" if allowed else "refused"
    return Decision(
        allowed=allowed,
        code=step.code,
        reason=f"{target}@{subject.short} {verb} by {policy.source}: {step.code.value}: {step.detail}",
        reference=str(target),
        subject=subject,
        policy=policy.source,
        rules=tuple(rule.name for rule in rules),
        signers=signers,
        trace=trace,
        applied=tuple(rules),
    )


def _unless_revoked(finding: Finding, policy: Policy) -> Finding:
    found = _revoked(finding.signer, policy)
    return finding if found is None else replace(finding, code=found[0], detail=found[1])


def _revoked(signer: Signer | None, policy: Policy) -> tuple[Reason, str] | None:
    revoked = policy.revoked
    if isinstance(signer, Identity):
        why = next((item.reason for item in revoked.identities if item.means(signer)), None)
        told = f"made by {signer}, who is revoked ({why or 'no reason given'})"
        return None if why is None else (Reason.REVOKED_IDENTITY, told)
    if signer is None or signer.hint not in revoked.fingerprints:
        return None
    why = revoked.fingerprints[signer.hint] or "no reason given"
    return Reason.REVOKED_KEY, f"made by the revoked key {signer.hint} ({why})"


def _attested(policy: Policy, evidence: Evidence) -> dict[int, Attestation]:
    """The attestations among the evidence, by the number of their item."""
    keys, roots = policy.keys, policy.roots
    judged = {n: judge_attestation(item, evidence.subject, keys, roots) for n, item in enumerate(evidence.items)}
    return {n: _unless_revoked_attestation(item, policy) for n, item in judged.items() if item is not None}


def _unless_revoked_attestation(attestation: Attestation, policy: Policy) -> Attestation:
    found = _revoked(attestation.signer, policy)
    if found is None:
        return attestation
    return replace(attestation, code=found[0], detail=found[1], statement=None)


def _seen(finding: Finding, attestation: Attestation | None, policy: Policy) -> Step:
    if attestation is not None and attestation.predicate_type:
        detail = _described(attestation.detail, attestation.signer, policy)
        return Step("attestation", attestation.source, attestation.code, detail)
    return Step("signature", finding.source, finding.code, _described(finding.detail, finding.signer, policy))


def _described(detail: str, signer: Signer | None, policy: Policy) -> str:
    names = [authority.name for authority in _authorities(policy) if authority.is_author(signer)]
    if isinstance(signer, Identity):
        return f"{detail}, by {' and '.join(names)}: {signer}" if names else f"{detail}, by {signer}"
    return f"{detail}, by {names[0]}" if names else detail


def _authorities(policy: Policy) -> Iterable[Authority]:
    return dict.fromkeys(authority for rule in policy.rules for authority in rule.authorities)


def _signers(findings: Sequence[Finding], policy: Policy) -> tuple[Authority, ...]:
    found = {finding.signer for finding in findings if finding.code is Reason.VALID}
    return tuple(authority for authority in _authorities(policy) if any(map(authority.is_author, found)))


def _apply(
    rule: Rule, evidence: Evidence, findings: Sequence[Finding], attestations: Sequence[Attestation]
) -> tuple[Step, ...]:
    """What `rule` makes of what was found: the conditions that were tried, and the rule's own step last."""
    if rule.layouts is not None and evidence.layout not in rule.layouts:
        detail = f"the layout is {evidence.layout}; rule {rule.name!r} allows {', '.join(rule.layouts) or 'none'}"
        return (Step("rule", rule.name, Reason.LAYOUT_NOT_ALLOWED, detail),)
    signed = _signed(rule, [_unless_old(_unless_unlogged(item, rule), rule, evidence) for item in findings])
    if signed.code is not Reason.ALLOWED:
        return (signed,)
    steps: list[Step] = []
    told = [signed.detail]
    for required in rule.attestations:
        steps += required.apply(rule.name, attestations, evidence.at)
        outcome = steps[-1]
        if outcome.code is not Reason.ALLOWED:
            detail = f"{outcome.detail}; rule {rule.name!r} requires {required}"
            return *steps, Step("rule", rule.name, outcome.code, detail)
        told.append(outcome.detail)
    return *steps, Step("rule", rule.name, Reason.ALLOWED, "; ".join(told))


def _unless_unlogged(finding: Finding, rule: Rule) -> Finding:
    for authority in rule.requirement.authorities if finding.code is Reason.VALID else ():
        if authority.holds_key(finding.signer) and not authority.is_author(finding.signer):
            detail = f"made by the key of {authority.name}, but no entry of its trust root's log is there for it"
            return replace(finding, code=Reason.LOG_ENTRY, detail=detail)
    return finding


def _unless_old(finding: Finding, rule: Rule, evidence: Evidence) -> Finding:
    if rule.max_age is None or finding.code is not Reason.VALID:
        return finding
    if not any(authority.is_author(finding.signer) for authority in rule.requirement.authorities):
        return finding
    found = rule.max_age.exceeded(finding.time, evidence.at)
    return finding if found is None else replace(finding, code=found[0], detail=found[1])


def _signed(rule: Rule, findings: Sequence[Finding]) -> Step:
    """Whether enough have signed. A signer counts once, however many signatures it made, and for one authority."""
    requirement = rule.requirement
    signers = [finding.signer for finding in findings if finding.code is Reason.VALID and finding.signer is not None]
    signed = [authority.name for authority in vouching(requirement.authorities, signers)]
    if len(signed) >= requirement.count:
        by = f"signed by {', '.join(signed)}" if signed else "no signature is required"
        return Step("rule", rule.name, Reason.ALLOWED, by)
    wanted = f"rule {rule.name!r} requires {requirement}"
    if signed:
        detail = f"{wanted}; found only {', '.join(signed)}: {_SIGN_IT}"
        return Step("rule", rule.name, Reason.INSUFFICIENT, detail)
    code, why = _explanation(findings)
    return Step("rule", rule.name, code, f"{why}; {wanted}: {_SIGN_IT}")


def _explanation(findings: Sequence[Finding]) -> tuple[Reason, str]:
    if any(finding.code is Reason.VALID for finding in findings):
        other = [replace(f, code=Reason.UNKNOWN_SIGNER, detail=_someone(f.signer)) for f in findings]
        findings = [o if f.code is Reason.VALID else f for f, o in zip(findings, other, strict=True)]
    for code in _WORST_FIRST:
        for finding in findings:
            if finding.code is code:
                return code, f"{finding.source}: {finding.detail}"
    return Reason.UNSIGNED, "no signature was found"


def _someone(signer: Signer | None) -> str:
    return f"signed by {signer}" if isinstance(signer, Identity) else "signed by someone else"
