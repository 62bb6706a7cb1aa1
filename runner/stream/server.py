"""The runner's side of a stream: answering on a unix socket which bytes of which file are there and proven.

What comes over the socket is from an engine, which is not trusted: a question is one bounded line and can do no more
than have bytes of the model's own weight files fetched sooner. The questions are in `plugin/stowage_stream/client.py`.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from artifact.errors import Malformed, StowageError

MAX_CONNECTIONS = 256
"""Most connections at a time: one for each process of an engine is enough."""

_MAX_QUESTION = 16 * 1024

Wait = Callable[[str, int, int], None]
"""Returns when the bytes of a file from one offset up to another are there; raises `StowageError`."""


class Server:
    """Listens on a unix socket at `path`, which nobody but this user can open, until closed."""

    def __init__(self, path: Path, wait: Wait) -> None:
        self._path, self._wait = path, wait
        self._room = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:  # the folder's path may be longer than a socket address can be
            self._listener.bind(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.close(folder)
        path.chmod(0o600)
        self._listener.listen(64)
        threading.Thread(target=self._accept, name="stream-socket", daemon=True).start()

    def close(self) -> None:
        """Take no more connections. Those that are open end when their engine does."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if not self._room.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._answer_all, args=(connection,), name="stream-rank", daemon=True).start()

    def _answer_all(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rb") as questions, suppress(OSError):
                while line := questions.readline(_MAX_QUESTION):
                    connection.sendall(json.dumps(self._answer(line)).encode() + b"\n")
        finally:
            self._room.release()

    def _answer(self, line: bytes) -> dict[str, str]:
        try:
            self._wait(*_question(line))
        except StowageError as error:
            return {"error": str(error)}
        return {}


def _question(line: bytes) -> tuple[str, int, int]:
    try:
        value: Any = json.loads(line)
        file, start, end = value["file"], value["start"], value["end"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Malformed("not a question") from None
    if not isinstance(file, str) or type(start) is not int or type(end) is not int:
        raise Malformed("not a question")
    return file, start, end
