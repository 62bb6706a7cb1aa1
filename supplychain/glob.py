"""Reference patterns: which references a rule is about.

A pattern is ``HOST/NAME[:TAG]``, ``NAME[:TAG]`` or ``oci:PATH[:TAG]``, with ``*`` for any characters but ``/`` and
``**`` for any characters at all. ``**`` alone matches everything, layouts included; every other pattern matches a
layout only if it begins with ``oci:``. A pattern without a tag is about every tag.

Hosts are compared in one spelling (`canonical_place`), so that writing a reference otherwise does not change the rule.
"""

from __future__ import annotations

import ipaddress
import re
from contextlib import suppress
from dataclasses import dataclass

from artifact.errors import InvalidInput
from artifact.reference import Reference

_LAYOUT = "oci:"
_ALLOWED = re.compile(r"[A-Za-z0-9._:/*\[\]-]+")
_DEFAULT_PORTS = (":443", ":80")
_HUB = {"index.docker.io": "docker.io", "registry-1.docker.io": "docker.io"}
MAX_LENGTH = 512
"""Longest pattern, in characters."""


@dataclass(frozen=True)
class Target:
    """A reference as rules see it: the place in its one spelling, and the tag if the reference has one."""

    place: str
    tag: str | None = None

    @classmethod
    def of(cls, reference: Reference) -> Target:
        """What rules see of `reference`. The path of an ``oci:`` reference must be absolute and resolved."""
        if reference.layout is not None:
            return cls(f"{_LAYOUT}{reference.layout}", reference.tag)
        return cls(canonical_place(reference.repository) if reference.host else reference.name, reference.tag)

    def __str__(self) -> str:
        return f"{self.place}:{self.tag}" if self.tag else self.place


@dataclass(frozen=True)
class Glob:
    """A reference pattern."""

    text: str

    def __post_init__(self) -> None:
        text = self.text
        if not text or len(text) > MAX_LENGTH:
            raise InvalidInput(f"a reference pattern has 1 to {MAX_LENGTH} characters")
        if text.startswith(_LAYOUT):
            if not text.startswith((f"{_LAYOUT}/", f"{_LAYOUT}**")) or not text.isprintable():
                raise InvalidInput(f"{text!r}: an oci: pattern is an absolute path (oci:/PATH, or oci:**)")
        elif not _ALLOWED.fullmatch(text) or "@" in text or "***" in text:
            raise InvalidInput(
                f"{text!r} is not a reference pattern: HOST/NAME[:TAG] with * (not across /) and ** (across /)"
            )
        if text.endswith(":") or self._split[0] in ("", _LAYOUT):
            raise InvalidInput(f"{text!r} is not a reference pattern: a name or tag is missing")

    @property
    def _split(self) -> tuple[str, str | None]:
        """The pattern of the place and that of the tag."""
        place, colon, tag = self.text.removeprefix(_LAYOUT).rpartition(":")
        if not colon or "/" in tag or "]" in tag:
            return self.text, None
        return (f"{_LAYOUT}{place}" if self.text.startswith(_LAYOUT) else place), tag

    def may_match(self, target: Target) -> bool:
        """Whether the pattern is about `target`, or could be: a reference without a tag may mean any tag."""
        place, tag = self._split
        if not _matches_place(place, target.place):
            return False
        return tag is None or target.tag is None or matches(tag, target.tag)

    def surely_matches(self, target: Target) -> bool:
        """Whether the pattern is about `target` whatever tag a reference without one may mean."""
        tag = self._split[1]
        return self.may_match(target) and (target.tag is not None or tag is None or not tag.strip("*"))


def canonical_place(place: str) -> str:
    """``HOST/NAME`` (or a pattern of it) with the host in its one spelling.

    Lower case, no default port (443, 80), one form of an IPv6 address, one name for Docker Hub and for the images it
    keeps under ``library/``.
    """
    host, slash, name = place.partition("/")
    host = host.lower()
    for port in _DEFAULT_PORTS:
        host = host.removesuffix(port)
    address, bracket, port = host.partition("]")
    if bracket and address.startswith("["):
        with suppress(ValueError):
            host = f"[{ipaddress.IPv6Address(address[1:]).compressed}]{port}"
    host = _HUB.get(host, host)
    if host == "docker.io" and name and "/" not in name and "**" not in name:
        name = f"library/{name}"
    return f"{host}{slash}{name}"


def _matches_place(pattern: str, place: str) -> bool:
    if pattern == "**":
        return True
    if pattern.startswith(_LAYOUT) or place.startswith(_LAYOUT):
        return pattern.startswith(_LAYOUT) == place.startswith(_LAYOUT) and matches(pattern, place)
    return matches(canonical_place(pattern), place)


def matches(pattern: str, text: str) -> bool:
    """Whether `pattern`, with ``*`` for any characters but ``/`` and ``**`` for any, matches the whole `text`.

    Every way is followed at once: the time is bounded by pattern times text, whoever chose them.
    """
    ends = {0}
    for part in re.split(r"(\*\*|\*)", pattern):
        if part == "**":
            ends = set(range(min(ends), len(text) + 1))
        elif part == "*":
            ends = _within_components(text, ends)
        else:
            ends = {start + len(part) for start in ends if text.startswith(part, start)}
        if not ends:
            return False
    return len(text) in ends


def _within_components(text: str, starts: set[int]) -> set[int]:
    """Where one gets from `starts` without crossing a slash."""
    reached: set[int] = set()
    covered = -1  # up to where: a later start in the same component adds nothing
    for start in sorted(starts):
        if start > covered:
            slash = text.find("/", start)
            covered = len(text) if slash < 0 else slash
            reached.update(range(start, covered + 1))
    return reached
