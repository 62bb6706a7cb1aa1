"""The garbage collector's mark on an object that nothing needs.

The mark stands in the object itself, so that whoever reads the object to rely on it sees the mark at no cost and takes
it off by a conditional write. The collector deletes only what still carries the very mark it read: each has a nonce of
its own, so no two marked states of an object have the same ETag.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Condemned:
    """Condemned at `since`, in seconds since the epoch."""

    since: float
    nonce: str

    @classmethod
    def at(cls, now: float) -> Condemned:
        """A new mark."""
        return cls(now, secrets.token_hex(8))

    @classmethod
    def from_json(cls, value: Any) -> Condemned | None:
        """The mark in an object's JSON, None if there is none. Raises `ValueError` if it is damaged."""
        if value is None:
            return None
        if not isinstance(value, dict) or not isinstance(value.get("since"), int | float):
            raise ValueError("a damaged mark of the garbage collector")
        return cls(value["since"], str(value.get("nonce")))

    def to_json(self) -> dict[str, Any]:
        return {"since": self.since, "nonce": self.nonce}

    def to_text(self) -> str:
        """As text without spaces."""
        return f"{self.since!r}-{self.nonce}"

    @classmethod
    def from_text(cls, text: str) -> Condemned | None:
        """What `to_text` wrote; None for an empty text. Raises `ValueError` if it is damaged."""
        since, _, nonce = text.partition("-")
        return cls(float(since), nonce) if text else None
