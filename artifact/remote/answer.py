"""What a registry answers, read within bounds: bodies, errors, numbers, and how long it asks to be left alone."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from email.utils import parsedate_to_datetime

import urllib3

from artifact.errors import ServerError, Unreachable

Response = urllib3.BaseHTTPResponse

_MAX_WAIT = 30.0
_MAX_ERROR = 64 * 1024
_MAX_DIGITS = 18
_NO_TLS = ("WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST", "UNKNOWN_PROTOCOL")
"""How OpenSSL names an answer that is no TLS."""


def read_whole(response: Response, limit: int, host: str) -> bytes:
    """The body, after which its connection is free again. Raises `ServerError` if it is longer than `limit` bytes,
    `Unreachable` if it breaks off before the end that was announced."""
    try:
        data = response.read(limit + 1)
        if len(data) > limit:
            response.close()
            raise ServerError(f"{host} sends an answer of more than {limit} bytes: not read")
        if response.length_remaining:
            response.close()
            raise Unreachable(f"{host} broke off its answer {response.length_remaining} bytes before the end")
        return data
    except urllib3.exceptions.HTTPError as error:
        raise Unreachable(f"{host} broke off its answer: {reason(error)}") from None
    finally:
        response.release_conn()


def first_error(response: Response) -> str:
    """The first error of a specification-shaped body, as ``: CODE message``; empty if there is none."""
    try:
        raw = response.read(_MAX_ERROR)
        error = json.loads(raw)["errors"][0]
        return f": {str(error['code'])[:60]} {str(error.get('message') or '')[:300]}".rstrip()
    except (urllib3.exceptions.HTTPError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ""
    finally:
        response.release_conn()


def number(text: str | None) -> int | None:
    """The number of bytes that a header states; None if that is none, or more than there are."""
    return int(text) if text is not None and len(text) <= _MAX_DIGITS and text.isdecimal() else None


def asked_wait(response: Response) -> float:
    """How long the server asks to be left alone, in seconds (RFC 9110, section 10.2.3), within what is bearable."""
    stated = response.headers.get("Retry-After", "")
    if stated.isdecimal():
        return min(float(stated), _MAX_WAIT)
    try:
        until = parsedate_to_datetime(stated).timestamp()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(until - time.time(), 0.0), _MAX_WAIT)


def reason(error: Exception) -> str:
    """The innermost cause of a connection failure, without the library's own object names; for TLS, what to do."""
    cause: BaseException = error
    while inner := getattr(cause, "reason", None) or cause.__cause__ or cause.__context__:
        if not isinstance(inner, BaseException) or inner is cause:
            break
        cause = inner
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not trusted ({cause.verify_message.strip('. ')}): name the certificate of its "
            "authority with SSL_CERT_FILE"
        )
    if isinstance(cause, ssl.SSLError) and cause.reason in _NO_TLS:
        return "it does not speak TLS: if plain HTTP is what is meant, --plain-http"
    if isinstance(cause, http.client.RemoteDisconnected):
        return "it closed the connection without an answer, as a server that speaks only TLS does to plain HTTP"
    text = getattr(cause, "strerror", None) or str(cause)
    return text.rsplit(">: ", 1)[-1].strip("()'\" ")[:200] or type(cause).__name__
