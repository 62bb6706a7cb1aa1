"""Conditions on what an attestation says: a place in its predicate, and a test of the value there.

A condition holds if there is a value at its place, and every value there passes: what is missing never passes. Plain
functions of the predicate.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from supplychain.age import Age, read_age
from supplychain.glob import MAX_LENGTH, matches
from supplychain.predicate import CYCLONEDX, PROVENANCE, SCAN, short_name
from supplychain.strictyaml import Value

MAX_TEXT = 4096
"""Longest text a pattern is tried on, in characters; a longer one does not match."""

_MAX_SEGMENTS = 32
_TESTS = ("equals", "one-of", "glob", "max-age")
_ANY = "*"
_ESCAPE = re.compile(r"~(?![01])")
_MISSING = object()

Scalar = str | int | bool


@dataclass(frozen=True)
class Place:
    """Where in a predicate: a JSON pointer (RFC 6901) in which ``*`` stands for every element of a list, or every
    member of an object."""

    segments: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Place:
        """Read a pointer. Raises `ValueError`."""
        segments = text.split("/")
        if len(text) > MAX_LENGTH or segments[0] or not 1 < len(segments) <= _MAX_SEGMENTS or _ESCAPE.search(text):
            raise ValueError(f"{text[:80]!r} is not a path: want /KEY/KEY, with * for every element")
        return cls(tuple(segment.replace("~1", "/").replace("~0", "~") for segment in segments[1:]))

    def select(self, predicate: Any) -> list[Any]:
        """The values at the place, at least one; `_MISSING` wherever the way there ends early."""
        found = [predicate]
        for segment in self.segments:
            found = [inner for value in found for inner in _step(value, segment)]
        return found


def _step(value: Any, segment: str) -> Sequence[Any]:
    if segment == _ANY and isinstance(value, list | dict):
        # Nothing there is no reason to be content.
        return list(value.values() if isinstance(value, dict) else value) or [_MISSING]
    if isinstance(value, dict):
        return [value.get(segment, _MISSING)]
    if isinstance(value, list) and segment.isascii() and segment.isdecimal() and len(segment) < 7:
        return [value[int(segment)] if int(segment) < len(value) else _MISSING]
    return [_MISSING]


def _licenses(predicate: Any) -> list[Any]:
    """The licences of a CycloneDX document's main component, by identifier, name, or expression."""
    found: list[Any] = []
    for item in Place.parse("/metadata/component/licenses/*").select(predicate):
        license_ = item.get("license") if isinstance(item, dict) else None
        if isinstance(license_, dict):
            found.append(license_.get("id", license_.get("name", _MISSING)))
        elif isinstance(item, dict) and isinstance(item.get("expression"), str):
            # Licences that all apply are as many; of other expressions the whole has to be in the set.
            expression = item["expression"]
            found += [expression] if " OR " in expression.upper() else expression.split(" AND ")
        else:
            found.append(_MISSING)
    return found


_READY: Mapping[str, tuple[str, Callable[[Any], list[Any]]]] = {
    "builder": (PROVENANCE, Place.parse("/runDetails/builder/id").select),
    "source": (PROVENANCE, Place.parse("/buildDefinition/externalParameters/sourceURL").select),
    "precision": (PROVENANCE, Place.parse("/buildDefinition/externalParameters/precision").select),
    "license": (CYCLONEDX, _licenses),
    "verdict": (SCAN, Place.parse("/verdict").select),
}
"""Conditions with a name: the predicate type they are about, and where its value stands."""


@dataclass(frozen=True)
class Condition:
    """One condition. `name` is how the policy writes its place, `test` one of ``equals``, ``one-of``, ``glob`` and
    ``max-age``, which reads the value as a time (RFC 3339)."""

    name: str
    select: Callable[[Any], list[Any]]
    test: str
    wanted: tuple[Scalar, ...]
    age: Age | None = None

    def unmet(self, predicate: Mapping[str, Any], now: datetime | None = None) -> str | None:
        """Why the condition does not hold for `predicate` at the time `now`, in words; None if it holds."""
        for value in self.select(predicate):
            if value is _MISSING:
                return f"{self.name} is missing, must {self}"
            if not self._passes(value, now):
                return f"{self.name} is {_shown(value)}, must {self}"
        return None

    def _passes(self, value: Any, now: datetime | None) -> bool:
        if self.age is not None:
            time = _time(value)
            return time is not None and self.age.exceeded(time, now) is None
        if self.test == "glob":
            pattern = str(self.wanted[0])
            return isinstance(value, str) and len(value) <= MAX_TEXT and matches(pattern, value)
        # By type as well: to Python, true is 1.
        return any(type(value) is type(wanted) and value == wanted for wanted in self.wanted)

    def __str__(self) -> str:
        values = ", ".join(map(repr, self.wanted))[:400]
        words = {"equals": "be ", "one-of": "be one of ", "glob": "match ", "max-age": "be a time no older than "}
        return words[self.test] + (str(self.age) if self.age is not None else values)


def _time(value: Any) -> datetime | None:
    try:
        time = datetime.fromisoformat(value) if isinstance(value, str) and len(value) < 64 else None
    except ValueError:
        return None
    return time if time is not None and time.tzinfo is not None else None


def _shown(value: Any) -> str:
    if isinstance(value, str | int | float) or value is None:
        return repr(value if not isinstance(value, str) else value[:80])[:100]
    return "a list" if isinstance(value, list) else "an object"


def read_condition(value: Value, type_: str) -> Condition:
    """Read one condition on attestations of the predicate type `type_`. Raises `InvalidInput`."""
    fields = value.mapping("path", *_TESTS, *_READY)
    if "path" in fields:
        path = fields["path"]
        tests = value.mapping("path", *_TESTS)
        try:
            place = Place.parse(path.text())
        except ValueError as error:
            path.fail(str(error))
        return _tested(path.text(), place.select, value, {name: test for name, test in tests.items() if name != "path"})
    if len(fields) != 1 or (name := next(iter(fields))) not in _READY:
        value.fail(f"a condition is path and {_or(_TESTS)}, or one of {', '.join(_READY)}")
    about, select = _READY[name]
    if about != type_:
        value.fail(f"{name} is a condition on {short_name(about)}, not on {short_name(type_)}: give a path")
    stated = fields[name]
    tests = {"equals": stated} if stated.scalar is not None else stated.mapping(*_TESTS)
    return _tested(name, select, stated, tests)


def _tested(name: str, select: Callable[[Any], list[Any]], value: Value, tests: Mapping[str, Value]) -> Condition:
    if len(tests) != 1:
        value.fail(f"a condition has one of {_or(_TESTS)}")
    test, wanted = next(iter(tests.items()))
    values = wanted.sequence() if test == "one-of" else (wanted,)
    if not values:
        wanted.fail("'one-of' is empty: nothing could satisfy it")
    if test == "max-age":
        return Condition(name, select, test, (), read_age(wanted))
    if test == "glob":
        pattern = wanted.text()
        if len(pattern) > MAX_LENGTH or "***" in pattern:
            wanted.fail(f"a pattern has * and **, and at most {MAX_LENGTH} characters")
        return Condition(name, select, test, (pattern,))
    return Condition(name, select, test, tuple(item.scalar_value() for item in values))


def _or(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
