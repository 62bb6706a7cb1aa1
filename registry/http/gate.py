"""Every request passes here first: who makes it, and whether they may.

What a caller may not read is answered the same whether it exists or not.
"""

from __future__ import annotations

import base64
import binascii
import logging
import math
from typing import NoReturn

from starlette.requests import Request

from artifact.errors import InvalidInput, Unauthorized, Unreachable
from artifact.reference import is_host
from registry.access.identity import Identities
from registry.access.rights import EVERYONE_EVERYTHING, Caller, Right
from registry.access.scopes import Scope, action_for
from registry.http.certificate import Certificates
from registry.http.errors import RegistryError, unavailable
from registry.http.observed import observation_of
from registry.http.routing import Route
from registry.limits import TooMany

_RIGHTS = {
    ("tags", "GET"): Right.PULL,
    ("tags", "HEAD"): Right.PULL,
    ("referrers", "GET"): Right.PULL,
    ("referrers", "HEAD"): Right.PULL,
    ("blob", "GET"): Right.PULL,
    ("blob", "HEAD"): Right.PULL,
    ("blob", "DELETE"): Right.DELETE,
    ("manifest", "GET"): Right.PULL,
    ("manifest", "HEAD"): Right.PULL,
    ("manifest", "PUT"): Right.PUSH,
    ("manifest", "DELETE"): Right.DELETE,
    ("uploads", "POST"): Right.PUSH,
    ("upload", "GET"): Right.PUSH,
    ("upload", "HEAD"): Right.PUSH,
    ("upload", "PATCH"): Right.PUSH,
    ("upload", "PUT"): Right.PUSH,
    ("upload", "DELETE"): Right.PUSH,
}
"""The right that a request needs on its repository; what is not listed is refused."""

CALLER = "caller"
"""Where the scope's ``state`` holds the `Caller`."""

_CATALOG = Scope("registry", "catalog", ("*",))
_MAX_CREDENTIALS = 32 * 1024
_log = logging.getLogger("registry")


def caller_of(request: Request) -> Caller:
    """The caller of a request that has passed the gate."""
    caller = request.scope["state"][CALLER]
    assert isinstance(caller, Caller)
    return caller


class Gate:
    """Lets requests pass or not. Without `identities` there is no access control; `deletes` is whether anybody may
    delete anything at all."""

    def __init__(
        self,
        identities: Identities | None = None,
        deletes: bool = True,
        public_url: str = "",
        certificates: Certificates | None = None,
    ) -> None:
        self._identities = identities
        self._certificates = certificates or Certificates()
        self._deletes = deletes
        self._public_url = public_url

    async def admit(self, request: Request, route: Route) -> None:
        """Find the caller of a request, leave it in the scope, and refuse what it may not do. Raises
        `RegistryError`."""
        state = request.scope.setdefault("state", {})
        state[CALLER] = EVERYONE_EVERYTHING
        catalog = True
        if self._identities is not None:
            try:
                state[CALLER], catalog = await self._identify(request, self._identities)
            except Unauthorized as error:
                self._challenge(request, str(error), self._wanted(request, route), "invalid_token")
            except TooMany as error:
                raise too_many(str(error), error.seconds) from None
            except (InvalidInput, Unreachable) as error:
                _log.error("a login cannot be checked: %s", error)
                raise unavailable("logins cannot be checked now") from None
        if request.method == "DELETE" and not self._deletes and route.endpoint in ("blob", "manifest"):
            raise RegistryError(405, "UNSUPPORTED", "nothing is deleted here: the configuration says deletes = false")
        if self._identities is not None:
            self._judge(request, route, state[CALLER], catalog)

    async def admit_to_everything(self, request: Request) -> None:
        """As `admit` to the catalog, for what tells of every repository: whoever may not pull from all of them, today
        and later, is refused. Raises `RegistryError`."""
        await self.admit(request, Route("catalog"))
        caller = caller_of(request)
        # A token says that its bearer may list; what it may list is told by the grants behind it.
        if Caller(caller.principal, caller.grants).may_pull_everything:
            return
        if caller.principal.is_anonymous:
            self._challenge(request, "a login that may pull from every repository is needed", _CATALOG)
        raise RegistryError(403, "DENIED", f"{caller.principal.name} may not pull from every repository")

    async def _identify(self, request: Request, identities: Identities) -> tuple[Caller, bool]:
        """The caller, and whether it may list repositories."""
        credentials = credentials_of(request)
        if credentials is None:
            subject = self._certificates.subject_of(request.scope)
            return (identities.certificate(subject) if subject else identities.anonymous()), True
        scheme, rest = credentials
        if scheme == "basic":
            return await identities.login(*basic(rest), observation_of(request.scope).client), True
        if scheme == "bearer":
            caller, bearer = await identities.bearer(rest)
            return caller, bearer.catalog
        raise Unauthorized("this way to log in is not known here")

    def _judge(self, request: Request, route: Route, caller: Caller, catalog: bool) -> None:
        anonymous = caller.principal.is_anonymous
        if route.endpoint == "base":
            if anonymous and caller.bounds is None and self._can_log_in:
                self._challenge(request, "log in, or ask for a token", None)
            return
        if route.endpoint == "catalog":
            if not catalog or (anonymous and not caller.grants):
                self._challenge(request, "a login is needed to list repositories", _CATALOG)
            return
        right = _RIGHTS.get((route.endpoint, request.method))
        if right is not None and any(caller.may(one, route.name) for one in (right, *_enough(route, request.method))):
            return
        if right is not None and (anonymous or right in caller.granted(route.name)):
            error = None if caller.bounds is None else "insufficient_scope"
            self._challenge(
                request, f"a login that may {right} is needed for {route.name}", self._wanted(request, route), error
            )
        raise denied(caller, right, route.name)

    def _wanted(self, request: Request, route: Route) -> Scope | None:
        if route.endpoint == "catalog":
            return _CATALOG
        right = _RIGHTS.get((route.endpoint, request.method))
        if right is None:
            return None
        # Clients that push read too, and ask for no more than this says.
        actions = ("pull", "push") if right is Right.PUSH else (action_for(right),)
        return Scope("repository", route.name, actions)

    @property
    def _can_log_in(self) -> bool:
        identities = self._identities
        return identities is not None and (identities.tokens is not None or identities.by_password)

    def _challenge(self, request: Request, message: str, scope: Scope | None, error: str | None = None) -> NoReturn:
        """Raise 401 with the way to log in, or 403 where there is none."""
        identities = self._identities
        assert identities is not None
        if not self._can_log_in:
            raise RegistryError(403, "DENIED", message)
        if identities.tokens is None:
            challenge = 'Basic realm="registry", charset="UTF-8"'
        else:
            challenge = f'Bearer realm="{realm(request, self._public_url)}",service="{identities.tokens.service}"'
            challenge += f',scope="{scope}"' if scope is not None else ""
            challenge += f',error="{error}"' if error is not None else ""
        raise RegistryError(401, "UNAUTHORIZED", message, {"WWW-Authenticate": challenge})


