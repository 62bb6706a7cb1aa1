"""One weight file on its way into the store: which of its chunks are there, and which may be had on this host."""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

from artifact.descriptor import Descriptor
from artifact.digest import Hasher
from artifact.errors import Malformed
from artifact.layout.pieces import PIECE, allocate
from artifact.layout.record import Record
from artifact.midstate import ResumableSha256, supported
from artifact.source import RangedSource
from artifact.tensorindex import FileIndex
from artifact.tensorindex.indexed import Place

MAX_CHUNK = 64 * 1024 * 1024
"""Largest chunk that is streamed; every connection holds one in memory."""


@dataclass(frozen=True)
class Incoming:
    """One weight file that is to arrive: its blob, what the index says of it, where it comes from, and by their digests
    where other files on this host may have chunks of it."""

    index: FileIndex
    blob: Descriptor
    source: RangedSource
    local: Mapping[bytes, Place]


class File:
    """One file under way, open and kept from other writers. `free` marks the chunks nobody has taken on, `there` those
    that are proven, `left` those that an earlier transfer wrote and that are not proven yet, `near` those that may be
    had on this host, `named` a file that has its name in the store. Whoever fills it guards the marks with a lock."""

    def __init__(self, incoming: Incoming, stream: BinaryIO) -> None:
        self.incoming, self.stream, self.file = incoming, stream, stream.fileno()
        self.path, self.size, self.chunks = incoming.index.path, incoming.blob.size, incoming.index.chunks
        self.offsets = [chunk.offset for chunk in self.chunks]
        count = len(self.chunks)
        self.free, self.there, self.left = bytearray(b"\1" * count), bytearray(count), bytearray(count)
        earlier = Record.read(self.file, self.size, PIECE).done
        for at, chunk in enumerate(self.chunks):
            self.left[at] = all(piece in earlier for piece in range(chunk.offset // PIECE, -(-chunk.end // PIECE)))
        local = (chunk.digest in incoming.local for chunk in self.chunks)
        self.near = bytes(map(bool.__or__, map(bool, self.left), local))
        allocate(self.file, self.size)
        self.hashed, self.saved, self.named = 0, 0, False
        own = incoming.blob.digest.algorithm == "sha256" and supported()
        self.hasher: Hasher = ResumableSha256() if own else incoming.blob.digest.hasher()

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Numbers of the first chunk of the bytes from `start` up to `end`, and of the one behind the last."""
        return bisect_right(self.offsets, start) - 1, bisect_left(self.offsets, end)

    def has(self, first: int, last: int) -> bool:
        """Whether the chunks from `first` up to `last` are all there."""
        return self.there.find(0, first, last) < 0

    @property
    def frontier(self) -> int:
        """How many bytes from the beginning are there without a hole."""
        hole = self.there.find(0)
        return self.size if hole < 0 else self.offsets[hole]

    def save(self) -> None:
        """Write down behind the bytes what is there. Only the hashing thread does."""
        pieces = range(-(-self.size // PIECE))
        held = bytes(map(int.__or__, self.there, self.left))
        spans = (self.span(at * PIECE, min((at + 1) * PIECE, self.size)) for at in pieces)
        done = frozenset(at for at, (first, last) in zip(pieces, spans, strict=True) if held.find(0, first, last) < 0)
        midstate = self.hasher.state() if isinstance(self.hasher, ResumableSha256) else None
        Record(PIECE, self.hashed if midstate is not None else 0, midstate, done).write(self.file, self.size)
        self.saved = self.there.count(1)


def check_cover(item: Incoming) -> None:
    """Safetensors have no padding: the chunks follow one another from the first byte to the last. Raises `Malformed`
    if they do not."""
    end = 0
    for chunk in item.index.chunks:
        if chunk.offset != end or chunk.length > MAX_CHUNK:
            break
        end = chunk.end
    if end != item.blob.size:
        raise Malformed(
            f"the tensor index leaves bytes of {item.index.path} out, or has chunks above {MAX_CHUNK} bytes, so it "
            "cannot be streamed: serve it without --stream"
        )


def read(file: int, part: memoryview, offset: int) -> bool:
    """Fill `part` from `offset` on; False if the file ends before."""
    while part and (count := os.preadv(file, [part], offset)):
        part, offset = part[count:], offset + count
    return not part


def read_from(place: Place, part: memoryview) -> bool:
    """Fill `part` from another file; False if that is gone or shorter by now."""
    try:
        with place.path.open("rb", buffering=0) as stream:
            return read(stream.fileno(), part, place.offset)
    except OSError:
        return False
