"""The one field of a multipart form that the gateway needs: the model's name. Everything else passes unchanged."""

from __future__ import annotations

import re

_BOUNDARY = re.compile(rb'boundary=(?:"([^"\r\n]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE)
_NAME = re.compile(rb'content-disposition:[^\r\n]*?[;\s]name="?model"?\s*(?:;|\r\n|$)', re.IGNORECASE)


def model_field(content_type: bytes, body: bytes) -> tuple[int, int] | None:
    """Where in `body` the value of the field ``model`` stands, or None if there is no such field."""
    found = _BOUNDARY.search(content_type)
    if found is None:
        return None
    delimiter = b"--" + (found[1] or found[2])
    at = body.find(delimiter)
    while at >= 0:
        begin = at + len(delimiter)
        headers_end = body.find(b"\r\n\r\n", begin)
        at = body.find(b"\r\n" + delimiter, begin)
        if headers_end < 0 or at < 0:
            return None
        if headers_end <= at and _NAME.search(body[begin : headers_end + 2]):
            return headers_end + 4, at
        at += 2
    return None


def with_model(body: bytes, place: tuple[int, int], name: str) -> bytes:
    """`body` with another value at `place`."""
    return body[: place[0]] + name.encode() + body[place[1] :]
