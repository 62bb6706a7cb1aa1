"""``/token``: where logins and OIDC tokens become registry tokens. Source: distribution, "Token Authentication
Specification" and "OAuth2 Token Authentication"; RFC 6749 section 4.3, RFC 7523 section 2.1."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Mapping
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from artifact.errors import InvalidInput, Unauthorized, Unreachable
from registry.access import scopes
from registry.access.identity import Identities
from registry.access.rights import Caller
from registry.access.tokens import Tokens
from registry.http.certificate import Certificates
from registry.http.errors import RegistryError, unavailable
from registry.http.gate import CALLER, basic, credentials_of, too_many
from registry.http.observed import observation_of
from registry.http.operation import Operation
from registry.limits import TooMany

_MAX_FORM = 64 * 1024
_JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_log = logging.getLogger("registry")
_PRIVATE = {"Cache-Control": "no-store", "Pragma": "no-cache"}


class TokenEndpoint:
    """Issues tokens for what callers may do, and no more."""

    def __init__(
        self, identities: Identities, tokens: Tokens, certificates: Certificates, operation: Operation
    ) -> None:
        self._identities = identities
        self._tokens = tokens
        self._certificates = certificates
        self._operation = operation

    async def answer(self, request: Request) -> Response:
        """GET, or POST of a form."""
        observation_of(request.scope).route = "token"
        try:
            try:
                return await self._answer(request)
            except Unauthorized as error:
                self._operation.limit_address(request)
                headers = {"WWW-Authenticate": 'Basic realm="registry", charset="UTF-8"'}
                return RegistryError(401, "UNAUTHORIZED", str(error), headers).response()
            except TooMany as error:
                self._operation.limited()
                return too_many(str(error), error.seconds).response()
        except RegistryError as error:
            return error.response()
        except (InvalidInput, Unreachable) as error:
            _log.error("a login cannot be checked: %s", error)
            return unavailable("logins cannot be checked now").response()

    async def _answer(self, request: Request) -> Response:
        address = observation_of(request.scope).client
        if request.method == "POST":
            form = await _form(request)
            caller, asked = await self._granted(form, address), [text for key, text in form if key == "scope"]
            service = dict(form).get("service")
        else:
            caller, asked = await self._caller(request), request.query_params.getlist("scope")
            service = request.query_params.get("service")
        if service is not None and service != self._tokens.service:
            raise RegistryError(400, "UNSUPPORTED", f"this is the token service of {self._tokens.service}")
        request.scope.setdefault("state", {})[CALLER] = caller
        self._operation.limit(request)
        allowed = scopes.granted(caller, scopes.parse(asked))
        token, now = self._tokens.issue(caller.principal, allowed)
        issued = datetime.datetime.fromtimestamp(now, datetime.UTC).isoformat().replace("+00:00", "Z")
        body = {"token": token, "access_token": token, "expires_in": self._tokens.lifetime, "issued_at": issued}
        if request.method == "POST":
            body |= {"token_type": "Bearer", "scope": " ".join(map(str, allowed))}
        return JSONResponse(body, headers=_PRIVATE)

    async def _caller(self, request: Request) -> Caller:
        credentials = credentials_of(request)
        if credentials is None:
            subject = self._certificates.subject_of(request.scope)
            return self._identities.certificate(subject) if subject else self._identities.anonymous()
        scheme, rest = credentials
        address = observation_of(request.scope).client
        if scheme == "basic":
            return await self._identities.login(*basic(rest), address)
        if scheme == "bearer":
            return await self._identities.oidc(rest, address)
        raise Unauthorized("this way to log in is not known here")

    async def _granted(self, form: list[tuple[str, str]], address: str) -> Caller:
        fields: Mapping[str, str] = dict(form)
        kind = fields.get("grant_type")
        if kind == "password":
            return await self._identities.login(fields.get("username", ""), fields.get("password", ""), address)
        if kind == _JWT_BEARER:
            return await self._identities.oidc(fields.get("assertion", ""), address)
        raise RegistryError(400, "UNSUPPORTED", f"unsupported_grant_type: use password or {_JWT_BEARER}")


async def _form(request: Request) -> list[tuple[str, str]]:
    raw = bytearray()
    async for part in request.stream():
        raw += part
        if len(raw) > _MAX_FORM:
            raise RegistryError(413, "SIZE_INVALID", "the form is too large")
    try:
        return parse_qsl(raw.decode("utf-8"), max_num_fields=100, keep_blank_values=True)
    except ValueError:
        raise RegistryError(400, "UNSUPPORTED", "the body is not a form") from None
