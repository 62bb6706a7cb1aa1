"""What was found in an artifact's files: the predicate of a scan, version 1. `docs/supply-chain.md` describes it.

in-toto's vulnerability predicate is not used: it is about known vulnerabilities by identifier, and wants the times a
scanner ran.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """`PASSED`: no finding that forbids use. `ALLOWED`: there are some, and each was waved through by name.
    `FAILED`: there is at least one that was not."""

    PASSED = "pass"
    ALLOWED = "allowed"
    FAILED = "fail"


@dataclass(frozen=True)
class ScanFinding:
    """One finding: a stable code, ``error``, ``warning`` or ``info``, the file it was made in (or empty), and text.
    `allowed`: whether it was waved through."""

    code: str
    severity: str
    path: str
    message: str
    allowed: bool = False

    @property
    def forbids(self) -> bool:
        """Whether it stands against using the artifact."""
        return self.severity == "error" and not self.allowed


@dataclass(frozen=True)
class Scan:
    """One scan by `scanner` (a URI) of `version`. `checks` are the codes of everything that was looked for."""

    scanner: str
    version: str
    checks: Collection[str]
    findings: Sequence[ScanFinding]

    @property
    def verdict(self) -> Verdict:
        """What the findings come to."""
        if any(finding.forbids for finding in self.findings):
            return Verdict.FAILED
        return Verdict.ALLOWED if any(finding.allowed for finding in self.findings) else Verdict.PASSED

    def to_predicate(self) -> dict[str, Any]:
        """The predicate. It depends on the fields alone."""
        return {
            "scanner": {"uri": self.scanner, "version": self.version},
            "verdict": self.verdict.value,
            "checks": sorted(self.checks),
            "findings": [
                {
                    "code": finding.code, "severity": finding.severity, "path": finding.path,
                    "message": finding.message, "allowed": finding.allowed,
                }
                for finding in self.findings
            ],
        }  # fmt: skip
