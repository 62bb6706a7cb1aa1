"""Checkpoints: how many entries a log has, and the root of the tree over them. Source: c2sp.org/tlog-checkpoint."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

from artifact.errors import Malformed
from artifact.merkle import EMPTY_ROOT, HASH_SIZE
from supplychain.tlog.note import Note, VerifierKey

MAX_SIZE = 1 << 63
"""Logs have fewer entries than this."""

_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")


@dataclass(frozen=True)
class Checkpoint:
    """The head of the log `origin`."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """The text of the note."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Read the text of a note; extension lines are passed over. Raises `Malformed`."""
        lines = text.split("\n")
        if len(lines) < 4 or not all(lines[:-1]) or lines[-1]:
            raise Malformed("a checkpoint has at least three lines, none of them empty")
        origin, count, encoded = lines[:3]
        size = number(count, "a checkpoint's tree size")
        try:
            root = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            root = b""
        if len(root) != HASH_SIZE or base64.b64encode(root).decode() != encoded:
            raise Malformed("a checkpoint's root hash is 32 bytes in base64")
        if size == 0 and root != EMPTY_ROOT:
            raise Malformed("a checkpoint of an empty log with another root than the empty tree's")
        return cls(origin, size, root)

    @classmethod
    def open(cls, raw: bytes, key: VerifierKey) -> Checkpoint:
        """The checkpoint in a note that `key` has signed, of the log that has the key's name. Raises `Malformed` and
        `note.Unsigned`."""
        checkpoint = cls.parse(Note.parse(raw).verified([key]))
        if checkpoint.origin != key.name:
            raise Malformed(f"a checkpoint of the log {checkpoint.origin[:80]!r}, not of {key.name}")
        return checkpoint


def number(text: str, what: str) -> int:
    """A decimal number without leading zeros, below `MAX_SIZE`; `what` names it. Raises `Malformed`."""
    if not _NUMBER.fullmatch(text) or int(text) >= MAX_SIZE:
        raise Malformed(f"{what} is not a number as it must be written: {text[:40]!r}")
    return int(text)
