"""YAML files written by people, read strictly: bounded, without aliases, every mistake pointed at with its line.

Only plain mappings, lists and scalars are read; no tag constructs anything. Source: YAML 1.1 as PyYAML reads it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NoReturn

import yaml

from artifact.errors import InvalidInput

MAX_BYTES = 1024 * 1024
"""Largest file that is read, in bytes."""

MAX_DEPTH = 16
_INTEGER = re.compile(r"0|[1-9][0-9]{0,8}")  # 010 is ten to one reader of YAML and eight to another


@dataclass(frozen=True)
class Value:
    """A scalar, list or mapping with the place it stands at. Exactly one of the three is set."""

    source: str
    line: int
    what: str = "the document"
    scalar: str | None = None
    plain: bool = False
    items: tuple[Value, ...] | None = None
    entries: dict[str, Value] | None = None
    key_line: int = 0

    def fail(self, message: str) -> NoReturn:
        """Raise `InvalidInput` that points here."""
        raise InvalidInput(f"{self.source}:{self.line}: {message}")

    def text(self) -> str:
        """The value as text. A word YAML reads as something else (yes, 1, null) has to be quoted."""
        if self.scalar is None or not self.scalar:
            self.fail(f"{self.what} must be text")
        if self.plain and _is_other_than_text(self.scalar):
            self.fail(f"{self.what} must be text: put {self.scalar!r} in quotes")
        return self.scalar

    def integer(self) -> int:
        """The value as a whole number that is not negative."""
        if self.scalar is None or not self.plain or not _INTEGER.fullmatch(self.scalar):
            self.fail(f"{self.what} must be a whole number")
        return int(self.scalar)

    def choice(self, *words: str) -> str:
        """The value as one of `words`."""
        if self.scalar not in words:
            self.fail(f"{self.what} must be {' or '.join(words)}")
        return self.scalar

    def scalar_value(self) -> str | int | bool:
        """The value as JSON would have it: text, a whole number, or true or false."""
        if self.plain and self.scalar in ("true", "false"):
            return self.scalar == "true"
        if self.scalar is not None and self.plain and _INTEGER.fullmatch(self.scalar):
            return int(self.scalar)
        return self.text()

    def sequence(self) -> tuple[Value, ...]:
        """The value as a list."""
        if self.items is None:
            self.fail(f"{self.what} must be a list")
        return self.items

    def mapping(self, *known: str) -> dict[str, Value]:
        """The value as a mapping with no other keys than `known`; any keys if `known` is empty."""
        if self.entries is None:
            self.fail(f"{self.what} must be a mapping")
        for key, value in self.entries.items():
            if known and key not in known:
                replace(value, line=value.key_line).fail(
                    f"unknown key {key!r} in {self.what} (known: {', '.join(known)})"
                )
        return self.entries

    def required(self, fields: Mapping[str, Value], key: str) -> Value:
        """`fields[key]`, of the `fields` this mapping has."""
        if key not in fields:
            self.fail(f"{key!r} is missing")
        return fields[key]


def _is_other_than_text(plain: str) -> bool:
    resolver = yaml.resolver.Resolver()
    tag = resolver.resolve(yaml.ScalarNode, plain, (True, False))  # type: ignore[no-untyped-call]
    return str(tag) != "tag:yaml.org,2002:str"


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


def load(raw: bytes, source: str) -> Value:
    """Read one YAML document. `source` names the file in errors. Raises `InvalidInput`."""
    if len(raw) > MAX_BYTES:
        raise InvalidInput(f"{source} is larger than {MAX_BYTES} bytes")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidInput(f"{source} is not UTF-8 text") from None
    try:
        return _document(yaml.parse(text, Loader=yaml.SafeLoader), source)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        reason = error.problem or error.context or "it cannot be read"
        if "alias" in (error.context or ""):
            reason = "a value that begins with * must be in quotes"
        raise InvalidInput(f"{source}:{line}: not valid YAML: {reason}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else "it cannot be read"
        raise InvalidInput(f"{source}: not valid YAML: {reason}") from None


def _document(events: Iterator[yaml.Event], source: str) -> Value:
    result: Value | None = None
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            if result is not None:
                raise InvalidInput(f"{source}:{_line(event)}: a second document: write one only")
            result = _value(next(events), events, source, "the document", 0)
    if result is None:
        raise InvalidInput(f"{source} is empty")
    return result


def _value(event: yaml.Event, events: Iterator[yaml.Event], source: str, what: str, depth: int) -> Value:
    line = _line(event)
    here = Value(source, line, what)
    if isinstance(event, yaml.AliasEvent):
        here.fail("aliases are not read: write the value out, and quote a value that begins with *")
    if depth > MAX_DEPTH:
        here.fail(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(event, yaml.NodeEvent) and event.anchor is not None:
        here.fail("anchors are not read: quote a value that begins with &")
    if getattr(event, "tag", None) is not None:
        here.fail("tags are not read: quote a value that begins with !")
    if isinstance(event, yaml.ScalarEvent):
        if any("\ud800" <= character <= "\udfff" for character in event.value):
            here.fail(f"{what} is not Unicode text")
        return Value(source, line, what, scalar=event.value, plain=event.implicit[0])
    if isinstance(event, yaml.SequenceStartEvent):
        items = []
        while not isinstance(inner := next(events), yaml.SequenceEndEvent):
            items.append(_value(inner, events, source, f"an item of {what}", depth + 1))
        return Value(source, line, what, items=tuple(items))
    return Value(source, line, what, entries=_entries(here, events, depth))


def _entries(here: Value, events: Iterator[yaml.Event], depth: int) -> dict[str, Value]:
    entries: dict[str, Value] = {}
    while not isinstance(event := next(events), yaml.MappingEndEvent):
        key = _value(event, events, here.source, "a key", depth + 1)
        if key.scalar is None:
            key.fail("a key must be text")
        if key.scalar in entries:
            key.fail(f"{key.scalar!r} is given twice")
        value = _value(next(events), events, here.source, repr(key.scalar), depth + 1)
        entries[key.scalar] = replace(value, key_line=key.line)
    return entries
