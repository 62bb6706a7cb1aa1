"""HTTP to one registry: connections, retries, redirects, authorisation, and errors that say what to do."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3

from artifact.errors import NotFound, ServerError, StowageError, Unauthorized, Unreachable
from artifact.remote.auth import Authorizer
from artifact.remote.credentials import Credentials
from artifact.remote.hosts import is_internal, scheme_of
from artifact.remote.pace import Pace
from artifact.version import USER_AGENT

Response = urllib3.BaseHTTPResponse
Body = bytes | Callable[[], Any] | None
"""A request's body: bytes, or a function that opens it afresh for every attempt."""

_BUFFER = 1024 * 1024
_ATTEMPTS = 4
_MAX_REDIRECTS = 5
_MAX_WAIT = 30.0
_MAX_ERROR = 64 * 1024
_MAX_BODY = 8 * 1024 * 1024  # twice the largest document there is, so that it is the document which is refused
_AGAIN = (429, 500, 502, 503, 504)
_REDIRECTS = (301, 302, 303, 307, 308)
_TIMEOUT = urllib3.Timeout(connect=10, read=120)
_STALL = urllib3.Timeout(connect=10, read=30)
"""Where a body is streamed: a server that sends nothing for so long has stopped."""


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
        the statuses that ask for patience are tried again. `landed` is told the URL that redirects led to.
        Raises `NotFound`, `Unauthorized`, `Unreachable`, `ServerError`.
        """
        call = _Call(method, dict(headers or {}), body, landed, _STALL if stream else _TIMEOUT)
        failure: StowageError | None = None
        for attempt in range(self._attempts if retry else 1):
            if attempt:
                time.sleep(min(0.25 * 2**attempt, _MAX_WAIT))
            try:
                response = self._authorized(call, url, scope)
            except Unreachable as error:
                failure = error
                continue
            if response.status in expect:
                if not stream:
                    _load(response, self.host)
                return response
            if response.status not in _AGAIN or not retry or attempt == self._attempts - 1:
                self._raise(response, method, what or url)
            wait = _asked_wait(response)
            self._pace.hold(wait)
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
            own = _origin(url) == _origin(self.base)
            extra = {"Authorization": authorization} if authorization and own else {}
            headers = {"User-Agent": USER_AGENT, **call.headers, **extra}
            response = self._send(call.method, url, headers=headers, body=call.body, timeout=call.timeout)
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or not location or call.method not in ("GET", "HEAD"):
                if followed and call.landed is not None:
                    call.landed(url)
                return response
            response.drain_conn()
            url = self._checked_redirect(url, location)
        raise ServerError(f"{self.host} redirects more than {_MAX_REDIRECTS} times")

    def _checked_redirect(self, url: str, location: str) -> str:
        target = urljoin(url, location)
        parts = urlsplit(target)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ServerError(f"{self.host} redirects to something that is no URL: {location[:100]!r}")
        if urlsplit(url).scheme == "https" and parts.scheme != "https":
            raise ServerError(f"{self.host} redirects from https to http ({parts.netloc}): not followed")
        if is_internal(parts.netloc) and not is_internal(urlsplit(url).netloc):
            raise ServerError(f"{self.host} redirects into this network ({parts.netloc}): not followed")
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
            raise Unreachable(f"cannot reach {urlsplit(url).netloc}: {_reason(error)}") from None

    def _pool(self, url: str) -> urllib3.PoolManager:
        parts = urlsplit(url)
        proxy = "" if proxy_bypass(parts.netloc) or is_internal(parts.netloc) else getproxies().get(parts.scheme, "")
        if proxy not in self._pools:
            options: dict[str, Any] = {"maxsize": 16, "blocksize": _BUFFER}
            self._pools[proxy] = urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
        return self._pools[proxy]

    def _raise(self, response: Response, method: str, what: str) -> NoReturn:
        said = _first_error(response)
        if response.status == 404:
            raise NotFound(f"{self.host} has no {what}")
        if response.status in (401, 403):
            raise Unauthorized(
                f"{self.host} refuses {method} of {what}{said}: the login lacks that right (packager login {self.host})"
            )
        raise ServerError(f"{self.host} answered {response.status} to {method} of {what}{said}")


def _load(response: Response, host: str) -> None:
    """Read a small body whole, so that its connection is free again."""
    try:
        data = response.read(_MAX_BODY + 1)
        if len(data) > _MAX_BODY:
            response.close()
            raise ServerError(f"{host} sends an answer of more than {_MAX_BODY} bytes: not read")
        response._body = data  # type: ignore[attr-defined]  # where urllib3 looks for what has been read
    except urllib3.exceptions.HTTPError as error:
        raise Unreachable(f"{host} broke off its answer: {_reason(error)}") from None
    finally:
        response.release_conn()


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()


def _asked_wait(response: Response) -> float:
    """How long the server asks to be left alone, in seconds (RFC 9110, section 10.2.3), within what is bearable."""
    stated = response.headers.get("Retry-After", "")
    response.drain_conn()
    if stated.isdecimal():
        return min(float(stated), _MAX_WAIT)
    try:
        until = parsedate_to_datetime(stated).timestamp()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(until - time.time(), 0.0), _MAX_WAIT)


def _first_error(response: Response) -> str:
    """The first error of a specification-shaped body, as ``: CODE message``; empty if there is none."""
    try:
        raw = response.read(_MAX_ERROR)
        error = json.loads(raw)["errors"][0]
        return f": {str(error['code'])[:60]} {str(error.get('message') or '')[:300]}".rstrip()
    except (urllib3.exceptions.HTTPError, ValueError, LookupError, TypeError, AttributeError):
        return ""
    finally:
        response.release_conn()


def _reason(error: Exception) -> str:
    """The innermost cause of a connection failure, without the library's own object names."""
    reason: BaseException = error
    while inner := getattr(reason, "reason", None) or reason.__cause__ or reason.__context__:
        if not isinstance(inner, BaseException) or inner is reason:
            break
        reason = inner
    text = getattr(reason, "strerror", None) or str(reason)
    return text.rsplit(">: ", 1)[-1].strip("()'\" ")[:200] or type(reason).__name__
