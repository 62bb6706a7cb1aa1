"""Command groups whose modules are loaded when one of their commands is asked for.

A command that is done in a moment should not wait for what only others need.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any, ClassVar

import typer
from typer.core import TyperGroup


class Commands(Mapping[str, Any]):
    """Commands by name: `places` names those that are to be found in each `typer.Typer`, ``MODULE:ATTRIBUTE``."""

    def __init__(self, places: Mapping[str, Sequence[str]]) -> None:
        self._places = {name: place for place, names in places.items() for name in names}

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, name: str) -> Any:
        return _commands_in(self._places[name])[name]


@cache
def _commands_in(place: str) -> Mapping[str, Any]:
    module, _, attribute = place.partition(":")
    with _nothing_is_garbage():
        found: typer.Typer = getattr(import_module(module), attribute)
        found.rich_markup_mode = None  # as plain as the program itself
        return typer.main.get_group(found).commands


@contextmanager
def _nothing_is_garbage() -> Iterator[None]:
    """What is loaded in this time, and what was before, stays: to look for garbage among it again and again, and once
    more at the end, takes a fifth of a short command's time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


class LazyGroup(TyperGroup):
    """A group of `Commands`, which a program says in a class of its own: `places`."""

    places: ClassVar[Mapping[str, Sequence[str]]]

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: Any = Commands(self.places)

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, for which nothing has to be loaded."""
        return list(self.commands)
