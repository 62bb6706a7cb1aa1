"""What a rule requires of attestations: of which type, by whom, and what they have to say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from artifact.errors import InvalidInput
from supplychain.age import Age, read_age
from supplychain.attestation import Attestation
from supplychain.authority import Authority, Requirement, Signer, read_requirement, vouching
from supplychain.condition import Condition, read_condition
from supplychain.predicate import predicate_type, short_name
from supplychain.refusal import Reason
from supplychain.strictyaml import Value
from supplychain.trace import Step

_UNREAD = (Reason.TOO_MANY, Reason.OVERSIZED, Reason.UNREADABLE)


@dataclass(frozen=True)
class RequiredAttestation:
    """Attestations of one predicate type, by the authorities of `requirement`, that meet all `conditions`.

    With `every`, each attestation of the type by one of the authorities has to meet them, not just one of each. One
    older than `max_age` does not count for its author.
    """

    type: str
    requirement: Requirement
    conditions: tuple[Condition, ...] = field(default_factory=tuple)
    every: bool = False
    max_age: Age | None = None

    @property
    def name(self) -> str:
        """How it is called in messages: the short name of its type, else the type."""
        return short_name(self.type)

    def apply(self, rule: str, attestations: Sequence[Attestation], now: datetime | None = None) -> tuple[Step, ...]:
        """What the rule named `rule` makes of `attestations` at the time `now`: a step for every condition tried, and
        the outcome last.

        An authority counts once, and only by an attestation that meets all conditions by itself.
        """
        steps: list[Step] = []
        unmet: list[Step] = []
        good: dict[Signer, None] = {}
        for authority, attestation in self._made(attestations):
            tried = self._tried(rule, authority, attestation, now)
            failed = [step for step in tried if step.code is not Reason.ALLOWED]
            steps += tried
            unmet += [step for step in failed if step.kind == "condition"]
            if not failed and attestation.signer is not None:
                good[attestation.signer] = None
        satisfied = [authority.name for authority in vouching(self.requirement.authorities, good)]
        old = [step for step in steps if step.kind == "freshness" and step.code is not Reason.ALLOWED]
        return *steps, self._outcome(rule, satisfied, unmet, old, attestations)

    def counting(self, attestations: Sequence[Attestation], now: datetime | None = None) -> list[Attestation]:
        """Those of `attestations` that count for this by themselves: its authorities made them, all conditions hold."""
        return [
            attestation
            for authority, attestation in self._made(attestations)
            if all(step.code is Reason.ALLOWED for step in self._tried("", authority, attestation, now))
        ]

    def _made(self, attestations: Sequence[Attestation]) -> Iterator[tuple[Authority, Attestation]]:
        for attestation in attestations:
            if attestation.valid and attestation.predicate_type == self.type:
                for authority in self.requirement.authorities:
                    if authority.is_author(attestation.signer):
                        yield authority, attestation

    def _tried(self, rule: str, authority: Authority, attestation: Attestation, now: datetime | None) -> list[Step]:
        assert attestation.statement is not None
        steps: list[Step] = []
        by = f"{attestation.source}, by {authority.name}"
        for condition in self.conditions:
            why = condition.unmet(attestation.statement.predicate, now)
            code = Reason.ATTESTATION_CONDITION if why else Reason.ALLOWED
            detail = f"{by}: {why or f'{condition.name} holds'}"
            steps.append(Step("condition", f"{rule}: {self.name}: {condition.name}", code, detail))
        if self.max_age is not None:
            code, why = self.max_age.exceeded(attestation.time, now) or (Reason.ALLOWED, f"within {self.max_age}")
            steps.append(Step("freshness", f"{rule}: {self.name}: max-age", code, f"{by}: {why}"))
        return steps

    def _outcome(
        self,
        rule: str,
        satisfied: Sequence[str],
        unmet: Sequence[Step],
        old: Sequence[Step],
        attestations: Sequence[Attestation],
    ) -> Step:
        def step(code: Reason, detail: str) -> Step:
            return Step("condition", f"{rule}: {self.name}", code, detail)

        unread = [item for item in attestations if item.code in _UNREAD]
        if self.every and unread:
            return step(unread[0].code, f"{unread[0].source}: {unread[0].detail}, and every one has to be looked at")
        if unmet and (self.every or len(satisfied) < self.requirement.count):
            return step(unmet[0].code, f"{unmet[0].name.removeprefix(f'{rule}: ')}: {unmet[0].detail}")
        if len(satisfied) >= self.requirement.count:
            return step(Reason.ALLOWED, f"{self.name} by {', '.join(satisfied)}")
        if old:
            return step(old[0].code, old[0].detail)
        distrusted = self._distrusted(attestations)
        if distrusted is not None:
            return step(Reason.UNTRUSTED_ATTESTATION, distrusted)
        if any(item.code is Reason.TOO_MANY for item in unread):
            return step(Reason.TOO_MANY, f"no {self.name} among the referrers that were looked at")
        only = f"found only by {', '.join(satisfied)}" if satisfied else "none was found"
        return step(Reason.MISSING_ATTESTATION, only + (f"; {len(unread)} could not be read" if unread else ""))

    def _distrusted(self, attestations: Sequence[Attestation]) -> str | None:
        """Why one that claims to be of the type does not count."""
        for item in attestations:
            if item.predicate_type == self.type and not item.valid:
                return f"{item.source}: {item.code}: {item.detail}"
            ours = any(authority.is_author(item.signer) for authority in self.requirement.authorities)
            if item.predicate_type == self.type and not ours:
                held = any(authority.holds_key(item.signer) for authority in self.requirement.authorities)
                return f"{item.source}: {'not in the log' if held else 'made by someone else'}"
        return None

    def __str__(self) -> str:
        how = "every" if self.every else "a"
        by = ", ".join(authority.name for authority in self.requirement.authorities)
        count = self.requirement.count
        return f"{how} {self.name} attestation by {count} of {by}" if count > 1 else f"{how} {self.name} by any of {by}"


def read_required_attestation(
    value: Value, authorities: Mapping[str, Authority], default: Requirement
) -> RequiredAttestation:
    """Read an entry of a rule's ``attestations``: a predicate type, or a mapping. `default` is the rule's own
    requirement. Raises `InvalidInput`."""
    if value.scalar is not None:
        fields: Mapping[str, Value] = {"type": value}
    else:
        fields = value.mapping("type", "require", "which", "conditions", "max-age")
    stated = value.required(fields, "type")
    try:
        type_ = predicate_type(stated.text())
    except InvalidInput as error:
        if stated.scalar is None:
            raise
        stated.fail(str(error))
    requirement = read_requirement(fields["require"], authorities) if "require" in fields else default
    if not requirement.count:
        value.fail("nobody is required to make this attestation: write require, with any-of, all-of or at-least")
    conditions = fields["conditions"].sequence() if "conditions" in fields else ()
    return RequiredAttestation(
        type=type_,
        requirement=requirement,
        conditions=tuple(read_condition(item, type_) for item in conditions),
        every="which" in fields and fields["which"].choice("any", "every") == "every",
        max_age=read_age(fields["max-age"]) if "max-age" in fields else None,
    )
