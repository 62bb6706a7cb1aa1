"""``WWW-Authenticate`` headers. Source: RFC 9110 section 11.6.1; distribution's token specification."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105  the grammar's word for a word
_PARAMETER = re.compile(rf'\s*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))\s*(?:,|$)')
_SCHEME = re.compile(rf"\s*({_TOKEN})(?:\s+|$)")
_MAX_HEADER = 8192


@dataclass(frozen=True)
class Challenge:
    """One scheme (lower case) with its parameters (names in lower case)."""

    scheme: str
    parameters: dict[str, str] = field(default_factory=dict)


def parse_challenges(header: str) -> list[Challenge]:
    """The challenges a header holds, in order. What cannot be read is left out."""
    challenges: list[Challenge] = []
    position, header = 0, header[:_MAX_HEADER]
    while position < len(header):
        scheme = _SCHEME.match(header, position)
        if scheme is None:
            break
        position = scheme.end()
        parameters: dict[str, str] = {}
        while match := _PARAMETER.match(header, position):
            value = match[3] if match[2] is None else re.sub(r"\\(.)", r"\1", match[2])
            parameters.setdefault(match[1].lower(), value)
            position = match.end()
        challenges.append(Challenge(scheme[1].lower(), parameters))
    return challenges
