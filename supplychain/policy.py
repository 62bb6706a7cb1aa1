"""The policy file: which references need whose signatures and attestations, and what is revoked.

This is version 1 of its schema.

A reference must satisfy every rule that matches it; one that no rule matches is refused. So the order of rules does
not matter, and no spelling of a reference can reach a weaker rule past a stricter one. `docs/supply-chain.md`
describes the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from artifact.digest import Digest
from artifact.errors import InvalidInput
from supplychain import strictyaml
from supplychain.age import Age, read_age
from supplychain.attestationrule import RequiredAttestation, read_required_attestation
from supplychain.authority import Authority, Keyless, Requirement, read_keyless, read_name, read_requirement
from supplychain.evidence import LAYOUTS
from supplychain.glob import Glob, Target, matches
from supplychain.identity import Identity
from supplychain.keys import PublicKey
from supplychain.strictyaml import Value
from supplychain.trustroot import TrustRoot, is_inline
from supplychain.usage import NO_LIMITS, Limits, read_allowed, read_limits

VERSION = 1
MAX_AUTHORITIES = 64
"""Most authorities a policy may name: each signature is tried with each of their keys."""

_FINGERPRINT = re.compile(r"[A-Za-z0-9+/]{43}=")
_INLINE = "-----BEGIN "


class Mode(StrEnum):
    """Whether a rule that is not satisfied refuses, or only says so."""

    ENFORCE = "enforce"
    WARN = "warn"


class WhenRunning(StrEnum):
    """What happens to a model that runs when the policy allows it no longer."""

    REPORT = "report"
    STOP = "stop"


@dataclass(frozen=True)
class Rule:
    """What is required of the references that match. A signature older than `max_age` does not count, and an artifact
    written in another way than one of `layouts` is refused; None sets no bounds."""

    name: str
    match: tuple[Glob, ...]
    requirement: Requirement
    mode: Mode = Mode.ENFORCE
    exceptions: tuple[Glob, ...] = ()
    attestations: tuple[RequiredAttestation, ...] = ()
    limits: Limits = NO_LIMITS
    allows_code: bool = False
    max_age: Age | None = None
    layouts: tuple[str, ...] | None = None

    @property
    def authorities(self) -> tuple[Authority, ...]:
        """Everyone the rule names, as signer or as author of an attestation, each once."""
        attesting = (authority for item in self.attestations for authority in item.requirement.authorities)
        return tuple(dict.fromkeys((*self.requirement.authorities, *attesting)))

    def applies(self, target: Target) -> bool:
        """Whether `target` is subject to this rule.

        A reference without a tag may stand for any tag, so it is matched by every pattern that could mean it, and
        excepted only by one that surely does.
        """
        if any(glob.surely_matches(target) for glob in self.exceptions):
            return False
        return any(glob.may_match(target) for glob in self.match)

    def surely_applies(self, target: Target) -> bool:
        """Whether `target` is subject to this rule whatever tag it may stand for: what a grant needs."""
        if any(glob.may_match(target) for glob in self.exceptions):
            return False
        return any(glob.surely_matches(target) for glob in self.match)


@dataclass(frozen=True)
class RevokedIdentity:
    """A keyless signer, or those whom a pattern means, that is trusted no longer; without an issuer, by any."""

    name: str
    is_pattern: bool
    issuer: str | None
    reason: str

    def means(self, identity: Identity) -> bool:
        """Whether `identity` is one of those meant."""
        named = matches(self.name, identity.name) if self.is_pattern else self.name == identity.name
        return named and self.issuer in (None, identity.issuer)


@dataclass(frozen=True)
class Revocations:
    """Keys, by fingerprint, keyless identities, and digests that are trusted no longer, each with the reason given.

    `keys` are those revoked keys that are known in full, so that their signatures can be recognised.
    """

    fingerprints: Mapping[str, str] = field(default_factory=dict)
    digests: Mapping[Digest, str] = field(default_factory=dict)
    keys: tuple[PublicKey, ...] = ()
    identities: tuple[RevokedIdentity, ...] = ()

    @property
    def algorithms(self) -> frozenset[str]:
        """Those that the revoked digests are of."""
        return frozenset(digest.algorithm for digest in self.digests)


@dataclass(frozen=True)
class Policy:
    """A policy. `source` is where it was read, for messages; `mode` is that of references no rule matches."""

    source: str
    rules: tuple[Rule, ...]
    revoked: Revocations = field(default_factory=Revocations)
    mode: Mode = Mode.ENFORCE
    when_running: WhenRunning = WhenRunning.REPORT

    @classmethod
    def load(cls, path: Path | str) -> Policy:
        """Read a policy file, and the keys and trust roots it names relative to its folder. Raises `InvalidInput`."""
        file = Path(path)
        try:
            with file.open("rb") as stream:
                raw = stream.read(strictyaml.MAX_BYTES + 1)
        except OSError as error:
            raise InvalidInput(f"cannot read policy {file}: {error.strerror}") from None

        def read_key(location: str) -> PublicKey:
            return PublicKey.load(location if "://" in location else str(file.parent / location))

        return cls.parse(raw, str(file), read_key, lambda location: TrustRoot.load(file.parent / location))

    @classmethod
    def parse(
        cls,
        raw: bytes,
        source: str,
        read_key: Callable[[str], PublicKey],
        read_root: Callable[[str], TrustRoot] = lambda location: TrustRoot.load(Path(location)),
    ) -> Policy:
        """Read a policy from bytes; `read_key` fetches the key at a location, `read_root` the trust root. Raises
        `InvalidInput`."""
        return _Parser(read_key, read_root).policy(strictyaml.load(raw, source))

    @property
    def keys(self) -> tuple[PublicKey, ...]:
        """Every key a signature is tried with, each once."""
        required = (authority.key for rule in self.rules for authority in rule.authorities)
        return tuple(key for key in dict.fromkeys((*required, *self.revoked.keys)) if key is not None)

    @property
    def roots(self) -> tuple[TrustRoot, ...]:
        """Every trust root that signatures are tried with, each once."""
        authorities = [authority for rule in self.rules for authority in rule.authorities]
        named = [authority.keyless.root if authority.keyless else authority.log for authority in authorities]
        return tuple(root for root in dict.fromkeys(named) if root is not None)

    def rules_for(self, target: Target) -> tuple[Rule, ...]:
        """The rules that apply to `target`."""
        return tuple(rule for rule in self.rules if rule.applies(target))


class _Parser:
    def __init__(self, read_key: Callable[[str], PublicKey], read_root: Callable[[str], TrustRoot]) -> None:
        self._read_key = read_key
        self._read_root = read_root
        self._roots: dict[str, TrustRoot] = {}

    def policy(self, document: Value) -> Policy:
        document = replace(document, what="the policy")
        fields = document.mapping("version", "mode", "on-revocation", "authorities", "rules", "revoked")
        if "version" not in fields:
            document.fail("the policy has no version: write version: 1")
        if fields["version"].integer() != VERSION:
            fields["version"].fail(f"unsupported policy version: this program reads version {VERSION}")
        mode = _mode(fields, Mode.ENFORCE)
        authorities = self._authorities(fields["authorities"]) if "authorities" in fields else {}
        if "rules" not in fields:
            document.fail("the policy has no rules")
        rules = tuple(
            _rule(value, f"rule {number}", authorities, mode)
            for number, value in enumerate(fields["rules"].sequence(), 1)
        )
        if not rules:
            fields["rules"].fail("the policy has no rules")
        revoked = self._revoked(fields["revoked"]) if "revoked" in fields else Revocations()
        stated = fields["on-revocation"].choice(*WhenRunning) if "on-revocation" in fields else WhenRunning.REPORT
        return Policy(document.source, rules, revoked, mode, WhenRunning(stated))

    def _authorities(self, value: Value) -> dict[str, Authority]:
        authorities: dict[str, Authority] = {}
        known: dict[PublicKey | Keyless, str] = {}
        for name, entry in value.mapping().items():
            fields = entry.mapping("key", "keyless", "log")
            if ("key" in fields) == ("keyless" in fields):
                entry.fail(f"authority {name!r} is named by key or by keyless")
            key = self._key(fields["key"]) if "key" in fields else None
            keyless = read_keyless(fields["keyless"], self._root) if "keyless" in fields else None
            who = key or keyless
            assert who is not None
            if who in known:  # one signer must not count as two
                what = "key" if key else "identity"
                entry.fail(f"authorities {known[who]!r} and {name!r} have the same {what}")
            known[who] = name
            if keyless is not None and "log" in fields:
                fields["log"].fail("a keyless signature is always in a log of its trust root: leave 'log' out")
            authorities[name] = Authority(name, key, keyless, self._root(fields["log"]) if "log" in fields else None)
        if len(authorities) > MAX_AUTHORITIES:
            value.fail(f"more than {MAX_AUTHORITIES} authorities")
        return authorities

    def _root(self, value: Value) -> TrustRoot:
        text = value.text()
        try:
            if text not in self._roots:
                inline = is_inline(text)
                self._roots[text] = TrustRoot.parse(text.encode(), "it") if inline else self._read_root(text)
        except InvalidInput as error:
            value.fail(str(error))
        return self._roots[text]

    def _key(self, value: Value) -> PublicKey:
        text = value.text()
        try:
            return PublicKey.parse(text.encode()) if text.startswith(_INLINE) else self._read_key(text)
        except InvalidInput as error:
            value.fail(str(error))

    def _revoked(self, value: Value) -> Revocations:
        fields = value.mapping("keys", "identities", "digests")
        fingerprints: dict[str, str] = {}
        keys: list[PublicKey] = []
        for entry in fields["keys"].sequence() if "keys" in fields else ():
            known = entry.mapping("key", "fingerprint", "reason")
            if ("key" in known) == ("fingerprint" in known):
                entry.fail("a revoked key is named by key or by fingerprint")
            if "key" in known:
                keys.append(self._key(known["key"]))
                fingerprint = keys[-1].hint
            else:
                fingerprint = known["fingerprint"].text()
                if not _FINGERPRINT.fullmatch(fingerprint):
                    known["fingerprint"].fail("a fingerprint is the base64 of the SHA-256 of the key's SPKI")
            fingerprints[fingerprint] = _why(known)
        if len(keys) > MAX_AUTHORITIES:
            value.fail(f"more than {MAX_AUTHORITIES} revoked keys in full: give fingerprints")
        digests = dict(_revoked_digest(entry) for entry in fields["digests"].sequence()) if "digests" in fields else {}
        identities = tuple(map(_revoked_identity, fields["identities"].sequence() if "identities" in fields else ()))
        return Revocations(fingerprints, digests, tuple(keys), identities)


def _rule(value: Value, default_name: str, authorities: Mapping[str, Authority], mode: Mode) -> Rule:
    fields = value.mapping(
        "name", "match", "except", "require", "attestations", "max-age", "layouts", "engines", "flags", "allow", "mode"
    )
    for key in ("match", "require"):
        value.required(fields, key)
    match = tuple(_glob(item) for item in fields["match"].sequence())
    if not match:
        fields["match"].fail("'match' is empty: name at least one reference pattern")
    requirement = read_requirement(fields["require"], authorities)
    listed = fields["attestations"].sequence() if "attestations" in fields else ()
    rule = Rule(
        name=fields["name"].text() if "name" in fields else default_name,
        match=match,
        requirement=requirement,
        mode=_mode(fields, mode),
        exceptions=tuple(_glob(item) for item in fields["except"].sequence()) if "except" in fields else (),
        attestations=tuple(read_required_attestation(item, authorities, requirement) for item in listed),
        limits=read_limits(fields.get("engines"), fields.get("flags")),
        max_age=read_age(fields["max-age"]) if "max-age" in fields else None,
        layouts=tuple(item.choice(*LAYOUTS) for item in fields["layouts"].sequence()) if "layouts" in fields else None,
    )
    return replace(rule, allows_code=read_allowed(fields.get("allow"), rule.authorities))


def _glob(value: Value) -> Glob:
    try:
        return Glob(value.text())
    except InvalidInput as error:
        if value.scalar is None:
            raise
        value.fail(str(error))


def _mode(fields: Mapping[str, Value], default: Mode) -> Mode:
    return Mode(fields["mode"].choice(*Mode)) if "mode" in fields else default


def _revoked_identity(value: Value) -> RevokedIdentity:
    fields = value.mapping("identity", "identity-glob", "issuer", "reason")
    name, is_pattern = read_name(value, fields)
    return RevokedIdentity(name, is_pattern, fields["issuer"].text() if "issuer" in fields else None, _why(fields))


def _why(fields: Mapping[str, Value]) -> str:
    return fields["reason"].text() if "reason" in fields else ""


def _revoked_digest(value: Value) -> tuple[Digest, str]:
    fields = {"digest": value} if value.scalar is not None else value.mapping("digest", "reason")
    text = value.required(fields, "digest")
    try:
        return Digest.parse(text.text()), _why(fields)
    except InvalidInput as error:
        if text.scalar is None:
            raise
        text.fail(str(error))
