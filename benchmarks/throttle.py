"""A slower network on this machine: a proxy that lets so many bytes a second through."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_MIB = 1024 * 1024
_TICK = 0.01


class _Bucket:
    """Lets `rate` bytes a second through, over all connections together."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._free = time.monotonic()

    async def take(self, count: int) -> None:
        """Return when `count` more bytes may go."""
        now = time.monotonic()
        self._free = max(self._free, now - _TICK) + count / self._rate
        if self._free > now:
            await asyncio.sleep(self._free - now)


@contextmanager
def throttled(url: str, rate: int) -> Iterator[int]:
    """A proxy before `url`, whose answers come at `rate` bytes a second; its port."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    bucket, loop = _Bucket(rate), asyncio.new_event_loop()
    stop, started = asyncio.Event(), threading.Event()
    ports: list[int] = []

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, slow: bool) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(256 * 1024):
                if slow:
                    await bucket.take(len(data))
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, questions = await asyncio.open_connection(host, int(port), limit=_MIB)
        with suppress(asyncio.CancelledError):  # when the proxy ends before its clients
            await asyncio.gather(forward(reader, questions, slow=False), forward(answers, writer, slow=True))

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        ports.append(server.sockets[0].getsockname()[1])
        started.set()
        await stop.wait()

    with asyncio.Runner(loop_factory=lambda: loop) as runner:  # which ends what still runs when it is left
        thread = threading.Thread(target=runner.run, args=(run(),))
        thread.start()
        started.wait()
        try:
            yield ports[0]
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join()
