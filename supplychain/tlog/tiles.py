"""Tiles: what a log's tree is cut into, and where each piece is. Source: c2sp.org/tlog-tiles.

A tile has 256 hashes of one height, or, at the right edge of the tree, fewer. Level 0 are the leaves, level L the roots
of whole tiles of level L - 1. An entry bundle has the entries of one tile of level 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from artifact import merkle
from artifact.errors import InvalidInput, Malformed

HEIGHT = 8
WIDTH = 1 << HEIGHT
"""Hashes, or entries, of a whole tile or bundle."""

MAX_ENTRY = (1 << 16) - 1
"""Most bytes of an entry: a bundle has two bytes for its length."""

MAX_BUNDLE = WIDTH * (2 + MAX_ENTRY)
"""Most bytes of a bundle."""

_PATH = re.compile(
    r"tile/(?P<level>entries|0|[1-9]|[1-5][0-9]|6[0-3])/(?P<index>(?:x[0-9]{3}/){0,6}[0-9]{3})"
    r"(?:\.p/(?P<width>[1-9][0-9]{0,2}))?"
)


@dataclass(frozen=True)
class Tile:
    """A tile, or with level None an entry bundle; `width` below 256 for a partial one."""

    level: int | None
    index: int
    width: int = WIDTH

    @property
    def path(self) -> str:
        """Where it is, below the log's prefix."""
        level = "entries" if self.level is None else str(self.level)
        partial = "" if self.width == WIDTH else f".p/{self.width}"
        return f"tile/{level}/{_index_path(self.index)}{partial}"

    @classmethod
    def parse(cls, path: str) -> Tile:
        """The tile at a path. Raises `InvalidInput` if it is none: each tile has one path only."""
        found = _PATH.fullmatch(path)
        if found is None:
            raise InvalidInput(f"not the path of a tile: {path[:120]!r}")
        level = None if found["level"] == "entries" else int(found["level"])
        index = int(found["index"].replace("x", "").replace("/", ""))
        width = int(found["width"]) if found["width"] else WIDTH
        tile = cls(level, index, width)
        if width > WIDTH or tile.path != path:
            raise InvalidInput(f"not the path of a tile: {path[:120]!r}")
        return tile

    @property
    def whole(self) -> Tile:
        """The whole tile that this is the beginning of."""
        return Tile(self.level, self.index)


def _index_path(index: int) -> str:
    parts = [f"{index % 1000:03}"]
    while index := index // 1000:
        parts.append(f"x{index % 1000:03}")
    return "/".join(reversed(parts))


def tiles_of(size: int) -> Iterable[Tile]:
    """Every tile of the tree over `size` entries, level by level, without bundles."""
    level, count = 0, size
    while count:
        yield from (Tile(level, index) for index in range(count // WIDTH))
        if count % WIDTH:
            yield Tile(level, count // WIDTH, count % WIDTH)
        level, count = level + 1, count // WIDTH


def bundles_of(size: int) -> Iterable[Tile]:
    """Every entry bundle of a log of `size` entries."""
    yield from (Tile(None, index) for index in range(size // WIDTH))
    if size % WIDTH:
        yield Tile(None, size // WIDTH, size % WIDTH)


def bundle(entries: Iterable[bytes]) -> bytes:
    """Entries as a bundle. Raises `ValueError` for an entry that is too long."""
    parts: list[bytes] = []
    for entry in entries:
        if len(entry) > MAX_ENTRY:
            raise ValueError(f"an entry of {len(entry)} bytes")
        parts += (len(entry).to_bytes(2, "big"), entry)
    return b"".join(parts)


def entries_of(raw: bytes, count: int) -> list[bytes]:
    """The first `count` entries of a bundle; what follows them must be whole entries too. Raises `Malformed`."""
    entries, at = [], 0
    while at < len(raw):
        end = at + 2 + int.from_bytes(raw[at : at + 2], "big")
        if end > len(raw) or at + 2 > len(raw):
            raise Malformed("an entry bundle that breaks off")
        entries.append(raw[at + 2 : end])
        at = end
    if not count <= len(entries) <= WIDTH:
        raise Malformed(f"an entry bundle with {len(entries)} entries instead of {count}")
    return entries[:count]


def hashes_of(raw: bytes, count: int) -> list[bytes]:
    """The first `count` hashes of a tile. Raises `Malformed`."""
    size = merkle.HASH_SIZE
    if len(raw) % size or not count * size <= len(raw) <= WIDTH * size:
        raise Malformed(f"a tile with {len(raw)} bytes instead of {count * size}")
    return [raw[at : at + size] for at in range(0, count * size, size)]


def root_of(edge: Sequence[Sequence[bytes]]) -> bytes:
    """The root of a tree from the hashes of its partial tiles, those of level 0 first.

    What is to the right of a level's hashes is less than one of them, so it has the place of one more leaf.
    """
    right: list[bytes] = []
    for hashes in edge:
        nodes = [*hashes, *right]
        right = [merkle.root_hash(nodes)] if nodes else []
    return right[0] if right else merkle.EMPTY_ROOT
