"""Content digests.

A `Digest` can only be made from a checked string or from bytes, so that holding one means its text is safe to use
as a path component or in a URL. Source: OCI image-spec, descriptor.md, "Digests".
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Protocol

from artifact.errors import InvalidInput

_HEX_LENGTH = {"sha256": 64, "sha512": 128}
_HEX = re.compile(r"[0-9a-f]+")


class Hasher(Protocol):
    """The part of a `hashlib` object that is used here."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...


@dataclass(frozen=True, order=True)
class Digest:
    """An algorithm and the lower-case hexadecimal of its result, e.g. ``sha256:2c26…``.

    The registered algorithms sha256 and sha512 are accepted, nothing else.
    """

    algorithm: str
    hex: str

    def __post_init__(self) -> None:
        length = _HEX_LENGTH.get(self.algorithm)
        if length is None:
            raise InvalidInput(f"digest algorithm {self.algorithm!r} is not supported: use sha256 or sha512")
        if len(self.hex) != length or not _HEX.fullmatch(self.hex):
            raise InvalidInput(
                f"not a {self.algorithm} digest: {self.hex[:80]!r} (want {length} lower-case hex digits)"
            )

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Read ``algorithm:hex``. Raises `InvalidInput` on anything else."""
        algorithm, colon, hex_ = text.partition(":")
        if not colon:
            raise InvalidInput(f"not a digest: {text[:80]!r} (want sha256:<64 hex digits>)")
        return cls(algorithm, hex_)

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview, algorithm: str = "sha256") -> Digest:
        """The digest of `data`. Raises `InvalidInput` for another algorithm than sha256 and sha512."""
        if algorithm not in _HEX_LENGTH:
            raise InvalidInput(f"digest algorithm {algorithm!r} is not supported: use sha256 or sha512")
        return cls(algorithm, hashlib.new(algorithm, data).hexdigest())

    @classmethod
    def from_hasher(cls, algorithm: str, hasher: Hasher) -> Digest:
        """The digest a running hash has reached."""
        return cls(algorithm, hasher.hexdigest())

    def hasher(self) -> Hasher:
        """A fresh running hash of this digest's algorithm."""
        return hashlib.sha256() if self.algorithm == "sha256" else hashlib.sha512()

    def matches(self, data: bytes | bytearray | memoryview) -> bool:
        """Whether `data` is what this digest names."""
        hasher = self.hasher()
        hasher.update(data)
        return hasher.hexdigest() == self.hex

    @property
    def short(self) -> str:
        """``sha256:`` and the first twelve digits, for people."""
        return f"{self.algorithm}:{self.hex[:12]}"

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"
