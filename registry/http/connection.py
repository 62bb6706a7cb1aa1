"""One client's connection: HTTP by uvicorn, with a short cut for large bodies between the socket and a thread.

Passing gigabytes through the event loop costs several copies and wake-ups for each 64 KiB. Where the connection is
plain TCP and the length is known, a large request body is received, and a blob sent, by system calls in a thread, on a
duplicate of the socket; the loop only waits when the peer is slower. Everywhere else bodies take the ordinary way.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from artifact.errors import StowageError
from registry.store.protocol import StoreUnavailable, Stream

EXTENSION = "stowage.connection"
"""Where the ASGI scope's extensions hold the connection."""

WORTHWHILE = 1024 * 1024
"""Bytes from which the short cut is taken."""

SILENCE = 120.0
"""Seconds a client may send nothing of a body that it has begun; then it counts as gone."""

_BUFFERED = 1024 * 1024  # bytes of a body kept for the application before the client is made to wait
_PATIENCE = 20  # milliseconds a thread waits for the peer before it hands the wait to the loop
_WAKE = 512 * 1024  # bytes that must have come for a thread to be woken
_BUFFER = 1024 * 1024  # bytes of a stream between the store and the client
_SLICE = 16 * 1024 * 1024  # bytes of a file sent by one call
_TURN = 0.1  # seconds a thread sends before others have their turn, and the loop looks whether the client is there

T = TypeVar("T")
_log = logging.getLogger("registry")


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

    def hang_up(self, scope: Scope) -> None:
        """End a request without an answer, and the connection with it."""
        if self.cycle is not None and self.cycle.scope is scope and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.transport.close()

    def duplicate(self) -> socket.socket:
        """The connection's socket under a descriptor of its own, which stays valid when the connection is closed."""
        return socket.socket(fileno=os.dup(self.transport.get_extra_info("socket").fileno()))


def of(scope: Scope) -> Connection | None:
    """The connection of a request, if the short cut can be taken on it."""
    found = _behind(scope)
    return found if found is not None and found.serves(scope) else None


def hang_up(scope: Scope) -> None:
    """End a request whose client is gone: nobody waits for an answer."""
    found = _behind(scope)
    if found is not None:
        found.hang_up(scope)


def _behind(scope: Scope) -> Connection | None:
    found = scope.get("extensions", {}).get(EXTENSION)
    return found if isinstance(found, Connection) else None


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
        """Receive until `view` is full, or the client is `gone`, which it is after `SILENCE` too; return how many bytes
        came."""
        got = 0
        while got < len(view) and not self.gone:
            count = await uninterrupted(self._receive, view[got:])
            got += count
            self.left -= count
            if got < len(view) and not self.gone:
                try:
                    async with asyncio.timeout(SILENCE):
                        await _ready(self._socket, writable=False)
                except TimeoutError:
                    self.gone = True
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


async def send_stream(connection: Connection, stream: Stream, count: int) -> int:
    """Send `count` bytes of a stream as the body of an answer whose head has been sent; return how many were: fewer
    when the client goes away, or the store fails, which is logged."""
    cycle, transport = connection.cycle, connection.transport
    turns = 0
    while transport.get_write_buffer_size() and not cycle.disconnected:  # the head of the answer goes first
        await asyncio.sleep(0 if turns < 10 else 0.005)
        turns += 1
    duplicate = connection.duplicate() if not (cycle.disconnected or transport.is_closing()) else None
    if duplicate is None:
        return 0
    outlet = Outlet(duplicate, stream, count)
    try:
        while outlet.left and not cycle.disconnected:
            stalled = await uninterrupted(outlet.send)
            if stalled:
                await _ready(duplicate, writable=True)
            elif outlet.gone:
                break
    except (StowageError, OSError) as error:
        _log.error("sending a blob stopped: %s", error)
    finally:
        duplicate.close()
        cycle.expected_content_length -= count - outlet.left
    return count - outlet.left


class Outlet:
    """`left` bytes of a stream on their way into a client's socket: a file by sendfile, anything else through one
    buffer."""

    def __init__(self, out: socket.socket, stream: Stream, left: int) -> None:
        self.left = left
        self.gone = False
        self._out = out
        self._stream = stream
        self._poll = select.poll()
        self._poll.register(out, select.POLLOUT)
        self._file = stream.descriptor()
        self._buffer = memoryview(b"" if self._file else bytearray(min(_BUFFER, left)))
        self._ready = self._buffer[:0]

    def send(self) -> bool:
        """Send for one turn, in a thread. Whether the client must take some before there can be another."""
        end = time.monotonic() + _TURN
        while self.left and time.monotonic() < end:
            try:
                count = self._send_some()
            except BlockingIOError:
                if not self._poll.poll(_PATIENCE):
                    return True
                continue
            except (ConnectionError, TimeoutError):
                self.gone = True
                return False
            if not count:
                raise StoreUnavailable("a stored blob is shorter than its record: run registry fsck")
            self.left -= count
        return False

    def _send_some(self) -> int:
        if self._file is not None:
            descriptor, offset = self._file
            count = os.sendfile(self._out.fileno(), descriptor, offset, min(self.left, _SLICE))
            self._file = descriptor, offset + count
            return count
        if not self._ready:
            self._ready = self._buffer[: self._stream.readinto(self._buffer[: self.left])]
        count = self._out.send(self._ready) if self._ready else 0
        self._ready = self._ready[count:]
        return count


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
