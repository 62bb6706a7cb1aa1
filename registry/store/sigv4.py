"""Signatures of requests to S3, version 4, for requests without a body.

Source: https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
"""

from __future__ import annotations

import hashlib
import hmac
import time
from dataclasses import dataclass, field
from functools import lru_cache
from urllib.parse import quote

from artifact.version import USER_AGENT

_NOTHING = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True)
class Credentials:
    """Who signs. `token` belongs to credentials that are lent for a time."""

    key: str
    secret: str = field(repr=False)
    token: str | None = field(default=None, repr=False)


def request_bytes(
    method: str, host: str, path: str, headers: dict[str, str], credentials: Credentials, region: str, now: float
) -> bytes:
    """A signed HTTP/1.1 request without a body. `host` is the Host header, `path` is not yet percent-encoded, `headers`
    are further ones with lower-case names, `now` is in seconds since the epoch."""
    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    all_headers = {**headers, "host": host, "x-amz-content-sha256": _NOTHING, "x-amz-date": moment}
    if credentials.token is not None:
        all_headers["x-amz-security-token"] = credentials.token
    items = sorted(all_headers.items())
    names = ";".join(name for name, _ in items)
    encoded = quote(path, safe="/~")
    fields = "".join(f"{name}:{value}\n" for name, value in items)
    canonical = f"{method}\n{encoded}\n\n{fields}\n{names}\n{_NOTHING}"
    scope = f"{moment[:8]}/{region}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    signature = _hmac(_signing_key(credentials.secret, moment[:8], region), text).hex()
    lines = [f"{method} {encoded} HTTP/1.1", *(f"{name}: {value}" for name, value in items)]
    lines.append(f"user-agent: {USER_AGENT}")
    lines.append(
        f"authorization: AWS4-HMAC-SHA256 Credential={credentials.key}/{scope}, SignedHeaders={names}, "
        f"Signature={signature}"
    )
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


@lru_cache(maxsize=4)
def _signing_key(secret: str, day: str, region: str) -> bytes:
    """The same for a day."""
    key = f"AWS4{secret}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = _hmac(key, part)
    return key


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")
