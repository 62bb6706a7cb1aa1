"""Variables in Compose files and in ``.env`` files. Source: Compose specification, "Interpolation".

``$VAR``, ``${VAR}``, and with ``:`` an empty variable counting as unset: ``${VAR:-default}`` ``${VAR-default}``
``${VAR:?message}`` ``${VAR?message}`` ``${VAR:+replacement}`` ``${VAR+replacement}``. ``$$`` is a dollar sign. What
stands after the operator may hold variables itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from artifact.errors import InvalidInput

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPERATORS = (":-", ":?", ":+", "-", "?", "+")
_MAX_DEPTH = 16
_MAX_LENGTH = 64 * 1024


def interpolate(text: str, variables: Mapping[str, str], missing: set[str] | None = None, depth: int = 0) -> str:
    """`text` with its variables filled in; an unset one without default is empty, and added to `missing`. Raises
    `InvalidInput` for what is no variable, for ``?`` on one that is unset, and for absurd sizes."""
    if depth > _MAX_DEPTH:
        raise InvalidInput("variables are nested too deeply")
    pieces: list[str] = []
    at = 0
    while (dollar := text.find("$", at)) >= 0:
        pieces.append(text[at:dollar])
        piece, at = _variable(text, dollar, variables, missing, depth)
        pieces.append(piece)
    result = "".join([*pieces, text[at:]])
    if len(result) > _MAX_LENGTH:
        raise InvalidInput(f"the value is longer than {_MAX_LENGTH} characters once its variables are filled in")
    return result


def _variable(
    text: str, dollar: int, variables: Mapping[str, str], missing: set[str] | None, depth: int
) -> tuple[str, int]:
    """What the variable at `dollar` stands for, and where the text goes on."""
    after = text[dollar + 1 : dollar + 2]
    if after == "$":
        return "$", dollar + 2
    if after != "{":
        name = _NAME.match(text, dollar + 1)
        if name is None:
            raise InvalidInput(f"{text[dollar : dollar + 20]!r} is not a variable: write $$ for a dollar sign")
        return _value(name[0], variables, missing), name.end()
    name = _NAME.match(text, dollar + 2)
    end = _closing(text, dollar + 2)
    if name is None or end < 0:
        raise InvalidInput(
            f"{text[dollar : dollar + 20]!r} is not a variable: write ${{NAME}}, or $$ for a dollar sign"
        )
    rest = text[name.end() : end]
    if not rest:
        return _value(name[0], variables, missing), end + 1
    operator = next((operator for operator in _OPERATORS if rest.startswith(operator)), None)
    if operator is None:
        raise InvalidInput(f"{text[dollar : end + 1][:40]!r} is not a variable: after its name comes :- :? :+ - ? or +")
    argument = rest.removeprefix(operator)
    value = variables.get(name[0])
    is_set = value is not None and (value != "" or ":" not in operator)
    if operator.endswith("-"):
        return (value or "") if is_set else interpolate(argument, variables, missing, depth + 1), end + 1
    if operator.endswith("+"):
        return interpolate(argument, variables, missing, depth + 1) if is_set else "", end + 1
    if not is_set:
        message = interpolate(argument, variables, missing, depth + 1)
        raise InvalidInput(f"the variable {name[0]} is required but not set{f': {message}' if message else ''}")
    return value or "", end + 1


def _value(name: str, variables: Mapping[str, str], missing: set[str] | None) -> str:
    if name not in variables and missing is not None:
        missing.add(name)
    return variables.get(name, "")


def _closing(text: str, start: int) -> int:
    """Where the brace closes that was opened before `start`, -1 if nowhere."""
    depth, at = 1, start
    while at < len(text):
        if text.startswith("$$", at):
            at += 2
            continue
        if text.startswith("${", at):
            depth += 1
            at += 2
            continue
        if text[at] == "}":
            depth -= 1
            if depth == 0:
                return at
        at += 1
    return -1
