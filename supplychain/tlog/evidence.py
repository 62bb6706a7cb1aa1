"""A proof that an entry is in a log, as one text that can be checked without a network. Source: c2sp.org/tlog-proof.

The entry itself stands in the ``extra`` line. Nothing there is believed before its hash has been found in the log.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass

from artifact import merkle
from artifact.errors import Malformed
from supplychain.tlog.checkpoint import Checkpoint, number
from supplychain.tlog.note import VerifierKey
from supplychain.tlog.tiles import MAX_ENTRY

_FIRST = "c2sp.org/tlog-proof@v1"
_MAX_STEPS = 63


@dataclass(frozen=True)
class Evidence:
    """An entry, its number in the log, its inclusion proof, and the signed checkpoint that the proof leads to."""

    entry: bytes
    index: int
    proof: tuple[bytes, ...]
    checkpoint: bytes

    def to_text(self) -> str:
        """The text of a ``.tlog-proof`` file."""
        lines = [_FIRST, f"extra {_encoded(self.entry)}", f"index {self.index}", *map(_encoded, self.proof), ""]
        return "\n".join(lines) + "\n" + self.checkpoint.decode()

    @classmethod
    def parse(cls, raw: bytes) -> Evidence:
        """Read what `to_text` wrote. Raises `Malformed`."""
        head, blank, checkpoint = raw.partition(b"\n\n")
        try:
            first, extra, index, *proof = head.decode("ascii").split("\n")
        except (UnicodeDecodeError, ValueError):
            raise Malformed("not a proof of a transparency log") from None
        if first != _FIRST or not extra.startswith("extra ") or not index.startswith("index ") or not blank:
            raise Malformed(f"not a proof of a transparency log: it begins with {_FIRST}, extra, and index")
        if len(proof) > _MAX_STEPS:
            raise Malformed("the inclusion proof is longer than any tree is high")
        entry = _decoded(extra.removeprefix("extra "))
        steps = tuple(map(_decoded, proof))
        if len(entry) > MAX_ENTRY or any(len(step) != merkle.HASH_SIZE for step in steps):
            raise Malformed("a proof with an entry or a hash of the wrong size")
        return cls(entry, number(index.removeprefix("index "), "the index of a proof"), steps, checkpoint)

    def check(self, key: VerifierKey) -> Checkpoint:
        """That the entry is in the log whose key this is; returns the checkpoint that says so. Raises `Malformed` and
        `note.Unsigned`."""
        checkpoint = Checkpoint.open(self.checkpoint, key)
        leaf = merkle.leaf_hash(self.entry)
        merkle.check_inclusion(leaf, self.index, checkpoint.size, self.proof, checkpoint.root)
        return checkpoint


def consistent(first: Checkpoint, second: Checkpoint, proof: Sequence[bytes]) -> None:
    """Check that a log which was at `first` may have come to `second`. Raises `Malformed`."""
    merkle.check_consistency(first.size, second.size, proof, first.root, second.root)


def _encoded(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Malformed(f"not base64: {text[:40]!r}") from None
