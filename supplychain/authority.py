"""Who may vouch, and how many of them have to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from supplychain.keys import PublicKey
from supplychain.strictyaml import Value


@dataclass(frozen=True)
class Authority:
    """Someone whose signature counts."""

    name: str
    key: PublicKey


@dataclass(frozen=True)
class Requirement:
    """Signatures of at least `count` different `authorities`; 0 requires nothing."""

    count: int
    authorities: tuple[Authority, ...] = ()

    def __str__(self) -> str:
        names = ", ".join(authority.name for authority in self.authorities)
        if self.count == 0:
            return "nothing"
        if self.count == len(self.authorities):
            return f"a signature by {names}" if self.count == 1 else f"signatures by all of {names}"
        return f"{self.count} of the signers {names}" if self.count > 1 else f"a signature by any of {names}"


def read_requirement(value: Value, authorities: Mapping[str, Authority]) -> Requirement:
    """Read ``any-of``, ``all-of`` or ``at-least``, or the word ``nothing``. Raises `InvalidInput`."""
    if value.scalar is not None:
        value.choice("nothing")
        return Requirement(0)
    fields = value.mapping("any-of", "all-of", "at-least")
    if len(fields) != 1:
        value.fail("'require' is one of any-of, all-of and at-least, or the word nothing")
    (kind, listed), count = next(iter(fields.items())), 1
    if kind == "at-least":
        inner = listed.mapping("count", "of")
        count = listed.required(inner, "count").integer()
        listed = listed.required(inner, "of")
    chosen = tuple(_authority(item, authorities) for item in listed.sequence())
    if len({authority.name for authority in chosen}) != len(chosen):
        listed.fail("an authority is named twice")
    if kind == "all-of":
        count = len(chosen)
    if not 1 <= count <= len(chosen):
        listed.fail(f"{count} of {len(chosen)} authorities cannot be required")
    return Requirement(count, chosen)


def _authority(value: Value, authorities: Mapping[str, Authority]) -> Authority:
    name = value.text()
    if name not in authorities:
        value.fail(f"there is no authority {name!r} (known: {', '.join(authorities) or 'none'})")
    return authorities[name]
