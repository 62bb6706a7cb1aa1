"""Reading tiles and entries of a log, wherever they are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from registry.log.state import PREFIX, State, beginning
from registry.store.protocol import Missing, ObjectStore
from supplychain.tlog.tiles import WIDTH, Tile, bundles_of, entries_of


class LogTiles:
    """The tiles of the log in a store; `state` gives the log as it is now."""

    def __init__(self, store: ObjectStore, state: Callable[[], State]) -> None:
        self._store = store
        self._state = state

    def read(self, tile: Tile) -> bytes:
        """A tile or entry bundle. Raises `InvalidInput` if the log has none such, `Missing` if it has been lost."""
        if tile.width == WIDTH:
            try:
                return self._store.get(PREFIX + tile.path).data
            except Missing:
                pass
        return self.of(self._state(), tile)

    def of(self, state: State, tile: Tile) -> bytes:
        """A tile or entry bundle of the log as it is at `state`. Raises as `read` does."""
        data = state.tile(tile)
        if data is not None:
            return data
        try:
            return beginning(self._store.get(PREFIX + tile.whole.path).data, tile)
        except Missing:
            raise Missing(f"{PREFIX}{tile.whole.path} is gone from the store: run registry fsck") from None

    def entries(self, state: State) -> Iterator[bytes]:
        """Every entry of the log as it is at `state`. Raises `Malformed` for a damaged bundle, `Missing`
        for one that has been lost."""
        for tile in bundles_of(state.size):
            yield from entries_of(self.of(state, tile), tile.width)
