"""What one may do to a repository, who is asking, and the rules that bring the two together.

Everything here is a function of its arguments: no network, clock or disk.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from supplychain.glob import matches


class Right(StrEnum):
    """The four rights, none of which implies another."""

    PULL = "pull"
    """Read manifests, blobs, tags and referrers."""
    PUSH = "push"
    """Add blobs, manifests and tags that are not there yet."""
    OVERWRITE = "overwrite"
    """Move a tag that is there to another digest (CVE-2026-31801: who may create may not therefore replace)."""
    DELETE = "delete"
    """Remove tags, manifests and blobs."""


ALL = frozenset(Right)

_MAX_PLACES = 32

ANONYMOUS = "anonymous"
"""The name of whoever does not say who they are. Rules must name it: nothing else matches it."""

AUTHENTICATED = "authenticated"
"""A name that everybody bears who did say."""


@dataclass(frozen=True)
class Principal:
    """Who makes a request. `name` is what logs and uploads know it by; `groups` are further names rules may use.

    Names of people are plain; those of robots begin with ``robot+``, of OIDC subjects with ``oidc:ISSUER:``, of
    holders of client certificates with ``cert:``.
    """

    name: str
    groups: frozenset[str] = frozenset()

    @property
    def is_anonymous(self) -> bool:
        """Whether nobody has said who they are."""
        return self.name == ANONYMOUS


NOBODY = Principal(ANONYMOUS)


@dataclass(frozen=True)
class Grant:
    """Rights on the repositories that match one of the patterns."""

    repositories: tuple[str, ...]
    rights: frozenset[Right]

    def covers(self, repository: str) -> bool:
        """Whether it is about a repository."""
        return any(matches(pattern, repository) for pattern in self.repositories)


@dataclass(frozen=True)
class Rule:
    """A grant to principals, by name or pattern (``*`` not across ``/``, ``**`` across)."""

    principals: tuple[str, ...]
    grant: Grant

    def applies(self, principal: Principal) -> bool:
        """Whether it is about a principal. No pattern is about the anonymous one: only its name is."""
        if principal.is_anonymous:
            return ANONYMOUS in self.principals
        names = (principal.name, *principal.groups, AUTHENTICATED)
        return any(matches(pattern, name) for pattern in self.principals for name in names)


@dataclass(frozen=True)
class Caller:
    """A principal with everything it has been granted.

    `bounds` are what a token limits it to: what is not covered by one of them is not allowed, whatever was granted.
    """

    principal: Principal
    grants: tuple[Grant, ...] = ()
    bounds: tuple[Grant, ...] | None = field(default=None)

    def granted(self, repository: str) -> frozenset[Right]:
        """The rights on a repository, whatever the token says."""
        return _union(self.grants, repository)

    def may(self, right: Right, repository: str) -> bool:
        """Whether the principal may do something here, now."""
        if right not in self.granted(repository):
            return False
        return self.bounds is None or right in _union(self.bounds, repository)

    @property
    def may_pull_everything(self) -> bool:
        """Whether there is no repository, today or later, that it may not read."""
        wide = (self.grants,) if self.bounds is None else (self.grants, self.bounds)
        return all(any(Right.PULL in g.rights and "**" in g.repositories for g in grants) for grants in wide)

    @property
    def places(self) -> tuple[str, ...]:
        """The repositories that its grants name in full, without a pattern."""
        named = (pattern for grant in self.grants for pattern in grant.repositories if "*" not in pattern)
        return tuple(dict.fromkeys(named))[:_MAX_PLACES]


def _union(grants: Iterable[Grant], repository: str) -> frozenset[Right]:
    return frozenset(right for grant in grants if grant.covers(repository) for right in grant.rights)


def grants_to(principal: Principal, rules: Iterable[Rule]) -> tuple[Grant, ...]:
    """What rules grant to a principal."""
    return tuple(rule.grant for rule in rules if rule.applies(principal))


EVERYONE_EVERYTHING = Caller(NOBODY, (Grant(("**",), ALL),))
"""The caller of a registry that has no access control."""
