"""Answering a registry's challenges without telling anything to anyone else.

oras-py's own token backend sends the user's password to whatever realm a server names; here a login goes to the host
it belongs to and nowhere else (CVE-2026-33990, CVE-2025-51471), so this module stands in its place.

A token realm on another host gets a login only if the pair of hosts is known to be one service, or if whoever runs
this names it: `token_hosts` or ``STOWAGE_TOKEN_HOSTS``. That the user has a login for that host does not do: the
registry that names it is not the one that the login was made for, and would be given its tokens. A realm is never
followed from the outside into the inside network, and never from https to http. Source: distribution's token
authentication specification.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from urllib.parse import SplitResult, urlencode, urlsplit

from artifact.errors import ServerError, Unauthorized
from artifact.remote.answer import Response, read_whole
from artifact.remote.challenge import Challenge, parse_challenges
from artifact.remote.credentials import Credentials, Login
from artifact.remote.hosts import host_only, is_internal
from artifact.remote.tokenhosts import VARIABLE, token_hosts_of
from artifact.remote.urls import authority, split_url
from artifact.version import USER_AGENT

_ONE_SERVICE = {
    "registry-1.docker.io": "auth.docker.io",
    "index.docker.io": "auth.docker.io",
    "docker.io": "auth.docker.io",
    "registry.gitlab.com": "gitlab.com",
}
"""Registries whose token service is known to be on another host of the same operator."""

_MAX_TOKEN = 1024 * 1024

Send = Callable[..., Response]
"""``send(method, url, headers=…, body=…)``, without redirects and without authorisation of its own."""


class Authorizer:
    """Finds the ``Authorization`` header for requests to one registry. Safe for several threads.

    With `token_hosts`, tokens are asked for at the registry itself, at its known token service, and there; nowhere
    else, whatever it says (CVE-2026-33540). Without it they are asked for anywhere, but with a login only there and at
    the hosts that the environment names. Raises `InvalidInput` if what the environment says makes no sense.
    """

    def __init__(
        self,
        scheme: str,
        host: str,
        credentials: Credentials,
        send: Send,
        token_hosts: frozenset[str] | None = None,
    ) -> None:
        self._only_named = token_hosts is not None
        self._named = token_hosts_of(host) if token_hosts is None else token_hosts
        self._elsewhere = ""
        self._scheme = scheme
        self._host = host
        self._credentials = credentials
        self._send = send
        self._lock = threading.Lock()
        self._headers: dict[str, str] = {}

    def header(self, scope: str) -> str | None:
        """What is known to work for `scope`, from an earlier challenge."""
        return self._headers.get(scope) or self._headers.get("")

    @property
    def advice(self) -> str:
        """What the user can do where a login is missing or does not suffice."""
        login = f"packager login {self._host}"
        if not self._elsewhere:
            return login
        return (
            f"{login}; no login was sent to its token service {self._elsewhere}, which is another host: where the two "
            f"belong together, set {VARIABLE}={self._host}={self._elsewhere}"
        )

    def answer(self, response: Response, scope: str, refused: str | None) -> str:
        """The header that meets the challenge in `response`. `refused` is the header the request had.

        Raises `Unauthorized` if there is nothing (more) to offer.
        """
        with self._lock:
            current = self.header(scope)
            if current is not None and current != refused:
                return current  # another thread has met the challenge meanwhile
            challenges = parse_challenges(", ".join(response.headers.getlist("WWW-Authenticate")))
            for challenge in challenges:
                if challenge.scheme == "bearer":
                    header = self._bearer(challenge, scope)
                    self._headers[scope] = header
                    return header
            login = self._credentials.get(self._host)
            if any(challenge.scheme == "basic" for challenge in challenges) and login and not login.identity_token:
                if login.basic != refused:
                    self._headers[""] = login.basic
                    return login.basic
                raise Unauthorized(f"{self._host} does not accept the stored login: packager login {self._host}")
        raise Unauthorized(f"{self._host} asks for a login: packager login {self._host}")

    def _bearer(self, challenge: Challenge, scope: str) -> str:
        realm = self._checked_realm(challenge.parameters.get("realm", ""))
        login = self._login_for(realm)
        scopes = (scope or challenge.parameters.get("scope", "")).split(" ")
        query = [("service", challenge.parameters["service"])] if challenge.parameters.get("service") else []
        query += [("scope", item) for item in scopes if item]
        if login and login.identity_token:
            form = [("grant_type", "refresh_token"), ("refresh_token", login.identity_token), ("client_id", "stowage")]
            response = self._send(
                "POST", realm, body=urlencode([*form, *query]),
                headers={"User-Agent": USER_AGENT, "Content-Type": "application/x-www-form-urlencoded"},
            )  # fmt: skip
        else:
            headers = {"User-Agent": USER_AGENT, "Accept": "application/json"}
            if login:
                headers["Authorization"] = login.basic
                query.append(("account", login.username))
            separator = "&" if urlsplit(realm).query else "?"
            response = self._send("GET", f"{realm}{separator}{urlencode(query)}", headers=headers)
        return "Bearer " + self._token(response, realm, with_login=login is not None)

    def _checked_realm(self, realm: str) -> str:
        try:
            parts = split_url(realm, self._host)
        except ServerError:
            parts = SplitResult("", "", "", "", "")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None or parts.fragment:
            raise ServerError(f"{self._host} names a token service that is no URL: {realm[:100]!r}")
        if self._only_named and not (self._is_own(parts) or self._is_named(parts)):
            raise Unauthorized(f"{self._host} names a token service elsewhere ({parts.netloc}): not asked")
        if host_only(parts.netloc) != host_only(self._host):
            if self._scheme == "https" and parts.scheme != "https":
                raise Unauthorized(f"{self._host} names a token service without TLS ({parts.netloc}): not asked")
            if is_internal(parts.netloc) and not is_internal(self._host):
                raise Unauthorized(
                    f"{self._host} names a token service inside this network ({parts.netloc}): not asked"
                )
        elif self._scheme == "https" and parts.scheme != "https":
            raise Unauthorized(f"{self._host} names a token service without TLS: not asked")
        return realm

    def _is_own(self, parts: SplitResult) -> bool:
        return not {parts.netloc, authority(parts)}.isdisjoint((self._host, _ONE_SERVICE.get(self._host)))

    def _is_named(self, parts: SplitResult) -> bool:
        return not self._named.isdisjoint((parts.netloc.lower(), authority(parts)))

    def _login_for(self, realm: str) -> Login | None:
        parts = urlsplit(realm)
        self._elsewhere = ""
        if self._is_own(parts):
            return self._credentials.get(self._host)
        if host_only(parts.netloc) == host_only(self._host):
            return self._credentials.get(parts.netloc) or self._credentials.get(self._host)
        if self._is_named(parts):
            return self._credentials.get(self._host) or self._credentials.get(parts.netloc)
        self._elsewhere = authority(parts)
        return None

    def _token(self, response: Response, realm: str, *, with_login: bool) -> str:
        host = urlsplit(realm).netloc
        if response.status in (400, 401, 403):
            response.close()
            said = "does not accept the login" if with_login else "gives no token"
            raise Unauthorized(f"{host} {said} for {self._host}: {self.advice}")
        try:
            value = json.loads(read_whole(response, _MAX_TOKEN, host))
            token = value.get("token") or value.get("access_token")
        except (ValueError, AttributeError, RecursionError):
            token = None
        if response.status != 200 or not isinstance(token, str) or not token.isascii() or not token.isprintable():
            token = ""
        if not token:
            raise ServerError(f"{host} answered {response.status} and no token when asked for one for {self._host}")
        return token
