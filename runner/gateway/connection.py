"""A client's connection, to which the pieces of a streamed answer are written straight.

An event of a stream is some hundred bytes. Passed on as an ASGI message it costs a task switch and half a dozen calls,
more than all the rest of its way together, and the engine often needs the same processor.
"""

from __future__ import annotations

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_PLACE = "stowage.connection"


class Connection(HttpToolsProtocol):
    """uvicorn's connection, known to the requests that come over it."""

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self.scope[_PLACE] = self  # type: ignore[literal-required]

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
