"""The one object that says what a log is: everything is decided by replacing it.

    log/state                   size, the entries of the last bundle, the edge of the tree, moves in progress
    log/tile/<L>/<N>            whole tiles
    log/tile/entries/<N>        whole entry bundles

Whole tiles and bundles are written from a state that has been decided, so whoever writes one writes the same bytes.
Partial tiles are not kept: they are the beginnings of what the state has.
"""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from artifact import merkle
from artifact.digest import Digest
from artifact.errors import InvalidInput
from registry.store.protocol import StoreUnavailable
from supplychain.tlog.checkpoint import Checkpoint
from supplychain.tlog.entry import TagName
from supplychain.tlog.tiles import HEIGHT, WIDTH, Tile, bundle, hashes_of, root_of

PREFIX = "log/"
STATE = PREFIX + "state"


class LogDamaged(StoreUnavailable):
    """What the store has is not the log that the registry's processes wrote."""

    code = "log-damaged"


@dataclass(frozen=True)
class Pending:
    """A tag move that is in the log, and perhaps not yet in the tag's object. `since` is in seconds since the
    epoch."""

    index: int
    name: TagName
    digest: Digest | None
    since: float

    def to_json(self) -> list[Any]:
        return [self.index, *self.name, str(self.digest) if self.digest else None, self.since]

    @classmethod
    def from_json(cls, value: Any) -> Pending:
        index, name, tag, digest, since = value
        return cls(index, (name, tag), Digest.parse(digest) if digest else None, since)


@dataclass(frozen=True)
class State:
    """A log of `size` entries. `tail` are the last of them, from a multiple of 256 on; `edge` the hashes of the
    partial tiles above those that the tail makes, level 1 first; `pending` moves that may not be visible yet."""

    origin: str
    size: int = 0
    tail: tuple[bytes, ...] = ()
    edge: tuple[tuple[bytes, ...], ...] = ()
    pending: tuple[Pending, ...] = ()

    @property
    def settled(self) -> int:
        """How many entries have been written as whole bundles."""
        return self.size - len(self.tail)

    @cached_property
    def leaves(self) -> tuple[bytes, ...]:
        """The hashes of the tail."""
        return tuple(map(merkle.leaf_hash, self.tail))

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The head of the log, which nobody has signed yet."""
        state, _ = self.settle()
        return Checkpoint(self.origin, self.size, root_of([state.leaves, *state.edge]))

    def settle(self) -> tuple[State, dict[Tile, bytes]]:
        """The same log with less than a bundle in its tail, and the tiles and bundles that this needs to be there."""
        state, objects = self, dict[Tile, bytes]()
        while len(state.tail) >= WIDTH:
            number = state.settled // WIDTH
            objects[Tile(None, number)] = bundle(state.tail[:WIDTH])
            objects[Tile(0, number)] = b"".join(state.leaves[:WIDTH])
            edge = list(state.edge)
            rise, level, root = state.settled + WIDTH, 1, merkle.root_hash(state.leaves[:WIDTH])
            while True:
                edge += [()] if len(edge) < level else []
                edge[level - 1] = (*edge[level - 1], root)
                if len(edge[level - 1]) < WIDTH:
                    break
                objects[Tile(level, (rise >> (HEIGHT * (level + 1))) - 1)] = b"".join(edge[level - 1])
                root = merkle.root_hash(edge[level - 1])
                edge[level - 1] = ()
                level += 1
            state = replace(state, tail=state.tail[WIDTH:], edge=tuple(edge))
        return state, objects

    def appended(self, entries: Sequence[bytes], pending: Iterable[Pending]) -> State:
        """The log with entries more, and with these moves in progress."""
        return State(self.origin, self.size + len(entries), (*self.tail, *entries), self.edge, tuple(pending))

    def tile(self, tile: Tile) -> bytes | None:
        """A tile or bundle that the log has, as far as the state tells; for a whole one that has been written
        before, None. Raises `InvalidInput` if the log has no such tile."""
        state, objects = self.settle()
        if tile.whole in objects:
            return beginning(objects[tile.whole], tile)
        level = tile.level or 0
        whole = state.settled >> (HEIGHT * (level + 1))
        if tile.index < whole:
            return None
        if tile.level is None:
            items: Sequence[bytes] = state.tail
        elif level == 0:
            items = state.leaves
        else:
            items = state.edge[level - 1] if level <= len(state.edge) else ()
        if tile.index > whole or tile.width > len(items):
            raise InvalidInput(f"the log has {self.size} entries, and no {tile.path}")
        return bundle(items[: tile.width]) if tile.level is None else b"".join(items[: tile.width])

    def to_bytes(self, key: bytes) -> bytes:
        """As it lies in the store: its seal, newline, JSON."""
        value = {
            "version": 1,
            "origin": self.origin,
            "size": self.size,
            "tail": [entry.decode("utf-8") for entry in self.tail],
            "edge": [base64.b64encode(b"".join(level)).decode() for level in self.edge],
            "pending": [item.to_json() for item in self.pending],
        }
        body = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
        return _seal(key, body) + b"\n" + body

    @classmethod
    def from_bytes(cls, raw: bytes, key: bytes | None) -> State:
        """Read what `to_bytes` wrote; without a key the seal is not checked. Raises `LogDamaged` if it is
        damaged, or was not written by a process that has the key."""
        seal, _, body = raw.partition(b"\n")
        if key is not None and not hmac.compare_digest(seal, _seal(key, body)):
            raise LogDamaged(
                f"{STATE} was not written with this log's key: it was changed, or [transparency] key is another's"
            )
        try:
            value = json.loads(body)
            levels = [base64.b64decode(level, validate=True) for level in value["edge"]]
            state = cls(
                origin=value["origin"],
                size=value["size"],
                tail=tuple(entry.encode() for entry in value["tail"]),
                edge=tuple(tuple(hashes_of(level, len(level) // merkle.HASH_SIZE)) for level in levels),
                pending=tuple(map(Pending.from_json, value["pending"])),
            )
        except (ValueError, TypeError, KeyError, AttributeError, InvalidInput) as error:
            raise LogDamaged(f"{STATE} is damaged ({error}): run registry fsck") from None
        if state.settled < 0 or state.settled % WIDTH:
            raise LogDamaged(f"{STATE} is damaged (it has {len(state.tail)} of {state.size} entries)")
        return state


def beginning(raw: bytes, tile: Tile) -> bytes:
    """The tile `tile` out of the bytes of the whole one that it is the beginning of."""
    if tile.level is not None:
        return raw[: tile.width * merkle.HASH_SIZE]
    end = 0
    for _ in range(tile.width):
        end += 2 + int.from_bytes(raw[end : end + 2], "big")
    return raw[:end]


def _seal(key: bytes, body: bytes) -> bytes:
    return hmac.digest(key, b"state\n" + body, "sha256").hex().encode()
