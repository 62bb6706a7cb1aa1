"""A TOML document that knows on which line everything stands.

`tomllib` tells where a document breaks the grammar, and of a valid one nothing more. What is wrong with a *setting* has
to be told with its line too, so the text of a document that `tomllib` has accepted is walked once more for positions.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from artifact.errors import InvalidInput

MAX_BYTES = 1024 * 1024
"""Largest document that is read, in bytes."""

_Key = tuple[str | int, ...]
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_STRING = re.compile(
    r'"""(?:\\.|(?!""").)*"{3,5}'
    r"|'''(?:(?!''').)*'{3,5}"
    r'|"(?:\\.|[^"\\])*"'
    r"|'[^']*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}\n#]*")
_TOML_ERROR = re.compile(r" \(at line (\d+), column \d+\)$")
_DURATION = re.compile(r"([1-9][0-9]{0,8})(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class _Positions:
    """The line of every key, table and element of a document that has been accepted by `tomllib`."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._counts: dict[_Key, int] = {}
        self.lines: dict[_Key, int] = {(): 1}
        self._document()

    def _document(self) -> None:
        base: _Key = ()
        while self._skip() < len(self._text):
            if self._text.startswith("[[", self._at):
                base = self._header(2)
            elif self._text[self._at] == "[":
                base = self._header(1)
            else:
                self._pair(base)

    def _skip(self) -> int:
        found = _BLANK.match(self._text, self._at)
        self._at = found.end() if found else self._at
        return self._at

    def _mark(self, path: _Key) -> None:
        line = self._text.count("\n", 0, self._at) + 1
        for end in range(1, len(path) + 1):
            self.lines.setdefault(path[:end], line)

    def _header(self, brackets: int) -> _Key:
        start = self._at
        self._at += brackets
        names = self._names()
        self._at = self._text.index("]", self._at) + brackets
        path: _Key = ()
        for position, name in enumerate(names):
            path = (*path, name)
            if brackets == 2 and position == len(names) - 1:
                self._counts[path] = self._counts.get(path, -1) + 1
            if path in self._counts:
                path = (*path, self._counts[path])
        end, self._at = self._at, start
        self._mark(path)
        self._at = end
        return path

    def _names(self) -> list[str]:
        names = []
        while True:
            self._skip()
            bare = _BARE.match(self._text, self._at)
            found = bare or _STRING.match(self._text, self._at)
            assert found is not None, "tomllib has accepted this"
            names.append(found[0] if bare else next(iter(tomllib.loads(f"{found[0]} = 0"))))
            self._at = found.end()
            self._skip()
            if self._text[self._at] != ".":
                return names
            self._at += 1

    def _pair(self, base: _Key) -> None:
        start = self._at
        path = (*base, *self._names())
        end, self._at = self._at, start
        self._mark(path)
        self._at = end + 1  # the equals sign
        self._value(path)

    def _value(self, path: _Key) -> None:
        self._skip()
        first = self._text[self._at]
        if first in "[{":
            self._collection(path, "]" if first == "[" else "}")
            return
        found = _STRING.match(self._text, self._at) or _SCALAR.match(self._text, self._at)
        self._at = found.end() if found else self._at

    def _collection(self, path: _Key, end: str) -> None:
        self._at += 1
        index = 0
        while self._skip() < len(self._text) and self._text[self._at] != end:
            if end == "]":
                self._mark((*path, index))
                self._value((*path, index))
                index += 1
            else:
                self._pair(path)
            self._skip()
            self._at += self._text[self._at] == ","
        self._at += 1


@dataclass(frozen=True)
class Node:
    """A value of a document, with the place it stands at for messages."""

    value: Any
    path: _Key
    source: str
    lines: Mapping[_Key, int]

    @property
    def line(self) -> int:
        """The line it stands on, or that of what contains it."""
        path = self.path
        while path not in self.lines:
            path = path[:-1]
        return self.lines[path]

    def fail(self, message: str) -> NoReturn:
        """Raise `InvalidInput` that points at this value."""
        name = ".".join(str(part) for part in self.path if isinstance(part, str))
        raise InvalidInput(f"{self.source}:{self.line}: {f'{name}: ' if name else ''}{message}")

    def table(self, *known: str) -> dict[str, Node]:
        """The members of a table, none of which may be another than `known`; any where none is given."""
        if not isinstance(self.value, dict):
            self.fail("must be a table")
        members = {key: Node(item, (*self.path, key), self.source, self.lines) for key, item in self.value.items()}
        for key, member in members.items():
            if known and key not in known:
                member.fail(f"there is no such setting; known here: {', '.join(sorted(known))}")
        return members

    def required(self, members: Mapping[str, Node], key: str) -> Node:
        """A member that must be there."""
        if key not in members:
            self.fail(f"{key!r} is missing")
        return members[key]

    def items(self) -> list[Node]:
        """The elements of an array."""
        if not isinstance(self.value, list):
            self.fail("must be an array")
        return [Node(item, (*self.path, number), self.source, self.lines) for number, item in enumerate(self.value)]

    def text(self) -> str:
        """A string that is not empty."""
        if not isinstance(self.value, str) or not self.value:
            self.fail("must be a string that is not empty")
        return self.value

    def texts(self) -> tuple[str, ...]:
        """An array of at least one string."""
        found = tuple(item.text() for item in self.items())
        if not found:
            self.fail("must not be empty")
        return found

    def boolean(self) -> bool:
        """true or false."""
        if not isinstance(self.value, bool):
            self.fail("must be true or false")
        return self.value

    def number(self, least: float, most: float) -> float:
        """A number within bounds."""
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            self.fail("must be a number")
        if not least <= self.value <= most:
            self.fail(f"must be from {least:g} to {most:g}")
        return float(self.value)

    def integer(self, least: int, most: int) -> int:
        """A whole number within bounds."""
        if isinstance(self.value, bool) or not isinstance(self.value, int):
            self.fail("must be a whole number")
        return int(self.number(least, most))

    def choice(self, *choices: str) -> str:
        """One of some words."""
        if self.value not in choices:
            self.fail(f"must be one of {', '.join(choices)}")
        return self.text()

    def duration(self, least: int, most: int) -> int:
        """A length of time in seconds, written ``90s``, ``15m``, ``12h`` or ``30d``."""
        seconds = parse_duration(self.value) if isinstance(self.value, str) else None
        if seconds is None:
            self.fail('must be a length of time such as "90s", "15m", "12h" or "30d"')
        if not least <= seconds <= most:
            self.fail(f"must be from {least} to {most} seconds")
        return seconds

    def file(self) -> Path:
        """A path, relative to the folder the document lies in."""
        text = self.text()
        if "\0" in text:
            self.fail("not a path")
        return Path(self.source).parent / Path(text).expanduser()


def parse_duration(text: str) -> int | None:
    """Seconds of ``90s``, ``15m``, ``12h`` or ``30d``; None if it is none of these."""
    found = _DURATION.fullmatch(text)
    return int(found[1]) * _SECONDS[found[2]] if found else None


def parse(raw: bytes, source: str) -> Node:
    """Read a document; `source` names it in messages. Raises `InvalidInput`."""
    if len(raw) > MAX_BYTES:
        raise InvalidInput(f"{source} is larger than {MAX_BYTES} bytes")
    try:
        text = raw.decode("utf-8")
        value = tomllib.loads(text)
    except UnicodeDecodeError:
        raise InvalidInput(f"{source} is not UTF-8 text") from None
    except RecursionError:
        raise InvalidInput(f"{source} is nested too deeply") from None
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        found = _TOML_ERROR.search(message)
        where, said = (f":{found[1]}", message[: found.start()]) if found else ("", message)
        raise InvalidInput(f"{source}{where}: {said}") from None
    return Node(value, (), source, _Positions(text).lines)
