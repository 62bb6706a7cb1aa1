"""A proxy before an S3 service that answers 500, breaks connections, is slow, and loses answers to requests that were
carried out."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from contextlib import suppress
from urllib.parse import urlsplit

_METHODS = (b"GET ", b"PUT ", b"POST ", b"HEAD ", b"DELETE ")
_ERROR = (
    b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/xml\r\nContent-Length: 79\r\n"
    b"Connection: close\r\n\r\n"
    b"<Error><Code>InternalError</Code><Message>made up by a test</Message></Error>\r\n"
)


class FaultyProxy:
    """Forwards TCP to `target`. Each request fails with `probability`, in one of some `ways` of `random`'s choosing."""

    def __init__(
        self,
        target: str,
        seed: int,
        probability: float,
        ways: tuple[str, ...] = ("error", "reset", "half", "head alone", "slow", "lost answer"),
    ) -> None:
        self._ways = ways
        parts = urlsplit(target)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._random = random.Random(seed)
        self.probability = probability
        self.faults: dict[str, int] = {}
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), client, socket.create_connection(self._target) as server:
            muted = threading.Event()
            threading.Thread(target=self._answers, args=(server, client, muted), daemon=True).start()
            while data := client.recv(65536):
                if data.startswith(_METHODS) and self._random.random() < self.probability:
                    fault = self._random.choice(self._ways)
                    self.faults[fault] = self.faults.get(fault, 0) + 1
                    if fault == "error":
                        client.sendall(_ERROR)
                        return
                    if fault == "reset":
                        reset(client)
                        return
                    if fault == "half":
                        server.sendall(data[: len(data) // 2])
                        reset(client)
                        return
                    if fault == "head alone":
                        server.sendall(data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
                        server.shutdown(socket.SHUT_RDWR)
                        reset(client)
                        return
                    if fault == "slow":
                        time.sleep(self._random.uniform(0.2, 1.5))
                    if fault == "lost answer":
                        muted.set()
                server.sendall(data)

    def _answers(self, server: socket.socket, client: socket.socket, muted: threading.Event) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                if muted.is_set() and not data.startswith(b"HTTP/1.1 100"):
                    break
                client.sendall(data)
            reset(client)


def reset(connection: socket.socket) -> None:
    """End a connection so that its peer sees it broken."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RD)
    connection.close()
