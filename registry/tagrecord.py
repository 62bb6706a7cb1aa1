"""What a tag's object holds.

Without a transparency log, the digest that the tag points at. With one, also the number of the log entry that says so,
and a seal without which none but the registry's own processes can write such a record:

    sha256:<hex>
    sha256:<hex> <number> <seal>
    untagged <number> <seal>

The last is the place of a tag that was removed. It keeps a process that was held up from writing what the tag was
before; the garbage collector takes it away a day later. The sizes of these three differ, so listings tell them apart.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass

from artifact.digest import Digest
from artifact.errors import InvalidInput
from registry.store.protocol import StoreUnavailable

SEAL = 64
"""Characters of a seal: an HMAC-SHA256 in hexadecimal."""

_REMOVED = "untagged"
_REMOVED_SIZES = range(len(_REMOVED) + 3 + SEAL, len(_REMOVED) + 2 + 19 + SEAL + 1)
_LEAST_LOGGED = 71 + 3 + SEAL  # a sha256 digest and a number of one digit: more than any digest alone
_RECORD = re.compile(
    r"(?P<digest>untagged|[a-z0-9]+:[0-9a-f]+)(?: (?P<index>0|[1-9][0-9]{0,18}) (?P<seal>[0-9a-f]{64}))?"
)


@dataclass(frozen=True)
class TagRecord:
    """`digest` is None for a tag that was removed; `index` and `seal` for one that was written without a log."""

    digest: Digest | None
    index: int | None = None
    seal: str = ""

    @classmethod
    def parse(cls, raw: bytes) -> TagRecord:
        """Read a record; its seal is not checked. Raises `StoreUnavailable` if it is damaged."""
        try:
            found = _RECORD.fullmatch(raw.decode("ascii"))
            if found is not None and (found["digest"] != _REMOVED or found["index"] is not None):
                digest = None if found["digest"] == _REMOVED else Digest.parse(found["digest"])
                return cls(digest, int(found["index"]) if found["index"] else None, found["seal"] or "")
        except (InvalidInput, UnicodeDecodeError):
            pass
        raise StoreUnavailable("a tag in the store is damaged: run registry fsck")

    def to_bytes(self) -> bytes:
        """As it lies in the store."""
        head = str(self.digest) if self.digest is not None else _REMOVED
        return (head if self.index is None else f"{head} {self.index} {self.seal}").encode()


class TagSeals:
    """Seals of tag records, made with a key that all replicas have."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def sealed(self, name: str, tag: str, digest: Digest | None, index: int) -> TagRecord:
        """The record of a tag that entry `index` of the log is about."""
        return TagRecord(digest, index, self._seal(name, tag, digest, index))

    def holds(self, name: str, tag: str, record: TagRecord) -> bool:
        """Whether the registry wrote this record, for this tag, after logging it."""
        if record.index is None:
            return False
        return hmac.compare_digest(record.seal, self._seal(name, tag, record.digest, record.index))

    def _seal(self, name: str, tag: str, digest: Digest | None, index: int) -> str:
        return hmac.digest(self._key, f"tag\n{name}\n{tag}\n{digest or ''}\n{index}".encode(), "sha256").hex()


def is_tag_there(size: int, logged: bool) -> bool:
    """Whether an object of this size is that of a tag which is there; with `logged`, of one that a log knows."""
    return size >= _LEAST_LOGGED if logged else size not in _REMOVED_SIZES