def _enough(route: Route, method: str) -> tuple[Right, ...]:
    """A right that serves in place of the one a request needs. How far an upload is, is told to whoever began it: some
    replicators ask with a token for pulling, which is what GET stands for in distribution's scopes."""
    return (Right.PULL,) if route.endpoint == "upload" and method in ("GET", "HEAD") else ()


def denied(caller: Caller, right: Right | None, repository: str) -> RegistryError:
    """The answer to somebody who is known and may not."""
    what = right.value if right is not None else "do that"
    return RegistryError(403, "DENIED", f"{caller.principal.name} may not {what} in {repository}")


def too_many(message: str, seconds: float) -> RegistryError:
    """The answer to a sender that has to wait."""
    wait = str(max(1, math.ceil(seconds)))
    return RegistryError(429, "TOOMANYREQUESTS", f"{message}: wait {wait} s", {"Retry-After": wait})


def realm(request: Request, public_url: str) -> str:
    """Where tokens are issued. Raises `RegistryError` if the client names the registry in a way that is no host."""
    if public_url:
        return f"{public_url}/token"
    host = request.headers.get("host", "")
    if not is_host(host):
        raise RegistryError(400, "UNSUPPORTED", "the Host header is not a host")
    return f"{request.scope.get('scheme', 'http')}://{host}/token"


def credentials_of(request: Request) -> tuple[str, str] | None:
    """The scheme, in lower case, and the rest of the Authorization header. Raises `Unauthorized` if there are two or
    it is too long."""
    headers = request.headers.getlist("authorization")
    if not headers:
        return None
    if len(headers) > 1 or len(headers[0]) > _MAX_CREDENTIALS:
        raise Unauthorized("the request has more than one Authorization header, or too long a one")
    scheme, _, rest = headers[0].partition(" ")
    return scheme.lower(), rest.strip()


def basic(encoded: str) -> tuple[str, str]:
    """User name and password of Basic credentials (RFC 7617). Raises `Unauthorized`."""
    try:
        user, colon, password = base64.b64decode(encoded, validate=True).decode("utf-8").partition(":")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        colon = ""
    if not colon:
        raise Unauthorized("the Basic credentials cannot be read")
    return user, password
