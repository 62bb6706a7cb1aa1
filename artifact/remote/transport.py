"""HTTP to one registry: connections, retries, redirects, authorisation, and errors that say what to do."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3

from artifact.errors import NotFound, ServerError, StowageError, Unauthorized, Unreachable
from artifact.remote.answer import Response, asked_wait, first_error, read_whole, reason
from artifact.remote.auth import Authorizer
from artifact.remote.credentials import Credentials, Login
from artifact.remote.hosts import is_internal, scheme_of
from artifact.remote.pace import Pace
from artifact.remote.urls import authority, join_url, path_and_query, split_url
from artifact.version import USER_AGENT

Body = bytes | Callable[[], Any] | None
"""A request's body: bytes, or a function that opens it afresh for every attempt."""

_BUFFER = 1024 * 1024
_ATTEMPTS = 4
_MAX_REDIRECTS = 5
_MAX_WAIT = 30.0
_MAX_BODY = 8 * 1024 * 1024  # twice the largest document there is, so that it is the document which is refused
_AGAIN = (429, 500, 502, 503, 504)
_REDIRECTS = (301, 302, 303, 307, 308)
_TIMEOUT = urllib3.Timeout(connect=10, read=120)
_STALL = urllib3.Timeout(connect=10, read=30)
"""Where a body is streamed: a server that sends nothing for so long has stopped."""


