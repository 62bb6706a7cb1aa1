"""Allow-lists for the flags users pass to an engine after ``--``.

Only what is listed passes, in the value it is listed with: a flag that writes a file, opens a socket, fetches from a
network, loads code or contradicts what the runner set is not listed (CVE-2026-28400). The list is the engine's own, so
it is checked after dispatch has chosen the engine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from artifact.errors import InvalidInput, Refused, StowageError
from artifact.filepath import checked_path
from supplychain.usage import TRUST_REMOTE_CODE

_INT = re.compile(r"-?[0-9]{1,18}")
_FLOAT = re.compile(r"-?(?:[0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18})(?:[eE][+-]?[0-9]{1,3})?")
_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,:+=@-]{0,255}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_MAX_JSON = 16 * 1024


class FlagDenied(InvalidInput):
    """A flag the runner does not hand to the engine."""

    code = "flag-denied"


class FlagNotGranted(Refused):
    """A flag that makes the engine run code of the model, where no policy grants it."""

    code = "flag-not-granted"


@dataclass(frozen=True)
class Flag:
    """One allowed flag. `kind` is ``switch`` (no value), ``int``, ``float``, ``word`` (no slash, so never a path),
    ``numbers`` (comma-separated), ``json``, ``file`` (the path of one of the model's own files), ``adapter``
    (``NAME=FOLDER`` with a folder of the model), or the allowed words themselves separated by ``|``. `aliases` are
    other spellings. With `granted` it passes only where the policy lets code of the model run."""

    name: str
    kind: str
    aliases: Sequence[str] = ()
    granted: bool = False

    def accepts(self, value: str) -> bool:
        """Whether `value` is one this flag may have."""
        if self.kind == "int":
            return _INT.fullmatch(value) is not None
        if self.kind == "float":
            return _FLOAT.fullmatch(value) is not None
        if self.kind == "word":
            return _WORD.fullmatch(value) is not None
        if self.kind == "numbers":
            return all(_FLOAT.fullmatch(part) for part in value.split(","))
        if self.kind == "json":
            return _is_plain_json(value)
        if self.kind == "file":
            return _is_inside(value)
        if self.kind == "adapter":
            name, equals, folder = value.partition("=")
            return bool(equals) and _NAME.fullmatch(name) is not None and _is_inside(folder)
        return value in self.kind.split("|")


class AllowList:
    """The flags of one engine."""

    def __init__(self, engine: str, flags: Sequence[Flag], denied: Mapping[str, str]) -> None:
        self._engine = engine
        self._denied = denied
        self._flags = {name: flag for flag in flags for name in (flag.name, *flag.aliases)}

    @property
    def flags(self) -> Sequence[Flag]:
        """Every allowed flag once."""
        return list(dict.fromkeys(self._flags.values()))

    def check(self, arguments: Sequence[str], *, code: bool = False) -> tuple[str, ...]:
        """`arguments` in the canonical spelling, ``--name value``. `code` says that the policy lets code of the model
        run. Raises `FlagDenied` for the first one that may not pass, saying why, and `FlagNotGranted`."""
        passed: list[str] = []
        seen: set[str] = set()
        rest = list(arguments)
        while rest:
            written = rest.pop(0)
            name, equals, value = written.partition("=")
            flag = self._flags.get(name)
            if flag is None:
                raise FlagDenied(self._why_not(name))
            if flag.granted and not code:
                raise FlagNotGranted(
                    f"flag {name} makes {self._engine} run code of the model: no policy grants that for this model "
                    f"(allow: [{TRUST_REMOTE_CODE}] in a rule of its policy)"
                )
            if flag.name in seen:
                raise FlagDenied(f"flag {name} is given twice")
            seen.add(flag.name)
            passed.append(flag.name)
            if flag.kind == "switch":
                if equals:
                    raise FlagDenied(f"flag {name} takes no value")
                continue
            if not equals:
                if not rest:
                    raise FlagDenied(f"flag {name} needs a value")
                value = rest.pop(0)
            if not flag.accepts(value):
                wanted = flag.kind.replace("|", ", ")
                raise FlagDenied(f"flag {name} cannot have the value {value[:80]!r}: it takes {wanted}")
            passed.append(value)
        return tuple(passed)

    def in_bundle(self, checked: Sequence[str], paths: Collection[str], bundle: str) -> tuple[str, ...]:
        """Flags that `check` let pass, with the values that name files of the model made paths in the folder `bundle`.
        `paths` are the files the model has. Raises `FlagDenied` for one it does not have."""
        passed = list(checked)
        for at, name in enumerate(checked):
            flag = self._flags.get(name)
            if flag is None or flag.kind not in ("file", "adapter"):
                continue
            label, equals, path = passed[at + 1].rpartition("=") if flag.kind == "adapter" else ("", "", passed[at + 1])
            wanted = f"{path}/adapter_config.json" if flag.kind == "adapter" else path
            if wanted not in paths:
                raise FlagDenied(f"flag {name} names {wanted!r}, which the verified model does not have")
            passed[at + 1] = f"{label}{equals}{bundle}/{path}"
        return tuple(passed)

    def _why_not(self, name: str) -> str:
        if not name.startswith("-"):
            return f"{name[:80]!r} is not a flag of {self._engine}: flags come after --, each with its value"
        reason = self._denied.get(name)
        if reason:
            return f"flag {name} is not passed to {self._engine}: {reason}"
        return f"flag {name[:80]} is not on the list of flags that may be passed to {self._engine}"


def _is_inside(path: str) -> bool:
    """Whether `path` is one an artifact may give a file: relative, normalised, inside."""
    try:
        return checked_path(path) == path
    except StowageError:
        return False


def _is_plain_json(value: str) -> bool:
    """Whether `value` is a JSON object of modest size that names no file, module or address."""
    if len(value) > _MAX_JSON:
        return False
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        return False
    return isinstance(parsed, dict) and "/" not in value and "\\" not in value
