"""What a policy lets be done with an artifact that it allows: on which engines it runs, with which flags, and whether
code that came with it may run.

Engines and flags are free until a rule limits them; every rule that applies has its say. Code is forbidden until a rule
grants it, and a grant reaches only files that the artifact's maker named in a scan: a rule cannot grant what nobody
looked at. All of it is data and plain functions.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from supplychain.glob import matches
from supplychain.refusal import Reason
from supplychain.trace import Step

if TYPE_CHECKING:
    from supplychain.attestation import Attestation
    from supplychain.authority import Authority
    from supplychain.strictyaml import Value

TRUST_REMOTE_CODE = "trust_remote_code"
"""The one thing a rule may ``allow``: that an engine runs Python which came with the model."""

CODE_FINDING, AUTO_MAP_FINDING = "python-code", "auto-map"
"""The findings of a scan that have to be allowed: a file of code, and a config that makes a loader import one."""

_ENGINE = re.compile(r"[A-Za-z0-9*][A-Za-z0-9.*_-]{0,63}(?:==[A-Za-z0-9.*+_-]{1,64})?")
_FLAG = re.compile(r"--?[A-Za-z0-9*][A-Za-z0-9*_-]{0,127}")


@dataclass(frozen=True)
class Use:
    """How an artifact shall be run: the engine's name and version, and the names of the flags it is given."""

    engine: str
    version: str = ""
    flags: Sequence[str] = ()


@dataclass(frozen=True)
class Limits:
    """What one rule lets be used: patterns of engines (``NAME`` or ``NAME==VERSION``) and of flags, None for any."""

    engines: tuple[str, ...] | None = None
    flags: tuple[str, ...] | None = None

    def exceeded(self, use: Use) -> tuple[Reason, str] | None:
        """What of `use` these limits do not let pass, and why; None if all of it does."""
        if self.engines is not None and not any(_is_engine(pattern, use) for pattern in self.engines):
            wanted = ", ".join(self.engines) or "none"
            shown = f"{use.engine} {use.version}".rstrip()
            return Reason.ENGINE_NOT_ALLOWED, f"{shown} is not among its engines: {wanted}"
        for flag in use.flags if self.flags is not None else ():
            if not any(matches(pattern, flag) for pattern in self.flags or ()):
                wanted = ", ".join(self.flags or ()) or "none"
                return Reason.FLAG_NOT_ALLOWED, f"{flag} is not among its flags: {wanted}"
        return None


NO_LIMITS = Limits()


@dataclass(frozen=True)
class Grant:
    """The files of an artifact that may run as code, or name code that does, by their paths."""

    code: frozenset[str] = frozenset()
    configs: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.code or self.configs)

    def __or__(self, other: Grant) -> Grant:
        return Grant(self.code | other.code, self.configs | other.configs)

    def to_json(self) -> dict[str, Any]:
        """The grant as JSON."""
        return {"code": sorted(self.code), "configs": sorted(self.configs)}


NO_CODE = Grant()


def granted(rule: str, scans: Collection[Attestation], *, satisfied: bool, sure: bool) -> tuple[Grant, Step]:
    """What a rule that allows code grants, and the step that says why. `scans` are those that count for the rule;
    `satisfied`: whether the rule is; `sure`: whether it is about the reference whatever tag that may stand for."""
    name = f"{rule}: {TRUST_REMOTE_CODE}"
    if not sure:
        return NO_CODE, Step("grant", name, Reason.NOT_GRANTED, "the reference may mean a tag the rule is not about")
    if not satisfied:
        return NO_CODE, Step("grant", name, Reason.NOT_GRANTED, "the rule is not satisfied")
    found = NO_CODE
    for item in scans:
        if item.statement is not None:
            found |= _allowed_in(item.statement.predicate)
    if not found:
        why = "no scan that counts for the rule has a finding of code that was allowed"
        return NO_CODE, Step("grant", name, Reason.NOT_GRANTED, why)
    shown = ", ".join(sorted(found.code | found.configs))[:400]
    return found, Step("grant", name, Reason.ALLOWED, f"code may run: {shown}")


def _allowed_in(predicate: Any) -> Grant:
    paths: dict[str, set[str]] = {CODE_FINDING: set(), AUTO_MAP_FINDING: set()}
    findings = predicate.get("findings") if isinstance(predicate, dict) else None
    for finding in findings if isinstance(findings, list) else ():
        if isinstance(finding, dict) and finding.get("allowed") is True and isinstance(finding.get("path"), str):
            paths.get(str(finding.get("code")), set()).add(finding["path"])
    return Grant(frozenset(paths[CODE_FINDING]), frozenset(paths[AUTO_MAP_FINDING]))


def read_limits(engines: Value | None, flags: Value | None) -> Limits:
    """Read a rule's ``engines`` and ``flags``. Raises `InvalidInput`."""
    return Limits(
        _patterns(engines, _ENGINE, "an engine is NAME or NAME==VERSION, with * for any characters"),
        _patterns(flags, _FLAG, "a flag begins with - and has no value; * stands for any characters"),
    )


def read_allowed(value: Value | None, authorities: Collection[Authority]) -> bool:
    """Read a rule's ``allow``: whether it grants `TRUST_REMOTE_CODE`. Raises `InvalidInput`."""
    if value is None:
        return False
    words = [item.choice(TRUST_REMOTE_CODE) for item in value.sequence()]
    if words and not authorities:
        value.fail("the rule requires nobody, so nobody could say which code was looked at: write require")
    return bool(words)


def _patterns(value: Value | None, form: re.Pattern[str], what: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    found: list[str] = []
    for item in value.sequence():
        text = item.text()
        if not form.fullmatch(text) or "***" in text:
            item.fail(what)
        found.append(text)
    return tuple(found)


def _is_engine(pattern: str, use: Use) -> bool:
    name, stated, version = pattern.partition("==")
    return matches(name, use.engine) and (not stated or matches(version, use.version))
