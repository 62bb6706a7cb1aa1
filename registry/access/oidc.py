"""Tokens of OpenID Connect issuers, so that programs which have an identity need no password. Source: OpenID Connect
Discovery 1.0; RFC 7517, RFC 7519, RFC 8725.

An issuer's keys are fetched from the place the configuration names, or from the one its own discovery document names
on the same host; never from where a token says.
"""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import jwt
import urllib3

from artifact.errors import Unauthorized, Unreachable
from artifact.version import USER_AGENT
from registry.access.rights import Principal
from registry.access.tokens import MAX_TOKEN
from registry.config.sections import OidcIssuer
from supplychain.glob import matches

USER = "oidc"
"""The user name whose password is an OIDC token."""

_MAX_DOCUMENT = 256 * 1024
_MAX_KEYS = 64
_FRESH = 3600.0  # seconds for which keys are not fetched again
_PATIENCE = 30.0  # seconds between two attempts to find a key that is not known
_TIMEOUT = urllib3.Timeout(connect=5, read=5)
_LEEWAY = 30
_KEY_TYPES = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}


class Issuers:
    """The configured issuers. Safe for several threads; every call may wait for the network."""

    def __init__(self, issuers: Sequence[OidcIssuer]) -> None:
        self._issuers = {issuer.issuer: _Issuer(issuer) for issuer in issuers}

    def principal(self, token: str) -> Principal:
        """Who an OIDC token is for. Raises `Unauthorized`, and `Unreachable` if the issuer's keys cannot be had."""
        if len(token) > MAX_TOKEN or not token.isascii():
            raise Unauthorized("the OIDC token cannot be read")
        try:
            stated = jwt.decode(token, options={"verify_signature": False}).get("iss")
            header = jwt.get_unverified_header(token)
        except (jwt.InvalidTokenError, ValueError, RecursionError):
            raise Unauthorized("the OIDC token cannot be read") from None
        issuer = self._issuers.get(stated) if isinstance(stated, str) else None
        if issuer is None:
            raise Unauthorized("the OIDC token is of an issuer that is not configured here")
        return issuer.principal(token, header)


class _Issuer:
    def __init__(self, settings: OidcIssuer) -> None:
        self._settings = settings
        context = ssl.create_default_context(cafile=None if settings.ca is None else str(settings.ca))
        self._pool = urllib3.PoolManager(ssl_context=context, maxsize=1)
        self._lock = threading.Lock()
        self._keys: list[dict[str, Any]] = []
        self._fetched = self._tried = float("-inf")
        self._failure = ""

    def principal(self, token: str, header: Mapping[str, Any]) -> Principal:
        claims = self._claims(token, header)
        for name, patterns in self._settings.claims.items():
            if not any(matches(pattern, text) for pattern in patterns for text in _texts(claims.get(name))):
                raise Unauthorized(f"the OIDC token's claim {name!r} is not one that is let in")
        subject = claims["sub"]
        if not isinstance(subject, str) or not subject or len(subject) > 512 or not subject.isprintable():
            raise Unauthorized("the OIDC token's subject cannot be used as a name")
        group = f"oidc:{self._settings.name}"
        return Principal(f"{group}:{subject}", frozenset({group}))

    def _claims(self, token: str, header: Mapping[str, Any]) -> dict[str, Any]:
        algorithm = header.get("alg")
        if algorithm not in self._settings.algorithms:
            raise Unauthorized("the OIDC token is signed in a way that is not taken from this issuer")
        why = "the OIDC token's signature is not its issuer's"
        for key in self._candidates(header.get("kid"), str(algorithm)):
            try:
                claims: dict[str, Any] = jwt.decode(
                    token,
                    key,
                    algorithms=[str(algorithm)],
                    audience=self._settings.audience,
                    issuer=self._settings.issuer,
                    leeway=_LEEWAY,
                    options={"require": ["iss", "aud", "sub", "exp"]},
                )
                return claims
            except jwt.InvalidSignatureError:
                continue
            except jwt.InvalidTokenError as error:
                why = f"the OIDC token is not good here: {error}"
        raise Unauthorized(why)

    def _candidates(self, kid: Any, algorithm: str) -> list[jwt.PyJWK]:
        """The issuer's keys that may have signed a token. Raises `Unreachable` if they are old and not to be had."""
        with self._lock:
            now = time.monotonic()
            found = _matching(self._keys, kid, algorithm)
            stale = now - self._fetched > _FRESH
            if (stale or not found) and now - self._tried > _PATIENCE:
                self._tried = now
                try:
                    self._keys, self._fetched, self._failure = self._fetch(), now, ""
                    stale = False
                except Unreachable as error:
                    self._failure = str(error)
                found = _matching(self._keys, kid, algorithm)
            if stale:
                raise Unreachable(self._failure)
        return found

    def _fetch(self) -> list[dict[str, Any]]:
        issuer, url = self._settings.issuer, self._settings.jwks_url
        if not url:
            document = self._get(issuer.rstrip("/") + "/.well-known/openid-configuration")
            url = document.get("jwks_uri", "")
            if document.get("issuer") != issuer or not isinstance(url, str) or _origin(url) != _origin(issuer):
                raise Unreachable(
                    f"OIDC issuer {issuer} says that its keys are elsewhere: state jwks-url if that is right"
                )
        keys = self._get(url).get("keys")
        return [key for key in keys[:_MAX_KEYS] if isinstance(key, dict)] if isinstance(keys, list) else []

    def _get(self, url: str) -> dict[str, Any]:
        try:
            response = self._pool.request(
                "GET", url, headers={"User-Agent": USER_AGENT, "Accept": "application/json"}, redirect=False,
                retries=False, timeout=_TIMEOUT, preload_content=False,
            )  # fmt: skip
            raw = response.read(_MAX_DOCUMENT + 1, decode_content=True)
            status = response.status
            response.close()
        except urllib3.exceptions.HTTPError as error:
            raise Unreachable(f"OIDC issuer {self._settings.name} cannot be asked for its keys: {error}") from None
        try:
            value = json.loads(raw) if status == 200 and len(raw) <= _MAX_DOCUMENT else None
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise Unreachable(f"OIDC issuer {self._settings.name} answers {status} and no keys at {url}")
        return value


def _matching(keys: Sequence[dict[str, Any]], kid: Any, algorithm: str) -> list[jwt.PyJWK]:
    """Those of an issuer's keys that can be the one named `kid` and are for `algorithm`."""
    found = []
    for value in keys:
        if value.get("kty") != _KEY_TYPES.get(algorithm[:2]) or value.get("alg", algorithm) != algorithm:
            continue
        if value.get("use", "sig") != "sig" or (kid is not None and value.get("kid", kid) != kid):
            continue
        try:
            found.append(jwt.PyJWK.from_dict(value, algorithm))
        except jwt.PyJWTError:
            continue  # of a kind that is not known here, among others that are
    return found


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, bool):
        return [str(value).lower()]
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()
