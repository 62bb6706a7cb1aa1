"""From what a client shows to a caller with its grants: where every way of saying who one is comes together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar

from artifact.errors import Unauthorized
from registry.access.htpasswd import HtpasswdFile
from registry.access.oidc import USER, Issuers
from registry.access.passwords import PasswordChecker
from registry.access.rights import NOBODY, Caller, Grant, Principal, Rule, grants_to
from registry.access.robots import PREFIX, Robots
from registry.access.tokens import Bearer, Tokens
from registry.config.sections import Config
from registry.limits import LoginLimits
from registry.store.protocol import ObjectStore

_WRONG = "user name or password is wrong"
_ISSUERS = ThreadPoolExecutor(max_workers=4, thread_name_prefix="oidc")

T = TypeVar("T")


@dataclass(frozen=True)
class Identities:
    """Everything that proves an identity, and the rules that say what it is worth. Made by `identities`."""

    rules: tuple[Rule, ...]
    htpasswd: HtpasswdFile | None = None
    passwords: PasswordChecker | None = None
    robots: Robots | None = None
    tokens: Tokens | None = None
    issuers: Issuers | None = None
    limits: LoginLimits = field(default_factory=LoginLimits)

    @property
    def by_password(self) -> bool:
        """Whether there is anybody who could log in with a name and a password, OIDC tokens included."""
        return not (self.htpasswd is None and self.robots is None and self.issuers is None)

    def anonymous(self) -> Caller:
        """The caller that shows nothing."""
        return Caller(NOBODY, grants_to(NOBODY, self.rules))

    async def login(self, user: str, password: str, address: str) -> Caller:
        """The caller with a name and a password, or an OIDC token for one. Raises `Unauthorized`, and `TooMany` where
        too many logins from `address` have failed."""
        if user == USER:
            return await self.oidc(password, address)
        if user.startswith(PREFIX):
            return await self._robot_login(user, password, address)
        passwords = self.passwords
        if self.htpasswd is None or passwords is None:
            raise self._failed(_WRONG, address)
        hashed = self.htpasswd.hash_of(user)
        attempts: list[str] = []

        def attempt() -> None:
            self.limits.attempt(address)
            attempts.append(address)

        if not await passwords.is_right(user, password, hashed, attempt):
            # Whoever waited for a check that somebody else had begun has not been counted yet.
            raise Unauthorized(_WRONG) if attempts else self._failed(_WRONG, address)
        if attempts:
            self.limits.succeeded(address)
        return self._caller(Principal(user))

    async def _robot_login(self, user: str, secret: str, address: str) -> Caller:
        robots = self.robots
        robot = await asyncio.to_thread(robots.find, user) if robots is not None else None
        if robot is None or not robot.accepts(secret):
            raise self._failed(_WRONG, address)
        return self._caller(Principal(user), robot.grants)

    async def oidc(self, token: str, address: str) -> Caller:
        """The caller with a token of a configured issuer. Raises `Unauthorized`, `Unreachable`, `TooMany`."""
        issuers = self.issuers
        if issuers is None:
            raise self._failed("no OIDC issuer is configured here", address)
        try:
            return self._caller(await _in_thread(_ISSUERS, lambda: issuers.principal(token)))
        except Unauthorized as error:
            raise self._failed(str(error), address) from None

    def _failed(self, message: str, address: str) -> Unauthorized:
        """The error for a login that is wrong, which has been counted. Raises `TooMany`."""
        self.limits.attempt(address)
        return Unauthorized(message)

    async def bearer(self, token: str) -> tuple[Caller, Bearer]:
        """The caller with a registry token, held to what the token says, and the token. Raises `Unauthorized`, also
        where a robot or user is gone since it was issued."""
        if self.tokens is None:
            raise Unauthorized("this registry takes no tokens")
        bearer = self.tokens.read(token)
        caller = await self._known(bearer.principal)
        return replace(caller, bounds=bearer.bounds), bearer

    async def _known(self, principal: Principal) -> Caller:
        if principal.is_anonymous:
            return self.anonymous()
        if principal.name.startswith(PREFIX):
            robots = self.robots
            robot = await asyncio.to_thread(robots.find, principal.name) if robots is not None else None
            if robot is None:
                raise Unauthorized("the robot account is gone or has expired")
            return self._caller(principal, robot.grants)
        if ":" not in principal.name and (self.htpasswd is None or self.htpasswd.hash_of(principal.name) is None):
            raise Unauthorized("the user is gone")
        return self._caller(principal)

    def certificate(self, subject: str) -> Caller:
        """The caller with a client certificate that has been verified; `subject` as RFC 4514 writes it."""
        return self._caller(Principal(f"cert:{subject}"))

    def _caller(self, principal: Principal, own: tuple[Grant, ...] = ()) -> Caller:
        return Caller(principal, (*grants_to(principal, self.rules), *own))


def identities(config: Config, store: ObjectStore, limits: LoginLimits | None = None) -> Identities:
    """What `config` says of identities; `limits` counts logins that fail. Raises `InvalidInput` for files that cannot
    be used."""
    auth, token = config.auth, config.auth.token
    return Identities(
        rules=config.access,
        htpasswd=HtpasswdFile(auth.htpasswd) if auth.htpasswd is not None else None,
        passwords=PasswordChecker() if auth.htpasswd is not None else None,
        robots=Robots(store) if auth.robots else None,
        tokens=Tokens(token.key, token.previous, token.service, token.lifetime) if token is not None else None,
        issuers=Issuers(config.oidc) if config.oidc else None,
        limits=limits or LoginLimits(),
    )


async def _in_thread(pool: ThreadPoolExecutor, function: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, function)
