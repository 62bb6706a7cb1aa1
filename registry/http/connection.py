"""One client's connection: HTTP by uvicorn, with a short cut for large bodies between the socket and a thread.

Passing gigabytes through the event loop costs several copies and wake-ups for each 64 KiB. Where the connection is
plain TCP and the length is known, a large request body is received, and a file sent, by system calls in a thread, on a
duplicate of the socket; the loop only waits when the peer is slower. Everywhere else bodies take the ordinary way.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

EXTENSION = "stowage.connection"
"""Where the ASGI scope's extensions hold the connection."""

WORTHWHILE = 1024 * 1024
"""Bytes from which the short cut is taken."""

_BUFFERED = 1024 * 1024  # bytes of a body kept for the application before the client is made to wait
_PATIENCE = 20  # milliseconds a thread waits for the peer before it hands the wait to the loop
_WAKE = 512 * 1024  # bytes that must have come for a thread to be woken
_SLICE = 64 * 1024 * 1024  # bytes sent before the loop looks whether the client is still there

T = TypeVar("T")


class Connection(HttpToolsProtocol):
    """A connection that the application can find in the scope of its requests."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {EXTENSION: self}  # type: ignore[dict-item]

    def on_body(self, body: bytes) -> None:
        if self.cycle.response_complete:
            return
        self.cycle.body += body
        if len(self.cycle.body) > _BUFFERED:
            self.flow.pause_reading()
        self.cycle.message_event.set()

    def serves(self, scope: Scope) -> bool:
        """Whether the socket can be used past the event loop for this request."""
        return (
            self.cycle is not None
            and self.cycle.scope is scope
            and not self.transport.is_closing()
            and self.transport.get_extra_info("sslcontext") is None
        )

    def duplicate(self) -> socket.socket:
        """The connection's socket under a descriptor of its own, which stays valid when the connection is closed."""
        return socket.socket(fileno=os.dup(self.transport.get_extra_info("socket").fileno()))


def of(scope: Scope) -> Connection | None:
    """The connection of a request, if the short cut can be taken on it."""
    found = scope.get("extensions", {}).get(EXTENSION)
    return found if isinstance(found, Connection) and found.serves(scope) else None


class Intake:
    """The rest of a request's body, read from the socket. `first` is what the event loop had received already."""

    def __init__(self, connection: Connection, length: int) -> None:
        self._connection = connection
        self._cycle = cycle = connection.cycle
        if cycle.waiting_for_100_continue:
            connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            cycle.waiting_for_100_continue = False
        connection.flow.pause_reading()
        self.first, cycle.body = bytes(cycle.body), bytearray()
        self.left = length - len(self.first)
        self.gone = False
        self._socket = connection.duplicate()
        self._woken_at = 1
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    async def fill(self, view: memoryview) -> int:
        """Receive until `view` is full, or the client is `gone`; return how many bytes came."""
        got = 0
        while got < len(view) and not self.gone:
            count = await uninterrupted(self._receive, view[got:])
            got += count
            self.left -= count
            if got < len(view) and not self.gone:
                await _ready(self._socket, writable=False)
        return got

    def _receive(self, view: memoryview) -> int:
        got = 0
        while got < len(view):
            try:
                count = self._socket.recv_into(view[got:])
            except BlockingIOError:
                # Woken for each segment, the thread would spend its time on being woken.
                self._wake_at(min(_WAKE, len(view) - got))
                if not self._poll.poll(_PATIENCE):
                    self._wake_at(1)  # a sender may hold back less than that until some is taken
                    break
                continue
            except OSError:
                count = 0
            if not count:
                self.gone = True
                break
            got += count
        return got

    def _wake_at(self, count: int) -> None:
        if count != self._woken_at:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)
            self._woken_at = count

    def close(self) -> None:
        """Give the socket back: to the next request if the body was read to its end, else to be closed."""
        with suppress(OSError):
            self._wake_at(1)
        self._socket.close()
        connection, cycle = self._connection, self._cycle
        if self.left or connection.parser is None:
            cycle.keep_alive = False
            return
        # The parser in use still waits for the bytes that went past it.
        connection.parser = httptools.HttpRequestParser(connection)
        connection.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        cycle.more_body = False
        cycle.message_event.set()


def intake(scope: Scope, length: int | None) -> Intake | None:
    """Take a request's body over, if it is large enough, its length known, and most of it still to come."""
    connection = of(scope)
    if connection is None or length is None or not connection.cycle.more_body:
        return None
    if length - len(connection.cycle.body) < WORTHWHILE:
        return None
    return Intake(connection, length)


async def send_file(connection: Connection, descriptor: int, offset: int, count: int) -> int:
    """Send part of a file as the body of an answer whose head has been sent; return how many bytes were."""
    cycle, transport, sent = connection.cycle, connection.transport, 0
    turns = 0
    while transport.get_write_buffer_size() and not cycle.disconnected:  # the head of the answer goes first
        await asyncio.sleep(0 if turns < 10 else 0.005)
        turns += 1
    duplicate = connection.duplicate() if not (cycle.disconnected or transport.is_closing()) else None
    if duplicate is None:
        return 0
    try:
        while sent < count and not cycle.disconnected:
            done, stalled = await uninterrupted(
                _send, duplicate, descriptor, offset + sent, min(_SLICE, count - sent)
            )  # fmt: skip
            sent += done
            if stalled:
                await _ready(duplicate, writable=True)
            elif not done:
                break
    finally:
        duplicate.close()
    cycle.expected_content_length -= sent
    return sent


def _send(connection: socket.socket, descriptor: int, offset: int, count: int) -> tuple[int, bool]:
    """How many bytes were sent, and whether the client must take some before more can be."""
    poll, sent = select.poll(), 0
    poll.register(connection, select.POLLOUT)
    while sent < count:
        try:
            done = os.sendfile(connection.fileno(), descriptor, offset + sent, count - sent)
        except BlockingIOError:
            if not poll.poll(_PATIENCE):
                return sent, True
            continue
        except (ConnectionError, TimeoutError):
            return sent, False
        if not done:
            break
        sent += done
    return sent, False


async def _ready(connection: socket.socket, *, writable: bool) -> None:
    """Wait until the socket can be read from, or written to."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    add, remove = (loop.add_writer, loop.remove_writer) if writable else (loop.add_reader, loop.remove_reader)
    descriptor = connection.fileno()
    add(descriptor, _set, ready)
    try:
        await ready
    finally:
        remove(descriptor)


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


async def uninterrupted(function: Callable[..., T], *arguments: Any) -> T:
    """The result of a call in a thread. Cancelled, it waits for the thread first: what that uses stays valid."""
    future = asyncio.get_running_loop().run_in_executor(None, function, *arguments)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise
