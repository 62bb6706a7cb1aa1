"""Errors as each dialect writes them."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response

from artifact.errors import InvalidInput, NotFound, Refused, StowageError, Unauthorized
from runner.administration import Busy
from runner.fleet import Unavailable


class TooLarge(InvalidInput):
    """The body of a request is larger than is taken."""

    code = "too-large"


def api_error(
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    type_: str = "invalid_request_error",
) -> Response:
    """An error as the OpenAI API writes it."""
    return _json({"error": {"message": message, "type": type_, "param": param, "code": code}}, status)


def plain_error(status: int, message: str) -> Response:
    """An error as Ollama writes it."""
    return _json({"error": message}, status)


def _json(value: Any, status: int) -> Response:
    """A document in ASCII: what a message quotes may be half a character, which is not to be had in UTF-8."""
    return Response(json.dumps(value), status, media_type="application/json")


def error_at(path: str, status: int, message: str, **more: str) -> Response:
    """An error in the dialect that `path` belongs to; `more` as `api_error` takes it."""
    return plain_error(status, message) if path.startswith("/api/") else api_error(status, message, **more)


_STATUS = (
    (NotFound, 404), (Refused, 403), (TooLarge, 413), (InvalidInput, 400), (Unauthorized, 401), (Busy, 409),
)  # fmt: skip


def status_of(error: StowageError) -> int:
    """The HTTP status an error has when a request caused it; 503 for what may be different later."""
    for kind, status in _STATUS:
        if isinstance(error, kind):
            return status
    return 503


def engine_error(error: StowageError) -> Response:
    """What an OpenAI client gets when a model's engine cannot answer."""
    response = api_error(status_of(error), str(error), type_="server_error", code=error.code)
    if isinstance(error, Unavailable) and error.retry_after:
        response.headers["retry-after"] = str(error.retry_after)
    return response
