"""Around every request: its id, its place in the log and in the metrics."""

from __future__ import annotations

import ipaddress
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from registry.http.accesslog import AccessLog, Line
from registry.metrics import IN_FLIGHT, UPLOADS, Metrics

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_KEY = "observation"
_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


class Observation:
    """What is known of a request while it is answered. `route` is the kind of endpoint, `client` the address the
    request came from, `received` and `sent` count bytes of bodies."""

    __slots__ = ("client", "metrics", "received", "request_id", "route", "sent", "status")

    def __init__(self, request_id: str = "", client: str = "", metrics: Metrics | None = None) -> None:
        self.metrics = metrics
        self.request_id = request_id
        self.client = client
        self.route = "other"
        self.received = 0
        self.sent = 0
        self.status = 0

    @contextmanager
    def receiving(self) -> Iterator[None]:
        """While the body of a blob comes in."""
        if self.metrics is not None:
            self.metrics.add(UPLOADS)
        try:
            yield
        finally:
            if self.metrics is not None:
                self.metrics.add(UPLOADS, amount=-1)


def observation_of(scope: Scope) -> Observation:
    """The observation of a request; one that nobody looks at if there is none."""
    found = scope.get("state", {}).get(_KEY)
    return found if isinstance(found, Observation) else Observation()


def principal_of(scope: Scope) -> str:
    """Who made a request, as far as the request has been found out about."""
    caller = scope.get("state", {}).get("caller")
    return str(caller.principal.name) if caller is not None else "anonymous"


class Observed:
    """An application whose requests are counted and logged. Proxies in `trusted` networks may say which id a request
    has (``X-Request-Id``) and whom it came from (``X-Forwarded-For``)."""

    def __init__(self, app: ASGIApp, metrics: Metrics, log: AccessLog, trusted: Sequence[Network] = ()) -> None:
        self._app = app
        self._metrics = metrics
        self._log = log
        self._trusted = tuple(trusted)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        observation = self._observe(scope)
        scope.setdefault("state", {})[_KEY] = observation
        header = (b"x-request-id", observation.request_id.encode("ascii"))
        self._metrics.add(IN_FLIGHT)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                observation.status = message["status"]
                message["headers"] = [*message["headers"], header]
            else:
                observation.sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            self._record(scope, observation, time.perf_counter() - began)

    def _observe(self, scope: Scope) -> Observation:
        peer = scope.get("client")
        client = str(peer[0]) if peer else ""
        if self._trusted and self._trusts(client):
            headers = scope["headers"]
            request_id = _last(headers, b"x-request-id")
            id_ = request_id.decode("ascii") if _ID.fullmatch(request_id) else secrets.token_hex(16)
            return Observation(id_, self._origin(client, _last(headers, b"x-forwarded-for")), self._metrics)
        return Observation(secrets.token_hex(16), client, self._metrics)

    def _origin(self, client: str, forwarded: bytes) -> str:
        """The nearest address that is no trusted proxy: what stands before it, anyone could have written."""
        for text in reversed(forwarded.decode("latin-1").split(",")):
            try:
                address = str(ipaddress.ip_address(text.strip()))
            except ValueError:
                break
            client = address
            if not self._trusts(address):
                break
        return client

    def _trusts(self, client: str) -> bool:
        try:
            address = ipaddress.ip_address(client)
        except ValueError:
            return False
        return any(address in network for network in self._trusted)

    def _record(self, scope: Scope, observation: Observation, seconds: float) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        status = observation.status or 499  # the client went before it could be answered
        received, sent = observation.received, 0 if method == "HEAD" else observation.sent
        self._metrics.request(observation.route, method, status, seconds, received, sent)
        if self._log.enabled:
            path = scope.get("raw_path", scope["path"].encode()).decode("ascii", "backslashreplace")
            principal = principal_of(scope)
            self._log.write(
                Line(
                    time.time(), observation.client, principal, method, path, status, received, sent, seconds,
                    observation.request_id,
                )
            )  # fmt: skip


def _last(headers: Any, name: bytes) -> bytes:
    """The value of a header that stands there once, or else nothing."""
    found = [value for key, value in headers if key == name]
    return found[0] if len(found) == 1 else b""
