"""Compose files as YAML: bounded, with anchors and merge keys, every value with the line it stands at.

Only the parts somebody asks for are read, so that whatever else a Compose file holds is no concern of ours. Sources:
YAML 1.1, "Merge Key Language-Independent Type", Compose specification ("Fragments").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import yaml

from artifact.errors import InvalidInput
from supplychain.strictyaml import Value

MAX_BYTES = 1024 * 1024
"""Largest Compose file that is read, in bytes."""

MAX_NODES = 20_000
"""Most values that are read from one file, those that aliases repeat counted each time."""

_MAX_DEPTH = 32
_MERGE = "tag:yaml.org,2002:merge"
_PLAIN_TAG = "tag:yaml.org,2002:"

Interpolate = Callable[[str], str]
"""Fills variables into one scalar. Raises `InvalidInput` with the reason only."""


class Document:
    """One YAML file whose top level is a mapping. `name` is what errors call it."""

    def __init__(self, raw: bytes, name: str) -> None:
        if len(raw) > MAX_BYTES:
            raise InvalidInput(f"{name} is larger than {MAX_BYTES} bytes")
        self.name = name
        try:
            root = yaml.compose(raw.decode("utf-8-sig"), Loader=yaml.SafeLoader)
        except UnicodeDecodeError:
            raise InvalidInput(f"{name} is not UTF-8 text") from None
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise InvalidInput(f"{name}:{line}: not valid YAML: {error.problem or error.context}") from None
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else "it cannot be read"
            raise InvalidInput(f"{name}: not valid YAML: {reason}") from None
        if not isinstance(root, yaml.MappingNode):
            raise InvalidInput(f"{name} is not a Compose file: its top level must be a mapping")
        self._root = root

    @classmethod
    def load(cls, path: Path) -> Document:
        """Read a file. Raises `InvalidInput`."""
        try:
            with path.open("rb") as stream:
                return cls(stream.read(MAX_BYTES + 1), str(path))
        except OSError as error:
            raise InvalidInput(f"cannot read {path}: {error.strerror}") from None

    def find(self, *keys: str) -> yaml.Node | None:
        """The node at a path of keys, merge keys followed; None if it is not there."""
        reader = _Reader(self.name, lambda text: text)
        node: yaml.Node = self._root
        for key in keys:
            if not isinstance(node, yaml.MappingNode):
                return None
            found = next((value for name, value in reader.pairs(node, 0) if name.value == key), None)
            if found is None:
                return None
            node = found
        return node

    def keys(self, *path: str) -> list[str]:
        """The keys of the mapping at a path; none if there is no mapping."""
        node = self.find(*path)
        if not isinstance(node, yaml.MappingNode):
            return []
        return [name.value for name, _ in _Reader(self.name, lambda text: text).pairs(node, 0)]

    def value(self, what: str, interpolate: Interpolate, *path: str) -> Value | None:
        """The value at a path with its variables filled in, None if there is nothing. Raises `InvalidInput`."""
        node = self.find(*path)
        if node is None or _is_null(node):
            return None
        return _Reader(self.name, interpolate).value(node, what, 0)


class _Reader:
    """Turns nodes into values, within bounds."""

    def __init__(self, source: str, interpolate: Interpolate) -> None:
        self._source = source
        self._interpolate = interpolate
        self._left = MAX_NODES

    def value(self, node: yaml.Node, what: str, depth: int) -> Value:
        line = _line(node)
        here = Value(self._source, line, what)
        self._left -= 1
        if self._left < 0 or depth > _MAX_DEPTH:  # an alias may stand inside what it names
            here.fail(f"{what} is too large or nested too deeply")
        if not node.tag.startswith(_PLAIN_TAG):
            here.fail(f"the tag {node.tag[:40]} is not read here: write the value out")
        if isinstance(node, yaml.ScalarNode):
            try:
                text = self._interpolate(node.value)
            except InvalidInput as error:
                here.fail(str(error))
            return Value(self._source, line, what, scalar=text, plain=node.style is None)
        if isinstance(node, yaml.SequenceNode):
            items = tuple(self.value(item, f"an item of {what}", depth + 1) for item in node.value)
            return Value(self._source, line, what, items=items)
        entries: dict[str, Value] = {}
        for key, item in self.pairs(node, depth):
            entries[key.value] = replace(self.value(item, repr(key.value), depth + 1), key_line=_line(key))
        return Value(self._source, line, what, entries=entries)

    def pairs(self, node: yaml.Node, depth: int) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
        """The entries of a mapping, what it merges after its own, the first of two equal keys only."""
        seen: set[str] = set()
        merged: list[tuple[yaml.ScalarNode, yaml.Node]] = []
        for key, item in node.value:
            if not isinstance(key, yaml.ScalarNode):
                Value(self._source, _line(key)).fail("a key must be text")
            if key.tag == _MERGE:
                merged += self._merged(item, depth + 1)
            elif key.value in seen:
                Value(self._source, _line(key)).fail(f"{key.value!r} is given twice")
            else:
                seen.add(key.value)
                yield key, item
        for key, item in merged:
            if key.value not in seen:
                seen.add(key.value)
                yield key, item

    def _merged(self, node: yaml.Node, depth: int) -> list[tuple[yaml.ScalarNode, yaml.Node]]:
        here = Value(self._source, _line(node))
        if depth > _MAX_DEPTH:
            here.fail("merge keys are nested too deeply")
        if isinstance(node, yaml.SequenceNode):
            found = [pair for item in node.value for pair in self._merged(item, depth + 1)]
        elif isinstance(node, yaml.MappingNode):
            found = list(self.pairs(node, depth))
        else:
            here.fail("<< must name a mapping or a list of mappings")
        self._left -= len(found)
        if self._left < 0:
            here.fail("the document is too large")
        return found


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1 if node.start_mark else 1


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value in ("", "~", "null", "Null", "NULL")
