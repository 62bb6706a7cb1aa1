"""A client's connection, to which the pieces of a streamed answer are written straight.

An event of a stream is some hundred bytes. Passed on as an ASGI message it costs a task switch and half a dozen calls,
more than all the rest of its way together, and the engine often needs the same processor.
"""

from __future__ import annotations

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD = 64 * 1024
"""Largest head of a request, in bytes: its line and its headers."""

_PLACE = "stowage.connection"
_TOO_LARGE = b"the headers are too large"
_REFUSAL = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(_TOO_LARGE), _TOO_LARGE)
)


class _HeadTooLarge(Exception):
    """The head of a request is larger than `MAX_HEAD`."""


class Connection(HttpToolsProtocol):
    """uvicorn's connection, known to the requests that come over it. Heads of requests are bounded: they are read
    before it is known who asks, and the parser puts a header that comes in many pieces together anew with each."""

    _waiting = 0  # bytes that came since something was last whole: a head, a piece of a body, a request
    _whole = False
    _head_is_too_large = False

    def data_received(self, data: bytes) -> None:
        """Take what has come, and refuse with 431 (RFC 6585, section 5) what goes on without becoming a request."""
        self._whole = False
        super().data_received(data)
        self._waiting = 0 if self._whole else self._waiting + len(data)
        if self._waiting > MAX_HEAD and not self.transport.is_closing():
            self._refuse()

    def _refuse(self) -> None:
        self.transport.write(_REFUSAL)
        self.transport.close()

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self.scope[_PLACE] = self  # type: ignore[literal-required]

    def on_headers_complete(self) -> None:
        """Begin to answer. Raises through the parser, which answers by `send_400_response`."""
        self._whole = True
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD:
            self._head_is_too_large = True
            raise _HeadTooLarge
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of a request's body."""
        self._whole = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        self._whole = True
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request."""
        if self._head_is_too_large:
            self._refuse()
        else:
            super().send_400_response(msg)

    @classmethod
    def of(cls, scope: Scope) -> Connection:
        """The connection a request came over."""
        found = scope[_PLACE]
        assert isinstance(found, cls)
        return found

    def write_piece(self, piece: bytes) -> bool:
        """Write a piece of an answer that has begun without a stated length, which ASGI sends in chunks (RFC 9112,
        section 7.1) and ends. Returns whether there is room for more."""
        if not self.transport.is_closing():
            self.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        return not self.flow.write_paused

    async def room(self) -> None:
        """Return when there is room for more, or nobody to write to any more."""
        await self.flow.drain()
