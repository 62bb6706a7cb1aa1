"""The JSON files of a checkpoint folder, read with bounds and with types."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifact.errors import Malformed, NotFound
from packager.jsonfile import load_lenient

MAX_CONFIG = 4 * 1024 * 1024
MAX_TOKENIZER = 128 * 1024 * 1024
"""Largest config.json and tokenizer.json that are read, in bytes. Vocabularies of 260,000 tokens take 35 MB."""

_MAX_INTEGER = 2**32 - 1
_ABSENT = object()


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a small file. Raises `NotFound` if there is none, `Malformed` if it is larger than `limit`."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(limit + 1)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise NotFound(f"{path.parent} has no {path.name}") from None
    if len(raw) > limit:
        raise Malformed(f"{path} is larger than {limit} bytes")
    return raw


def read_text(path: Path, limit: int) -> str:
    """A small UTF-8 text file. Raises `NotFound` or `Malformed`, naming the file."""
    try:
        return read_bytes(path, limit).decode()
    except UnicodeDecodeError:
        raise Malformed(f"{path} is not UTF-8 text") from None


def read_object(path: Path, limit: int = MAX_CONFIG) -> Fields:
    """A JSON object. Raises `NotFound` or `Malformed`, naming the file."""
    return Fields(path.name, load_lenient(read_bytes(path, limit), str(path), limit))


def read_object_if_any(path: Path, limit: int = MAX_CONFIG) -> Fields:
    """A JSON object, empty if the file does not exist."""
    return read_object(path, limit) if path.is_file() else Fields(path.name, {})


@dataclass(frozen=True)
class Fields:
    """The fields of a JSON object; `where` names the object in errors. A field that is null counts as absent.

    Every accessor raises `Malformed` if the field has another type or, with no default, is absent.
    """

    where: str
    values: Mapping[str, Any]

    def get(self, key: str) -> Any:
        """The value as it stands, None if there is none."""
        return self.values.get(key)

    def integer(self, key: str, default: Any = _ABSENT, minimum: int = 1) -> int:
        """A whole number from `minimum` to what 32 bits hold."""
        value = self._value(key, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= _MAX_INTEGER:
            raise Malformed(f"{self.where}: {key} must be a whole number of at least {minimum}, not {_shown(value)}")
        return value

    def number(self, key: str, default: Any = _ABSENT) -> float:
        """A finite number above zero."""
        value = self._value(key, default)
        valid = isinstance(value, int | float) and not isinstance(value, bool)
        if not valid or not 0 < value < 1e38 or not math.isfinite(value):
            raise Malformed(f"{self.where}: {key} must be a number above zero, not {_shown(value)}")
        return float(value)

    def text(self, key: str, default: Any = _ABSENT) -> str:
        """A string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise Malformed(f"{self.where}: {key} must be a string, not {_shown(value)}")
        return value

    def flag(self, key: str, default: Any = _ABSENT) -> bool:
        """True or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise Malformed(f"{self.where}: {key} must be true or false, not {_shown(value)}")
        return value

    def items(self, key: str) -> list[Any]:
        """A list, empty if absent."""
        value = self._value(key, [])
        if not isinstance(value, list):
            raise Malformed(f"{self.where}: {key} must be a list, not {_shown(value)}")
        return value

    def object(self, key: str) -> Fields:
        """An object, empty if absent."""
        return self.nested(key, self._value(key, {}))

    def nested(self, name: str, value: Any) -> Fields:
        """`value`, which must be an object, as fields known by `name`."""
        if not isinstance(value, dict):
            raise Malformed(f"{self.where}: {name} must be an object, not {_shown(value)}")
        return Fields(f"{self.where}: {name}", value)

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None:
            if default is _ABSENT:
                raise Malformed(f"{self.where} has no {key}")
            return default
        return value


def _shown(value: Any) -> str:
    return repr(value)[:60]
