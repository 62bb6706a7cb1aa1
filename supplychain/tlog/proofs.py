"""Proofs computed from tiles: a few of them prove an entry, or a beginning, of a log of any size.

What these functions return has not been checked: `artifact.merkle.check_inclusion` and `check_consistency` do that,
against a signed checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable

from artifact import merkle
from supplychain.tlog.tiles import HEIGHT, WIDTH, Tile, hashes_of

ReadTile = Callable[[Tile], bytes]
"""The bytes of a tile that the tree has; a whole tile for a partial one will do."""


class Tree:
    """The tree over the first `size` entries of a log, read by tiles; each is read once."""

    def __init__(self, size: int, read: ReadTile) -> None:
        self.size = size
        self._read = read
        self._tiles: dict[Tile, list[bytes]] = {}

    def root(self) -> bytes:
        """The root. Raises `Malformed` for tiles that have the wrong size."""
        return self._range(0, self.size) if self.size else merkle.EMPTY_ROOT

    def leaf(self, index: int) -> bytes:
        """The hash of an entry."""
        return self._node(0, index, 1)[0]

    def inclusion_proof(self, index: int) -> list[bytes]:
        """The nodes that prove entry `index` to be in the tree, from the bottom up. Source: RFC 6962 section 2.1.1."""
        if not 0 <= index < self.size:
            raise IndexError(index)
        proof: list[bytes] = []
        start, end = 0, self.size
        while end - start > 1:
            split = start + _left(end - start)
            if index < split:
                proof.append(self._range(split, end))
                end = split
            else:
                proof.append(self._range(start, split))
                start = split
        return proof[::-1]

    def consistency_proof(self, first: int) -> list[bytes]:
        """The nodes that prove the tree over the first `first` entries to be the beginning of this one. Source: RFC
        6962 section 2.1.2."""
        if not 0 < first <= self.size:
            raise IndexError(first)
        proof: list[bytes] = []
        start, end, whole = 0, self.size, True
        while first != end:
            split = start + _left(end - start)
            if first <= split:
                proof.append(self._range(split, end))
                end = split
            else:
                proof.append(self._range(start, split))
                start, whole = split, False
        if not whole:
            proof.append(self._range(start, end))
        return proof[::-1]

    def _range(self, start: int, end: int) -> bytes:
        """The hash over entries `start` to `end`, which is a node of the tree."""
        count = end - start
        if count & (count - 1):
            split = start + _left(count)
            return merkle.node_hash(self._range(start, split), self._range(split, end))
        level = (count.bit_length() - 1) // HEIGHT
        return merkle.root_hash(self._node(level, start >> (HEIGHT * level), count >> (HEIGHT * level)))

    def _node(self, level: int, first: int, count: int) -> list[bytes]:
        """`count` hashes of a level from number `first` on, all in one tile."""
        at = first % WIDTH
        return self._tile(level, first // WIDTH)[at : at + count]

    def _tile(self, level: int, index: int) -> list[bytes]:
        there = self.size >> (HEIGHT * level)
        tile = Tile(level, index, min(WIDTH, there - index * WIDTH))
        if tile not in self._tiles:
            self._tiles[tile] = hashes_of(self._read(tile), tile.width)
        return self._tiles[tile]


def _left(count: int) -> int:
    """The largest power of two smaller than `count`: what stands in the left half of a tree."""
    return 1 << ((count - 1).bit_length() - 1)