class Busy(Unreachable):
    """A server asks for patience by an answer with this `status`, to a request that is not simply sent again."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class _Call:
    """A request, wherever it will be sent."""

    method: str
    headers: Mapping[str, str]
    body: Body
    landed: Callable[[str], None] | None
    timeout: urllib3.Timeout


class Transport:
    """Requests to the registry `host`. Safe for several threads."""

    def __init__(
        self,
        host: str,
        *,
        plain_http: bool = False,
        credentials: Credentials | None = None,
        pace: Pace | None = None,
        token_hosts: frozenset[str] | None = None,
        attempts: int = _ATTEMPTS,
    ) -> None:
        self.host = host
        self._attempts = attempts
        self._pace = pace or Pace()
        self.scheme = scheme_of(host, plain_http)
        wire_host = "registry-1.docker.io" if host in ("docker.io", "index.docker.io") else host
        self.base = f"{self.scheme}://{wire_host}"
        self._pools: dict[str, urllib3.PoolManager] = {}
        self._authorizer = Authorizer(self.scheme, host, credentials or Credentials.load(), self._send, token_hosts)

    def request(
        self,
        method: str,
        url: str,
        *,
        scope: str,
        expect: tuple[int, ...],
        headers: Mapping[str, str] | None = None,
        body: Body = None,
        stream: bool = False,
        what: str = "",
        retry: bool = True,
        landed: Callable[[str], None] | None = None,
    ) -> Response:
        """Send a request and return a response whose status is in `expect`.

        `url` is a path, or a URL the registry gave. `what` names the thing asked for in errors. With `stream` the
        body is left to be read by the caller. With `retry` (for requests that may be repeated) connection failures and
        the statuses that ask for patience are tried again; without it these raise `Busy`. `landed` is told the URL that
        redirects led to. Raises `NotFound`, `Unauthorized`, `Unreachable`, `ServerError`.
        """
        call = _Call(method, dict(headers or {}), body, landed, _STALL if stream else _TIMEOUT)
        failure: StowageError | None = None
        for attempt in range(self._attempts if retry else 1):
            if attempt:
                time.sleep(min(0.25 * 2**attempt, _MAX_WAIT))
            try:
                response = self._authorized(call, url, scope)
                if response.status in expect:
                    return response if stream else self._loaded(response)
            except Unreachable as error:
                failure = error
                continue
            if response.status not in _AGAIN or (retry and attempt == self._attempts - 1):
                self._raise(response, method, what or url)
            wait = asked_wait(response)
            self._pace.hold(wait)  # also where another request than this one comes next
            if not retry:
                said = f"{self.host} answered {response.status} to {method} of {what or url}{first_error(response)}"
                raise Busy(said, response.status)
            response.drain_conn()
            time.sleep(wait)
        assert failure is not None
        raise failure

    def _authorized(self, call: _Call, url: str, scope: str) -> Response:
        target, given = urljoin(self.base, url), self._authorizer.header(scope)
        response = self._redirected(call, target, given)
        if response.status == 401:
            answer = self._authorizer.answer(response, scope, given)
            response.drain_conn()
            response = self._redirected(call, target, answer)
        return response

    def _redirected(self, call: _Call, url: str, authorization: str | None) -> Response:
        for followed in range(_MAX_REDIRECTS + 1):
            own = self._is_own(url) and urlsplit(url).scheme == self.scheme
            extra = {"Authorization": authorization} if authorization and own else {}
            headers = {"User-Agent": USER_AGENT, **call.headers, **extra}
            response = self._send(call.method, url, headers=headers, body=call.body, timeout=call.timeout)
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or not location or call.method not in ("GET", "HEAD"):
                if followed and call.landed is not None:
                    call.landed(url)
                return response
            response.drain_conn()
            url = self._checked(url, location, "redirects")
        raise ServerError(f"{self.host} redirects more than {_MAX_REDIRECTS} times")

    def location(self, stated: str) -> str:
        """Where the registry wants what follows to be sent. On its own host that is path and query only: it may not
        know that TLS ends in front of it, and is always spoken to as configured. Elsewhere it is checked as a redirect
        is. Raises `ServerError`."""
        target = join_url(self.base, stated, self.host)
        if self._is_own(target):
            return path_and_query(split_url(target, self.host))
        return self._checked(self.base, target, "sends an upload on")

    def _is_own(self, url: str) -> bool:
        return authority(split_url(url, self.host)) == authority(urlsplit(self.base))

    def _checked(self, url: str, location: str, does: str) -> str:
        """Where `location` leads from `url`, if one may go there."""
        target = join_url(url, location, self.host)
        parts = split_url(target, self.host)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ServerError(f"{self.host} {does} to something that is no URL: {location[:100]!r}")
        if urlsplit(url).scheme == "https" and parts.scheme != "https":
            raise ServerError(f"{self.host} {does} from https to http ({parts.netloc}): not followed")
        if is_internal(parts.netloc) and not is_internal(urlsplit(url).netloc):
            raise ServerError(f"{self.host} {does} into this network ({parts.netloc}): not followed")
        return target

    def _send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Body = None,
        timeout: urllib3.Timeout = _TIMEOUT,
    ) -> Response:
        content = body() if callable(body) else body
        self._pace.wait()
        try:
            return self._pool(url).request(
                method, url, headers=headers, body=content, redirect=False, retries=False, preload_content=False,
                decode_content=False, timeout=timeout,
            )  # fmt: skip
        except urllib3.exceptions.HTTPError as error:
            raise Unreachable(f"cannot reach {urlsplit(url).netloc}: {reason(error)}") from None

    def _pool(self, url: str) -> urllib3.PoolManager:
        parts = urlsplit(url)
        proxy = "" if proxy_bypass(parts.netloc) or is_internal(parts.netloc) else getproxies().get(parts.scheme, "")
        if proxy not in self._pools:
            options: dict[str, Any] = {"maxsize": 16, "blocksize": _BUFFER}
            self._pools[proxy] = (
                urllib3.ProxyManager(proxy, proxy_headers=_proxy_login(proxy), **options)
                if proxy
                else urllib3.PoolManager(**options)
            )
        return self._pools[proxy]

    def _loaded(self, response: Response) -> Response:
        """A response whose small body has been read, so that its connection is free again."""
        data = read_whole(response, _MAX_BODY, self.host)
        response._body = data  # type: ignore[attr-defined]  # where urllib3 looks for what has been read
        return response

    def _raise(self, response: Response, method: str, what: str) -> NoReturn:
        said = first_error(response)
        if response.status == 404:
            raise NotFound(f"{self.host} has no {what}")
        if response.status in (401, 403):
            advice = self._authorizer.advice
            hint = f" (if the login lacks that right: {advice})" if said else f": the login lacks that right ({advice})"
            raise Unauthorized(f"{self.host} refuses {method} of {what}{said}{hint}")
        raise ServerError(f"{self.host} answered {response.status} to {method} of {what}{said}")


def _proxy_login(proxy: str) -> dict[str, str]:
    """The header with the user and password that stand in a proxy's URL."""
    user, _, password = (urllib3.util.parse_url(proxy).auth or "").partition(":")
    return {"Proxy-Authorization": Login(unquote(user), unquote(password)).basic} if user else {}
