"""Whether the log in a store is whole: for fsck, which has no key and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from artifact import merkle
from artifact.errors import Malformed
from registry import keys
from registry.log.state import PREFIX, STATE, LogDamaged, State
from registry.log.tiles import LogTiles
from registry.store.protocol import Missing, ObjectStore
from registry.tagrecord import TagRecord
from supplychain.tlog.entry import Replay, TagName
from supplychain.tlog.tiles import WIDTH, Tile, bundles_of, entries_of

_LOST = "unlogged"

Problem = tuple[str, str, str]
"""A kind of finding, the key it is about, and what is wrong."""


class LogCheck:
    """The log of a store, read once from its first entry."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._replay = Replay()

    def run(self, tags: Mapping[TagName, TagRecord]) -> Iterator[Problem]:
        """Every problem with the log's objects, and with `tags` whose objects speak of it."""
        try:
            state = State.from_bytes(self._store.get(STATE).data, None)
        except Missing:
            yield from ((_LOST, keys.tag(*name), "the log that it speaks of is gone") for name in _sealed(tags))
            return
        except LogDamaged as error:
            yield "damaged", STATE, str(error)
            return
        try:
            leaves = list(self._leaves(state))
        except (Malformed, Missing) as error:
            yield "damaged", PREFIX, f"the entries cannot be read: {error}"
            return
        yield from self._tiles(state, leaves)
        yield from ((_LOST, STATE, problem) for problem in self._replay.problems)
        pending = {item.name for item in state.pending}
        for name, record in _sealed(tags).items():
            if name not in pending and not self._follows(name, record):
                yield _LOST, keys.tag(*name), "it is not what the last log entry about it says"

    def _leaves(self, state: State) -> Iterator[bytes]:
        tiles = LogTiles(self._store, lambda: state)
        for tile in bundles_of(state.size):
            entries = entries_of(tiles.of(state, tile), tile.width)
            self._replay.take(entries)
            yield from map(merkle.leaf_hash, entries)

    def _tiles(self, state: State, leaves: list[bytes]) -> Iterator[Problem]:
        """Compare every whole tile that must be there, and the edge of the tree, with the entries."""
        below, level = leaves[: state.settled], 0
        while below:
            above: list[bytes] = []
            for index in range(len(below) // WIDTH):
                hashes = below[index * WIDTH : (index + 1) * WIDTH]
                above.append(merkle.root_hash(hashes))
                key = PREFIX + Tile(level, index).path
                try:
                    if self._store.get(key).data != b"".join(hashes):
                        yield "wrong-bytes", key, "it has not the hashes of the log's entries"
                except Missing:
                    yield "missing-blob", key, "the tile is gone"
            rest = tuple(below[len(below) // WIDTH * WIDTH :])
            if level and rest != (state.edge[level - 1] if level <= len(state.edge) else ()):
                yield "damaged", STATE, f"its tree is not that of the entries, at level {level}"
            below, level = above, level + 1

    def _follows(self, name: TagName, record: TagRecord) -> bool:
        if record.digest is None:
            return self._replay.gone.get(name) == record.index
        return self._replay.tags.get(name) == (record.digest, record.index)


def _sealed(tags: Mapping[TagName, TagRecord]) -> dict[TagName, TagRecord]:
    return {name: record for name, record in tags.items() if record.index is not None}
