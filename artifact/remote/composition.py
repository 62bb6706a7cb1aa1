"""What of a blob a registry can take from blobs that it has, by the chunks of tensor indexes. Pure."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from artifact.digest import Digest
from artifact.tensorindex.format import Chunk, FileIndex, TensorIndex

LEAST_RUN = 256 * 1024
"""Bytes that are sent although the registry has them: naming them would take a request of its own."""


MOST_BYTES = 512 * 1024 * 1024
"""Bytes that are taken from elsewhere in one request: the registry answers when it has copied them."""

MOST_RANGES = 8192
MOST_SOURCES = 256
"""Ranges, and different blobs, that one request names."""


class Piece(NamedTuple):
    """The bytes of a new blob from `start` up to `end`. They are those from `at` on of the blob `origin`, which the
    registry has in `repository` (None: the one that is pushed to); without an origin they have to be sent."""

    start: int
    end: int
    origin: Digest | None = None
    at: int = 0
    repository: str | None = None


class _Place(NamedTuple):
    """A chunk of a blob that is there: the `number`-th of `file`."""

    file: FileIndex
    number: int
    repository: str | None

    @property
    def chunk(self) -> Chunk:
        return self.file.chunks[self.number]

    @property
    def next(self) -> _Place | None:
        return self._replace(number=self.number + 1) if self.number + 1 < len(self.file.chunks) else None


class Held:
    """The chunks of weight files that a registry has. An index that lies costs time, nothing else: the registry holds
    the composed blob against its digest."""

    def __init__(self) -> None:
        self._places: dict[bytes, _Place] = {}

    def add(self, index: TensorIndex, repository: str | None = None) -> None:
        """The files of an index are in `repository`; None is the one that is pushed to."""
        for file in index.files:
            for number, chunk in enumerate(file.chunks):
                self._places.setdefault(chunk.digest, _Place(file, number, repository))

    def find(self, chunk: Chunk, before: _Place | None) -> _Place | None:
        """Where a chunk is; best behind the place of the chunk before it."""
        following = before.next if before is not None else None
        for place in (following, self._places.get(chunk.digest)):
            if place is not None and place.chunk[1:] == chunk[1:]:
                return place
        return None


class Composition:
    """A blob as pieces, in order and without gaps."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._pieces = pieces
        self._starts = [piece.start for piece in pieces]

    @classmethod
    def of(cls, file: FileIndex, held: Held) -> Composition | None:
        """A file's blob; None if nothing of it is worth taking from elsewhere."""
        pieces = list(_merged(_long(_found(file, held))))
        return cls(pieces) if any(piece.origin for piece in pieces) else None

    @property
    def repositories(self) -> list[str]:
        """The other repositories that something is taken from."""
        return sorted({piece.repository for piece in self._pieces if piece.origin and piece.repository})

    def travelled(self, done: int) -> int:
        """How many of the first `done` bytes have to be sent."""
        return sum(
            min(piece.end, done) - piece.start for piece in self._pieces if not piece.origin and piece.start < done
        )

    def step(self, done: int) -> tuple[int, list[Piece]]:
        """How far to go in one request from `done` on, and what is to be taken from elsewhere; nothing if bytes are to
        be sent."""
        at = bisect_right(self._starts, done) - 1
        if self._pieces[at].origin is None:
            return self._pieces[at].end, []
        found: list[Piece] = []
        limit, sources = done + MOST_BYTES, set[Digest]()
        for piece in self._pieces[at : at + MOST_RANGES]:
            if piece.origin is None or piece.start >= limit or len(sources | {piece.origin}) > MOST_SOURCES:
                break
            sources.add(piece.origin)
            start = max(piece.start, done)
            found.append(piece._replace(start=start, end=min(piece.end, limit), at=piece.at + start - piece.start))
        return found[-1].end, found


def document(pieces: Iterable[Piece]) -> bytes:
    """The ranges of other blobs as the registry reads them."""
    ranges = [
        {"from": str(piece.origin), "offset": piece.at, "length": piece.end - piece.start}
        | ({"repository": piece.repository} if piece.repository else {})
        for piece in pieces
    ]
    return json.dumps({"ranges": ranges}, separators=(",", ":")).encode()


def _found(file: FileIndex, held: Held) -> Iterator[Piece]:
    position, before = 0, None
    for chunk in file.chunks:
        place = held.find(chunk, before)
        if chunk.offset > position:
            yield _padding(position, chunk.offset, before, place)
        if place is None:
            yield Piece(chunk.offset, chunk.end)
        else:
            yield Piece(chunk.offset, chunk.end, place.file.digest, place.chunk.offset, place.repository)
        position, before = chunk.end, place
    if position < file.size:
        yield Piece(position, file.size)


def _padding(start: int, end: int, before: _Place | None, after: _Place | None) -> Piece:
    """What no chunk covers is zero: where the neighbours are neighbours there too, so are the zeros between them."""
    if before is not None and before.next == after and after is not None:
        at = before.chunk.end
        if after.chunk.offset - at == end - start:
            return Piece(start, end, before.file.digest, at, before.repository)
    return Piece(start, end)


def _long(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The pieces, with runs of too little that is there as bytes to be sent."""
    run: list[Piece] = []
    for piece in pieces:
        if piece.origin is not None:
            run.append(piece)
            continue
        yield from _kept(run)
        run = []
        yield piece
    yield from _kept(run)


def _kept(run: Sequence[Piece]) -> Iterator[Piece]:
    if run and run[-1].end - run[0].start < LEAST_RUN:
        yield Piece(run[0].start, run[-1].end)
    else:
        yield from run


def _merged(pieces: Iterable[Piece]) -> Iterator[Piece]:
    last: Piece | None = None
    for piece in pieces:
        if last is not None and _continues(last, piece):
            last = last._replace(end=piece.end)
            continue
        if last is not None:
            yield last
        last = piece
    if last is not None:
        yield last


def _continues(last: Piece, piece: Piece) -> bool:
    if (piece.origin, piece.repository) != (last.origin, last.repository):
        return False
    return piece.origin is None or piece.at == last.at + last.end - last.start
