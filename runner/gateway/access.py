"""Who may ask for what. Every request gets an id, a caller and the scopes that caller has, before any route sees it.

A request is for the scope ``infer`` only if it is known to be; whatever else changes something needs ``admin``.
"""

from __future__ import annotations

import ipaddress
import math
import re
import time
import uuid
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runner.gateway import DIGEST_HEADER
from runner.gateway.call import Call
from runner.gateway.errors import error_at
from runner.gateway.metrics import Metrics
from runner.keys import ADMIN, INFER, SCOPES, Bucket, Key, KeyFile

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:@/+=-]{1,128}")
_OPEN = frozenset(("/healthz",))
_INFERENCE = re.compile(
    r"(?:(?:/engines(?:/[^/]+)?)?/v1/(?:chat/completions|completions|embeddings|rerank|responses|audio/[a-z]+)"
    r"|/rerank|/api/(?:chat|generate|embed|embeddings|show))"
)


def needed_scope(method: str, path: str) -> str:
    """The scope a request needs; empty for what everybody may ask."""
    if path in _OPEN:
        return ""
    return INFER if method in ("GET", "HEAD") or _INFERENCE.fullmatch(path) else ADMIN


class Access:
    """Lets a request through to `app`, or answers why not. Without `keys` a gateway that listens on the loopback
    interface (`loopback`) lets its machine's users do everything, and another lets everybody use models."""

    def __init__(self, app: ASGIApp, metrics: Metrics, *, keys: KeyFile | None, loopback: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._keys = keys
        self._loopback = loopback
        self._buckets: dict[str, tuple[int, Bucket]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        stated = headers.get(b"x-request-id", "")
        call = Call(stated if _REQUEST_ID.fullmatch(stated) else uuid.uuid4().hex)
        call.begin(scope)
        began = time.perf_counter()
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = [(b"x-request-id", call.id.encode())]
                if call.digest:
                    extra.append((DIGEST_HEADER.encode(), call.digest.encode()))
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            elif not call.told and status and message.get("body"):
                self._metrics.first_byte(call, time.perf_counter() - began)
            await send(message)

        try:
            refusal = self._refusal(scope["method"], scope["path"], headers, call)
            await (refusal or self._app)(scope, receive, answer)
        finally:
            self._metrics.done(call, status or 499, time.perf_counter() - began)

    def _refusal(self, method: str, path: str, headers: Mapping[bytes, str], call: Call) -> Response | None:
        if self._loopback and not _from_this_machine(headers):
            return error_at(path, 403, "this endpoint answers only requests from this machine")
        needed = needed_scope(method, path)
        key = self._key(headers) if self._keys is not None else None
        if self._keys is None:
            call.scopes = frozenset(SCOPES if self._loopback else (INFER,))
        elif key is not None:
            call.scopes, call.key = frozenset(key.scopes), key.name
        elif needed:
            message = "a valid API key is needed: Authorization: Bearer stw_…"
            response = error_at(path, 401, message, code="invalid_api_key")
            response.headers["www-authenticate"] = "Bearer"
            return response
        if needed and needed not in call.scopes and not (method in ("GET", "HEAD") and call.scopes):
            return error_at(path, 403, f"this needs the scope {needed}", code="insufficient_scope")
        return self._limited(path, key) if key is not None else None

    def _key(self, headers: Mapping[bytes, str]) -> Key | None:
        scheme, _, token = headers.get(b"authorization", "").partition(" ")
        text = token.strip() if scheme.lower() == "bearer" else headers.get(b"x-api-key", "")
        return self._keys.match(text) if self._keys is not None and text else None

    def _limited(self, path: str, key: Key) -> Response | None:
        if not key.rate:
            return None
        now = time.monotonic()
        rate, bucket = self._buckets.get(key.id, (0, None))
        if bucket is None or rate != key.rate:
            bucket = Bucket(key.rate, now)
            self._buckets[key.id] = (key.rate, bucket)
        wait = bucket.take(now)
        if not wait:
            return None
        message = f"the key {key.name} may send {key.rate} requests a minute"
        response = error_at(path, 429, message, code="rate_limit_exceeded", type_="rate_limit_error")
        response.headers["retry-after"] = str(math.ceil(wait))
        return response


def _from_this_machine(headers: Mapping[bytes, str]) -> bool:
    """Whether neither a page of another site nor a name that was made to point here asks (CVE-2024-28224)."""
    origin = headers.get(b"origin")
    return _is_loopback(headers.get(b"host", "localhost"), "//") and (origin is None or _is_loopback(origin))


def _is_loopback(place: str, before: str = "") -> bool:
    try:
        host = urlsplit(before + place).hostname or ""
        return host == "localhost" or host.endswith(".localhost") or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
