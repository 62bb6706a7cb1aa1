"""Findings: what is wrong or missing in a checkpoint, each under a stable code, and which of them stop a pack."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from artifact.errors import InvalidInput, StowageError


class Severity(StrEnum):
    """`ERROR` stops a pack unless its code is allowed; the others are only reported."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True)
class Rule:
    """What a code stands for. `allowable`: whether ``--allow`` may wave it through. `at_pack`: whether it is looked for
    when a checkpoint is packed."""

    severity: Severity
    meaning: str
    allowable: bool = True
    at_pack: bool = True


RULES = {
    "pickle": Rule(Severity.ERROR, "a pickle, which runs code when it is loaded", allowable=False),
    "tag-mismatch": Rule(Severity.ERROR, "a tag, or a stated precision, that the bytes do not hold", allowable=False),
    "requantized": Rule(Severity.ERROR, "weights that are quantised already, to be quantised again"),
    "python-code": Rule(Severity.ERROR, "Python source, which an engine may run"),
    "auto-map": Rule(Severity.ERROR, "a configuration that names Python code to run (auto_map)"),
    "template-unsafe": Rule(Severity.ERROR, "a chat template that reaches for Python's internals or other files"),
    "template-differs": Rule(Severity.WARNING, "a chat template that differs from the tokenizer's"),
    "chat-template-missing": Rule(Severity.WARNING, "no chat template: chat requests cannot be formatted"),
    "tokenizer-missing": Rule(Severity.WARNING, "no tokenizer"),
    "license-missing": Rule(Severity.WARNING, "no licence file and no stated licence"),
    "context-length": Rule(Severity.WARNING, "context lengths that contradict each other"),
    "index-incomplete": Rule(Severity.WARNING, "tensors in a shard that the index does not name"),
    "file-type-mismatch": Rule(Severity.WARNING, "a general.file_type that the tensors do not bear out"),
    "tensor-nonfinite": Rule(
        Severity.ERROR, "weights that are infinite or no numbers (looked for with --deep)", at_pack=False
    ),
    "tensor-zero": Rule(Severity.WARNING, "a matrix of nothing but zeros (looked for with --deep)", at_pack=False),
    "tensor-duplicate": Rule(
        Severity.WARNING, "two matrices with the same content (looked for with --deep)", at_pack=False
    ),
    "index-missing": Rule(Severity.WARNING, "a tensor index that is stated and cannot be had", at_pack=False),
    "unreadable": Rule(Severity.WARNING, "an artifact that could not be packed again as it is", at_pack=False),
    "file-skipped": Rule(Severity.INFO, "a file or folder that is not packed"),
}
"""Every code."""

CODE = frozenset({"auto-map", "python-code"})
"""Findings that, allowed, let Python of a checkpoint be run by a program that looks for it."""


@dataclass(frozen=True)
class Finding:
    """One finding. `path` is the file it was made in, relative to the checkpoint, or empty."""

    code: str
    message: str
    path: str = ""

    @property
    def severity(self) -> Severity:
        """The severity of its code."""
        return RULES[self.code].severity

    def to_json(self) -> dict[str, str]:
        """The finding for scripts."""
        return {"code": self.code, "severity": self.severity, "path": self.path, "message": self.message}

    def __str__(self) -> str:
        return f"{self.path}: {self.message} [{self.code}]" if self.path else f"{self.message} [{self.code}]"


class FindingsRefused(StowageError):
    """Findings of error severity that were not allowed."""

    code = "findings"

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        codes = sorted({finding.code for finding in findings if RULES[finding.code].allowable})
        told = "; ".join(map(str, findings[:3])) + (f"; and {len(findings) - 3} more" if len(findings) > 3 else "")
        allow = f" (--allow {' --allow '.join(codes)} packs it all the same)" if codes else ""
        super().__init__(f"{told}{allow}")


def check_allowed(codes: Iterable[str]) -> frozenset[str]:
    """The codes a user allows. Raises `InvalidInput` on an unknown one, and on one that can never be allowed."""
    allowed = frozenset(codes)
    for code in sorted(allowed):
        rule = RULES.get(code)
        if rule is None:
            known = ", ".join(sorted(name for name, rule in RULES.items() if rule.allowable))
            raise InvalidInput(f"--allow {code[:40]}: no such finding (known: {known})")
        if not rule.allowable:
            raise InvalidInput(f"--allow {code}: this finding cannot be allowed")
    return allowed


def enforce(findings: Iterable[Finding], allowed: Collection[str] = ()) -> None:
    """Raise `FindingsRefused` if any finding is an error that is not allowed."""
    refused = [
        finding
        for finding in findings
        if finding.severity is Severity.ERROR and not (finding.code in allowed and RULES[finding.code].allowable)
    ]
    if refused:
        raise FindingsRefused(refused)
