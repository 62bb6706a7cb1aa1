"""What is already there of a blob under way, written behind its bytes."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_LENGTH = 8
_CHECK = 16
_MOST = 4 * 1024 * 1024


@dataclass(frozen=True)
class Record:
    """`done` are the numbers of the pieces of `piece` bytes that are whole in the file. `midstate` is the running
    SHA-256 of the first `hashed` bytes; None where there is none, and after a restart of the machine, which may have
    lost bytes that were only in memory."""

    piece: int
    hashed: int
    midstate: str | None
    done: frozenset[int]

    @classmethod
    def read(cls, file: int, size: int, piece: int) -> Record:
        """The record behind the first `size` bytes of an open file. A file without one, no longer than the blob, was
        written from its beginning; a damaged record, or one of other pieces, tells nothing."""
        length = os.fstat(file).st_size
        if length <= size:
            return cls(piece, 0, None, frozenset(range(-(-size // piece) if length == size else length // piece)))
        raw = os.pread(file, min(length - size, _MOST), size)
        try:
            return cls._parse(raw, size, piece)
        except (ValueError, TypeError, KeyError):
            return cls(piece, 0, None, frozenset())

    @classmethod
    def _parse(cls, raw: bytes, size: int, piece: int) -> Record:
        end = _CHECK + _LENGTH + int(raw[_CHECK : _CHECK + _LENGTH], 16)
        if raw[:_CHECK] != _check(raw[_CHECK:end]):
            raise ValueError("damaged")
        stated = json.loads(raw[_CHECK + _LENGTH : end])
        if stated["piece"] != piece or not 0 <= stated["hashed"] <= size:
            raise ValueError("of other pieces")
        bits, count = int(stated["done"], 16), -(-size // piece)
        done = frozenset(index for index in range(count) if bits >> index & 1)
        if stated["boot"] != _boot():
            return cls(piece, 0, None, done)
        return cls(piece, stated["hashed"], stated["midstate"], done)

    def write(self, file: int, size: int) -> None:
        """Put the record behind the first `size` bytes."""
        bits = 0
        for index in self.done:
            bits |= 1 << index
        body = json.dumps(
            {
                "piece": self.piece,
                "hashed": self.hashed,
                "midstate": self.midstate,
                "done": f"{bits:x}",
                "boot": _boot(),
            }
        ).encode()
        rest = b"%0*x" % (_LENGTH, len(body)) + body
        os.pwrite(file, _check(rest) + rest, size)


def _check(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest()[:_CHECK].encode()


@cache
def _boot() -> str:
    """What names this run of the machine; empty where nothing does, and then no run equals another."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return os.urandom(16).hex()
