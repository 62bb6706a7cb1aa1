"""How long work reports how far it is, without knowing who listens."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told about bytes as they move. Calls may come from several threads."""

    def begin(self, name: str, total: int) -> None:
        """Work on `name` (a file path or a digest) starts; it has `total` bytes."""

    def advance(self, name: str, count: int) -> None:
        """`count` more bytes of `name` are done; negative when an attempt is given up and begun again."""

    def finish(self, name: str, note: str = "") -> None:
        """`name` is complete; `note` says how if not by moving it (``exists``, ``mounted``)."""


class Quiet:
    """Listens to nothing."""

    def begin(self, name: str, total: int) -> None: ...
    def advance(self, name: str, count: int) -> None: ...
    def finish(self, name: str, note: str = "") -> None: ...
