"""Registry tokens: short-lived JWTs, signed with ES256. Source: distribution, "Token Authentication Specification";
RFC 7519, RFC 8725.

Which keys are believed stands in the configuration alone. What a token's header says of keys (``kid``, ``jwk``,
``jku``, ``x5c``, ``x5u``) is not looked at except to refuse it (CVE-2025-24976).
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from artifact.errors import InvalidInput, Unauthorized
from registry.access.rights import Grant, Principal, Right
from registry.access.scopes import Scope, actions_of

MAX_TOKEN = 16 * 1024
"""Longest token that is read, in characters."""

_ALGORITHM = "ES256"
_KEYS_IN_HEADER = ("jwk", "jku", "x5c", "x5u", "x5t", "x5t#S256", "crit")
_LEEWAY = 30  # seconds by which the clocks of two replicas may differ
_CATALOG = "registry"
_REMEMBERED = 1024


@dataclass(frozen=True)
class Bearer:
    """What a registry token proves: who, and what at most. `catalog` is whether repositories may be listed; `expires`
    is in seconds since the epoch."""

    principal: Principal
    bounds: tuple[Grant, ...]
    catalog: bool
    expires: float


class Tokens:
    """Issues and reads the tokens of one service. `InvalidInput` is raised on keys that are none."""

    def __init__(self, key: Path, previous: Sequence[Path], service: str, lifetime: int) -> None:
        self._key = _private(key)
        self._trusted = (self._key.public_key(), *map(_public, previous))
        self.service = service
        self.lifetime = lifetime
        self._known: dict[str, Bearer] = {}

    def issue(self, principal: Principal, scopes: Sequence[Scope]) -> tuple[str, int]:
        """A token for a principal that allows what `scopes` say, and the time it was made, in epoch seconds."""
        now = int(time.time())
        claims = {
            "iss": self.service,
            "aud": self.service,
            "sub": principal.name,
            "groups": sorted(principal.groups),
            "iat": now,
            "nbf": now,
            "exp": now + self.lifetime,
            "jti": secrets.token_hex(16),
            "access": [scope.to_json() for scope in scopes],
        }
        return jwt.encode(claims, self._key, algorithm=_ALGORITHM), now

    def read(self, token: str) -> Bearer:
        """What a token proves. Raises `Unauthorized` if it proves nothing."""
        known = self._known.get(token)
        if known is not None and time.time() < known.expires:
            return known
        bearer = self._read(token)
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[token] = bearer
        return bearer

    def _read(self, token: str) -> Bearer:
        claims = self._claims(token)
        try:
            principal = Principal(str(claims["sub"]), frozenset(map(str, claims["groups"])))
            bounds, catalog = [], False
            for item in claims["access"]:
                if item["type"] == "repository":
                    bounds.append(Grant((str(item["name"]),), _rights(item["actions"])))
                elif item["type"] == _CATALOG and item["name"] == "catalog":
                    catalog = "*" in item["actions"]
        except (KeyError, TypeError, ValueError):
            raise Unauthorized("the token is not one of this registry") from None
        return Bearer(principal, tuple(bounds), catalog, float(claims["exp"]))

    def _claims(self, token: str) -> dict[str, Any]:
        if len(token) > MAX_TOKEN or not token.isascii():
            raise Unauthorized("the token cannot be read")
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.InvalidTokenError, ValueError, RecursionError):
            raise Unauthorized("the token cannot be read") from None
        if any(name in header for name in _KEYS_IN_HEADER):
            raise Unauthorized("the token brings a key of its own")
        why = "the token is not one of this registry"
        for key in self._trusted:
            try:
                return jwt.decode(
                    token,
                    key,
                    algorithms=[_ALGORITHM],
                    audience=self.service,
                    issuer=self.service,
                    leeway=_LEEWAY,
                    options={"require": ["iss", "aud", "sub", "iat", "nbf", "exp"], "strict_aud": True},
                )
            except jwt.ExpiredSignatureError:
                why = "the token has expired"
            except jwt.InvalidTokenError:
                continue
        raise Unauthorized(why)


def _rights(actions: Any) -> frozenset[Right]:
    """What the actions of a token allow. Docker's clients ask for ``push`` whether a tag is there or not, so that
    bounds both ways of pushing; which of them the principal has is for the rules to say."""
    if not isinstance(actions, list):
        raise TypeError
    return frozenset(right for action in actions for right in actions_of(str(action)))


def generate_key(path: Path) -> None:
    """Write a new private key, readable by its owner alone. Raises `InvalidInput` if the file is there."""
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise InvalidInput(f"{path} is there already: choose another name, a key is never replaced") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())


def _private(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(_read(path), None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidInput(f"{path} is not a P-256 private key in PEM: make one with registry config token-key FILE")
    return key


def _public(path: Path) -> ec.EllipticCurvePublicKey:
    raw = _read(path)
    if b"PRIVATE KEY" in raw:
        return _private(path).public_key()
    try:
        key = load_pem_public_key(raw)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidInput(f"{path} is not a P-256 key in PEM")
    return key


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}") from None
