"""Conditional requests. Source: RFC 9110, section 13, to which the distribution-spec leaves what it does not say."""

from __future__ import annotations

from starlette.requests import Request


def has_already(request: Request, etag: str) -> bool:
    """Whether If-None-Match says that the client has this version: the answer is 304 then."""
    header = request.headers.get("if-none-match")
    if header is None:
        return False
    return header.strip() == "*" or any(item.strip().removeprefix("W/") == etag for item in header.split(","))


def wanted_range(request: Request, etag: str) -> str | None:
    """The Range header, unless If-Range says that the part would belong to another version."""
    return request.headers.get("range") if request.headers.get("if-range", etag).strip() == etag else None
