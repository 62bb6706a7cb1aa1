"""Who may vouch, and how many of them have to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass

from supplychain.glob import MAX_LENGTH, matches
from supplychain.identity import Identity
from supplychain.keys import LoggedKey, PublicKey
from supplychain.strictyaml import Value
from supplychain.trustroot import TrustRoot

Signer = PublicKey | Identity
"""Who has signed: a key, or someone a certificate names."""


@dataclass(frozen=True)
class Keyless:
    """Whom a keyless authority means: a name, or a pattern of names, that `issuer` vouches for, as certificates under
    `root` have it."""

    name: str
    is_pattern: bool
    issuer: str
    root: TrustRoot

    def means(self, identity: Identity) -> bool:
        """Whether `identity` is one of those meant."""
        if identity.issuer != self.issuer or self.root.fingerprint not in identity.roots:
            return False
        return matches(self.name, identity.name) if self.is_pattern else identity.name == self.name


@dataclass(frozen=True)
class Authority:
    """Someone whose signature counts: by a key, or keyless. With `log` a key's signature has to stand in a log of that
    trust root; a keyless one always has to."""

    name: str
    key: PublicKey | None = None
    keyless: Keyless | None = None
    log: TrustRoot | None = None

    def is_author(self, signer: Signer | None) -> bool:
        """Whether `signer` is this authority."""
        if isinstance(signer, Identity):
            return self.keyless is not None and self.keyless.means(signer)
        if not self.holds_key(signer):
            return False
        return self.log is None or (isinstance(signer, LoggedKey) and self.log.fingerprint in signer.roots)

    def holds_key(self, signer: Signer | None) -> bool:
        """Whether `signer` is this authority's key, logged or not."""
        return isinstance(signer, PublicKey) and self.key is not None and signer.spki == self.key.spki

    def to_json(self) -> dict[str, str]:
        """The authority as JSON."""
        if self.key is not None:
            return {"name": self.name, "fingerprint": self.key.hint}
        assert self.keyless is not None
        pattern = "identity-glob" if self.keyless.is_pattern else "identity"
        return {"name": self.name, pattern: self.keyless.name, "issuer": self.keyless.issuer}


def person(signer: Signer) -> Hashable:
    """What makes two signatures those of one signer."""
    return signer.person if isinstance(signer, Identity) else signer.spki


def vouching(authorities: Sequence[Authority], signers: Collection[Signer]) -> list[Authority]:
    """As many of `authorities` as have signed, each by a signer of its own: someone whom two of them mean counts for
    one of them only."""
    meant = {
        authority: [person(signer) for signer in signers if authority.is_author(signer)] for authority in authorities
    }
    taken: dict[Hashable, Authority] = {}

    def give(authority: Authority, tried: set[Hashable]) -> bool:
        """Find a signer for `authority`, moving others to another of theirs where need be."""
        for who in meant[authority]:
            if who not in tried:
                tried.add(who)
                if who not in taken or give(taken[who], tried):
                    taken[who] = authority
                    return True
        return False

    return [authority for authority in authorities if give(authority, set())]


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


def read_keyless(value: Value, read_root: Callable[[Value], TrustRoot]) -> Keyless:
    """Read ``keyless: {identity, issuer, trust-root}``. Raises `InvalidInput`."""
    fields = value.mapping("identity", "identity-glob", "issuer", "trust-root")
    name, is_pattern = read_name(value, fields)
    issuer = value.required(fields, "issuer").text()
    return Keyless(name, is_pattern, issuer, read_root(value.required(fields, "trust-root")))


def read_name(value: Value, fields: Mapping[str, Value]) -> tuple[str, bool]:
    """Read ``identity`` or ``identity-glob``: the name, and whether it is a pattern. Raises `InvalidInput`."""
    if ("identity" in fields) == ("identity-glob" in fields):
        value.fail("a keyless signer is named by identity or by identity-glob")
    if "identity" in fields:
        return fields["identity"].text(), False
    pattern = fields["identity-glob"].text()
    if len(pattern) > MAX_LENGTH or "***" in pattern:
        fields["identity-glob"].fail(f"a pattern has * and **, and at most {MAX_LENGTH} characters")
    if not pattern.strip("*"):
        fields["identity-glob"].fail("a pattern that means everybody names nobody: write a part of the name")
    return pattern, True


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
