"""The engine's side of a stream: asking the runner for parts of weight files, and reading them once they are proven.

One JSON object a line each way, answered in order. The question ``{"file": PATH, "start": A, "end": B}`` is answered
``{}`` when the bytes from A up to B are in the file and have been proven, and ``{"error": TEXT}`` when they never will
be. No byte of a file is read before the runner has answered for it.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_HEADER = 16 * 1024 * 1024
"""Longest safetensors header that is read, in bytes."""

_ANSWER = 64 * 1024
_READ = 8 * 1024 * 1024


class StreamError(RuntimeError):
    """The runner cannot vouch for bytes that were asked for, or is gone."""


class Runner:
    """The connection to the runner that listens on the unix socket at `path`. For one thread."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(path)
        except OSError as error:
            raise StreamError(f"the runner does not answer on {path}: {error.strerror or error}") from None
        self._answers = self._socket.makefile("rb")

    def wait(self, file: str, start: int, end: int) -> None:
        """Return when the bytes from `start` up to `end` are in `file` and proven. Raises `StreamError`."""
        question = json.dumps({"file": file, "start": start, "end": end}).encode() + b"\n"
        try:
            self._socket.sendall(question)
            line = self._answers.readline(_ANSWER)
        except OSError as error:
            raise StreamError(f"the runner went away: {error.strerror or error}") from None
        if not line.endswith(b"\n"):
            raise StreamError("the runner went away before the model was loaded")
        answer = json.loads(line)
        if answer != {}:
            raise StreamError(str(answer.get("error", "the runner gave no answer that can be understood")))


@dataclass(frozen=True)
class Entry:
    """One tensor of a weight file; `offset` and `length` are in bytes, `offset` from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


class WeightFile:
    """A safetensors file at `path` that is still being filled; the runner calls it `name`."""

    def __init__(self, runner: Runner, path: Path, name: str) -> None:
        self._runner, self._name = runner, name
        self._file = path.open("rb", buffering=0)

    def entries(self) -> list[Entry]:
        """Its tensors, in the order of their bytes. Raises `StreamError` for what is no safetensors header."""
        (length,) = struct.unpack("<Q", self.read(0, 8))
        if length > MAX_HEADER:
            raise StreamError(f"{self._name}: a header of {length} bytes is larger than {MAX_HEADER}")
        try:
            header: dict[str, Any] = json.loads(self.read(8, length))
            header.pop("__metadata__", None)
            found = [_entry(name, value, 8 + length) for name, value in header.items()]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StreamError(f"{self._name}: not a safetensors header: {error}") from None
        return sorted(found, key=lambda entry: (entry.offset, entry.length))

    def read(self, offset: int, length: int) -> bytes:
        """A few proven bytes."""
        buffer = bytearray(length)
        self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` with proven bytes from `offset` on. Raises `StreamError`."""
        done = 0
        while done < len(buffer):
            part = buffer[done : done + _READ]  # what has come is copied while the rest is on its way
            self._runner.wait(self._name, offset + done, offset + done + len(part))
            while part:
                count = os.preadv(self._file.fileno(), [part], offset + done)
                if not count:
                    raise StreamError(f"{self._name} was cut short while it was read")
                part, done = part[count:], done + count


def _entry(name: str, value: dict[str, Any], data: int) -> Entry:
    begin, end = value["data_offsets"]
    return Entry(name, str(value["dtype"]), tuple(map(int, value["shape"])), data + begin, end - begin)
