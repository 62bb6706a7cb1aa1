"""Scopes: what a client asks a token for. Source: distribution, "Token Scope Documentation"."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from artifact.reference import is_name
from registry.access.rights import ALL, Caller, Right

MAX_SCOPES = 64
"""Most scopes one token has."""

_ACTIONS = {
    "pull": frozenset({Right.PULL}),
    "push": frozenset({Right.PUSH, Right.OVERWRITE}),
    "delete": frozenset({Right.DELETE}),
    "*": ALL,
}
_SCOPE = re.compile(
    r"(?P<type>[a-z0-9]+)(?:\([a-z0-9]+\))?:(?P<name>[^:\s]+(?::[0-9]+/[^:\s]+)?):(?P<actions>[a-z,*]*)"
)


@dataclass(frozen=True)
class Scope:
    """Actions on one resource: a repository, or the catalog."""

    type: str
    name: str
    actions: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"type": self.type, "name": self.name, "actions": list(self.actions)}

    def __str__(self) -> str:
        return f"{self.type}:{self.name}:{','.join(self.actions)}"


def actions_of(action: str) -> frozenset[Right]:
    """The rights an action stands for; none if it is unknown."""
    return _ACTIONS.get(action, frozenset())


def action_for(right: Right) -> str:
    """The action to ask for in order to use a right."""
    return "push" if right is Right.OVERWRITE else right.value


def parse(texts: Iterable[str]) -> list[Scope]:
    """The scopes in some ``scope`` parameters, each of which may hold several. What is not understood is left out, as
    the specification has it: the token then lacks it."""
    found: list[Scope] = []
    for text in texts:
        for part in text[:8192].split():
            match = _SCOPE.fullmatch(part)
            if match is not None and len(found) < MAX_SCOPES:
                found.append(Scope(match["type"], match["name"], tuple(filter(None, match["actions"].split(",")))))
    return found


def granted(caller: Caller, asked: Iterable[Scope]) -> list[Scope]:
    """As much of what was asked for as the caller may do: those actions of which at least one right is its own."""
    scopes = []
    for scope in asked:
        if scope.type == "repository" and is_name(scope.name):
            rights = caller.granted(scope.name)
            actions = _expanded(scope.actions)
            allowed = tuple(action for action in actions if actions_of(action) & rights)
        elif (scope.type, scope.name) == ("registry", "catalog"):
            allowed = ("*",) if "*" in scope.actions else ()
        else:
            continue
        if allowed:
            scopes.append(Scope(scope.type, scope.name, allowed))
    return scopes


def _expanded(actions: tuple[str, ...]) -> list[str]:
    named = [action for action in actions if action != "*"]
    return list(dict.fromkeys([*named, *(["pull", "push", "delete"] if "*" in actions else [])]))
