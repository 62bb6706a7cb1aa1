"""What to do for each part of a blob under way: nothing, to copy it from a local file, or to ask for it. Pure."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from artifact.tensorindex.format import Chunk, FileIndex
from artifact.tensorindex.indexed import Place


class Part(NamedTuple):
    """The bytes from `start` up to `end`. `chunk` says what they have to be, where that is known; `hole` that they are
    zero."""

    start: int
    end: int
    chunk: Chunk | None = None
    hole: bool = False


class Way(enum.Enum):
    """How the bytes of a job come: they are `HERE`, are copied from `LOCAL` files, or from `REMOTE`."""

    HERE = enum.auto()
    LOCAL = enum.auto()
    REMOTE = enum.auto()


class Copy(NamedTuple):
    """`length` bytes of `path` from `at` on that belong at `offset`."""

    offset: int
    length: int
    path: Path
    at: int


@dataclass(frozen=True)
class Job:
    """One thing to do: the bytes from `start` up to `end`. `chunks` are those that lie in them; `copies` are what a
    `LOCAL` job copies, the rest of it is zero."""

    start: int
    end: int
    way: Way
    chunks: Sequence[Chunk] = ()
    copies: Sequence[Copy] = ()


def pieces(size: int, length: int) -> Iterator[Part]:
    """A blob of which nothing is known, in pieces."""
    for start in range(0, size, length):
        yield Part(start, min(start + length, size))


def parts(file: FileIndex) -> Iterator[Part]:
    """A blob of which the index speaks: its chunks, and the holes between them."""
    position = 0
    for chunk in file.chunks:
        if chunk.offset > position:
            yield Part(position, chunk.offset, hole=True)
        yield Part(chunk.offset, chunk.end, chunk)
        position = chunk.end
    if position < file.size:
        yield Part(position, file.size, hole=True)


def plan(
    given: Iterable[Part], here: Callable[[Part], bool], local: Mapping[bytes, Place], most: int, near: int
) -> list[Job]:
    """The jobs that make the blob, in its order, the last byte of one before the first of the next.

    `here` tells what has arrived, `local` where chunks can be copied from. A job has at most `most` bytes (a part may
    have more); parts to ask for with at most `near` bytes between them become one job.
    """
    ordered = list(given)
    ways = [_way(part, here, local) for part in ordered]
    _bridge(ordered, ways, near)
    jobs: list[Job] = []
    group: list[Part] = []
    current: Way | None = None
    for part, stated in zip(ordered, ways, strict=True):
        way = stated or _way_of_hole(part, current, near)
        if group and (way is not current or part.end - group[0].start > most):
            jobs.append(_job(group, current or way, local))
            group = []
        group.append(part)
        current = way
    if group and current is not None:
        jobs.append(_job(group, current, local))
    return jobs


def _way(part: Part, here: Callable[[Part], bool], local: Mapping[bytes, Place]) -> Way | None:
    """The way of a part; None for a hole, which goes with its neighbours."""
    if here(part):
        return Way.HERE
    if part.hole:
        return None
    return Way.LOCAL if part.chunk is not None and part.chunk.digest in local else Way.REMOTE


def _way_of_hole(part: Part, current: Way | None, near: int) -> Way:
    if current is None or (current is Way.REMOTE and part.end - part.start > near):
        return Way.LOCAL
    return current


def _bridge(ordered: Sequence[Part], ways: list[Way | None], near: int) -> None:
    """Ask also for the little that lies between two parts to ask for."""
    last = -1  # the last part to ask for
    for index, way in enumerate(ways):
        if way is Way.REMOTE:
            between = range(last + 1, index)
            if last >= 0 and between and ordered[index].start - ordered[last].end <= near:
                for at in between:
                    ways[at] = Way.REMOTE
            last = index


def _job(group: Sequence[Part], way: Way, local: Mapping[bytes, Place]) -> Job:
    chunks = tuple(part.chunk for part in group if part.chunk is not None)
    copies = tuple(_copies(chunks, local)) if way is Way.LOCAL else ()
    return Job(group[0].start, group[-1].end, way, chunks, copies)


def _copies(chunks: Iterable[Chunk], local: Mapping[bytes, Place]) -> Iterator[Copy]:
    """What to copy for chunks that are all local: neighbours that are neighbours there too at once."""
    current: Copy | None = None
    for chunk in chunks:
        path, at = local[chunk.digest]
        length = current.length if current is not None else 0
        if current is not None and (path, at, chunk.offset) == (
            current.path,
            current.at + length,
            current.offset + length,
        ):
            current = current._replace(length=length + chunk.length)
            continue
        if current is not None:
            yield current
        current = Copy(chunk.offset, chunk.length, path, at)
    if current is not None:
        yield current
