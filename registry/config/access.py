"""The sections of ``registry.toml`` that say who may do what."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from registry.access.rights import ANONYMOUS, AUTHENTICATED, Grant, Right, Rule
from registry.config.document import Node
from registry.config.sections import Auth, OidcIssuer, Server, TagPattern, TokenService
from registry.listen import is_loopback, listen_address

_REPOSITORY = re.compile(r"[a-z0-9._/*-]{1,255}")
_TAG = re.compile(r"[A-Za-z0-9._*-]{1,128}")
_ISSUER_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signature algorithms an issuer may use. All have a public key: none lets a reader of it make tokens."""


def web_url(node: Node) -> str:
    """An ``https`` URL, or an ``http`` one of this machine."""
    text = node.text()
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        parts, host = urlsplit(""), ""
    if parts.scheme not in ("http", "https") or not host or parts.username is not None or parts.fragment:
        node.fail("must be an https:// URL")
    if parts.scheme == "http" and not is_loopback(host) and not _is_private(host):
        node.fail("must be an https:// URL: plain http is for addresses of this machine and its own network")
    return text


def _is_private(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host  # a service of the same Compose file or Kubernetes namespace


def repository_patterns(node: Node) -> tuple[str, ...]:
    """An array of repository patterns."""
    for item in node.items():
        if not _REPOSITORY.fullmatch(item.text()) or "***" in item.value:
            item.fail(f"not a repository pattern: {item.value!r} (NAME with * not across / and ** across /)")
    return node.texts()


def tag_patterns(node: Node) -> tuple[TagPattern, ...]:
    """An array of ``REPOSITORY:TAG`` patterns."""
    patterns = []
    for item in node.items():
        repository, colon, tag = item.text().partition(":")
        if not (colon and _REPOSITORY.fullmatch(repository) and _TAG.fullmatch(tag)) or "***" in item.value:
            item.fail(f'not a tag pattern: {item.value!r} (REPOSITORY:TAG, for example "team/**:v*")')
        patterns.append(TagPattern(repository, tag))
    return tuple(patterns)


def read_auth(node: Node, server: Server) -> Auth:
    """``[auth]``."""
    known = node.table("htpasswd", "robots", "token")
    htpasswd = known["htpasswd"].file() if "htpasswd" in known else None
    if htpasswd is not None and not htpasswd.is_file():
        known["htpasswd"].fail(f"there is no file {htpasswd}: make it with registry user add NAME --htpasswd FILE")
    return Auth(
        htpasswd=htpasswd,
        robots=known["robots"].boolean() if "robots" in known else False,
        token=_token(known["token"], server) if "token" in known else None,
    )


def _token(node: Node, server: Server) -> TokenService:
    known = node.table("key", "previous-keys", "service", "lifetime")
    if not server.public_url and not is_loopback(listen_address(server.listen)[0]):
        node.fail("server.public-url is missing: clients are sent there for their tokens")
    for file in (node.required(known, "key"), *(known["previous-keys"].items() if "previous-keys" in known else ())):
        if not file.file().is_file():
            file.fail(f"there is no file {file.file()}: make it with registry config token-key FILE")
    host = urlsplit(server.public_url).netloc or server.listen
    return TokenService(
        key=known["key"].file(),
        service=known["service"].text() if "service" in known else host,
        previous=tuple(item.file() for item in known["previous-keys"].items()) if "previous-keys" in known else (),
        lifetime=known["lifetime"].duration(60, 3600) if "lifetime" in known else 300,
    )


def read_oidc(node: Node) -> tuple[OidcIssuer, ...]:
    """``[[oidc]]``."""
    issuers = tuple(map(_issuer, node.items()))
    for number, item in enumerate(node.items()):
        names = [other.name for other in issuers[:number]], [other.issuer for other in issuers[:number]]
        if issuers[number].name in names[0] or issuers[number].issuer in names[1]:
            item.fail("an issuer of this name or URL is there already")
    return issuers


def _issuer(node: Node) -> OidcIssuer:
    known = node.table("name", "issuer", "audience", "claims", "jwks-url", "ca", "algorithms")
    name = node.required(known, "name")
    if not _ISSUER_NAME.fullmatch(name.text()):
        name.fail("must be lower-case letters, digits and dashes")
    claims_node = node.required(known, "claims")
    claims = {
        claim: value.texts() if isinstance(value.value, list) else (value.text(),)
        for claim, value in claims_node.table().items()
    }
    if not claims:
        claims_node.fail('name at least one claim that a token must have (sub = "**" takes every subject)')
    ca = known["ca"].file() if "ca" in known else None
    if ca is not None and not ca.is_file():
        known["ca"].fail(f"there is no file {ca}")
    return OidcIssuer(
        name=name.text(),
        issuer=_tls_url(node.required(known, "issuer")),
        audience=node.required(known, "audience").text(),
        claims=claims,
        jwks_url=_tls_url(known["jwks-url"]) if "jwks-url" in known else "",
        ca=ca,
        algorithms=tuple(item.choice(*ALGORITHMS) for item in known["algorithms"].items())
        if "algorithms" in known
        else OidcIssuer.algorithms,
    )


def _tls_url(node: Node) -> str:
    text = web_url(node)
    parts = urlsplit(text)
    if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
        node.fail("must be an https:// URL: keys that come in the clear are nobody's")
    if parts.query:
        node.fail("must be a URL without a query")
    return text


def read_access(node: Node) -> tuple[Rule, ...]:
    """``[[access]]``."""
    return tuple(map(_rule, node.items()))


def _rule(node: Node) -> Rule:
    known = node.table("principals", "repositories", "rights")
    principals = node.required(known, "principals")
    for item in principals.items():
        if item.text() in ("*", "**"):
            item.fail(f'say who: "{AUTHENTICATED}" is everybody with a login, "{ANONYMOUS}" everybody else')
        if not item.value.isprintable():
            item.fail("not a principal's name")
    repositories = repository_patterns(node.required(known, "repositories"))
    rights = [item.choice(*Right) for item in node.required(known, "rights").items()]
    if not rights or not repositories:
        node.fail("a rule needs at least one repository and one right")
    return Rule(principals.texts(), Grant(repositories, frozenset(map(Right, rights))))
