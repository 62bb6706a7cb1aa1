"""What goes over the wire between a client and a server, counted between the two."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_GET = re.compile(rb"^GET (/v2/[^ ]+/blobs/[^ ]+) HTTP/1\.1\r$", re.MULTILINE)


class Meter:
    """Passes connections on to a server at `HOST:PORT`; `host` is where it listens itself. `received` counts the bytes
    that the server sent, `blobs` are the paths of the blobs that were asked for, one for each request."""

    def __init__(self, server: str) -> None:
        name, _, port = server.rpartition(":")
        self._server = name, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self.reset()
        threading.Thread(target=self._accept, daemon=True).start()

    def reset(self) -> None:
        """Count from nothing."""
        with self._lock:
            self.received = 0
            self.blobs: list[bytes] = []

    def close(self) -> None:
        """Take no more connections."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                threading.Thread(target=self._pass, args=(client, server, False), daemon=True).start()
                threading.Thread(target=self._pass, args=(server, client, True), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while data := source.recv(256 * 1024):
                with self._lock:
                    if answers:
                        self.received += len(data)
                    else:
                        self.blobs += _GET.findall(data)
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            if answers:
                end.close()


@contextmanager
def metered(server: str) -> Iterator[Meter]:
    """A meter in front of a server."""
    meter = Meter(server)
    try:
        yield meter
    finally:
        meter.close()
