"""The steps of the way to a decision."""

from __future__ import annotations

from dataclasses import dataclass

from supplychain.refusal import Reason


@dataclass(frozen=True)
class Step:
    """One step of the way to a decision.

    `kind` is ``revocation``, ``signature`` or ``attestation`` for what was found, ``condition`` or ``rule`` for what
    the policy makes of it, ``grant`` for code it lets run, and ``use`` for the engine and flags it lets be used.
    """

    kind: str
    name: str
    code: Reason
    detail: str

    def to_json(self) -> dict[str, str]:
        """The step as JSON."""
        return {"kind": self.kind, "name": self.name, "code": self.code.value, "detail": self.detail}
