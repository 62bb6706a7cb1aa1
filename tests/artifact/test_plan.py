"""What is planned for a blob: that every byte comes from somewhere, and from the right place."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from artifact.digest import Digest
from artifact.layout.plan import Way, parts, pieces, plan
from artifact.tensorindex import Chunk, FileIndex
from artifact.tensorindex.indexed import Place

SEGMENTS = st.lists(
    st.tuples(st.integers(1, 50), st.booleans(), st.sampled_from(["here", "local", "remote"])), max_size=30
)
"""Lengths, whether a hole, and where the bytes are."""


@given(SEGMENTS, st.integers(1, 120), st.integers(0, 60), st.randoms())
def test_doing_the_jobs_makes_the_blob(segments, most: int, near: int, random) -> None:
    data, chunks, place = bytearray(), [], {}
    for length, hole, where in segments:
        offset = len(data)
        data += bytes(length) if hole else random.randbytes(length)
        if not hole:
            chunks.append(Chunk(offset, length, hashlib.sha256(data[offset:]).digest()))
            place[offset] = where
    index = FileIndex("m.gguf", Digest.of(bytes(data)), len(data), (), chunks)
    elsewhere, local = io.BytesIO(), {}
    for chunk in chunks:
        if place[chunk.offset] == "local":
            elsewhere.write(b"-" * random.choice([0, 0, 3]))
            local[chunk.digest] = Place(Path("elsewhere"), elsewhere.tell())
            elsewhere.write(data[chunk.offset : chunk.end])
    jobs = plan(parts(index), lambda part: place.get(part.start) == "here", local, most, near)

    made, position, asked = bytearray(len(data)), 0, []
    for job in jobs:
        assert job.start == position, "one behind the other"
        position = job.end
        if job.way is Way.REMOTE:
            made[job.start : job.end] = data[job.start : job.end]
            asked.append(job)
        elif job.way is Way.LOCAL:
            for copy in job.copies:
                assert job.start <= copy.offset and copy.offset + copy.length <= job.end
                made[copy.offset : copy.offset + copy.length] = elsewhere.getvalue()[copy.at : copy.at + copy.length]
        else:
            made[job.start : job.end] = data[job.start : job.end]
        inside = [chunk for chunk in chunks if job.start <= chunk.offset < job.end]
        assert list(job.chunks) == inside and all(chunk.end <= job.end for chunk in inside)
        assert job.end - job.start <= most or len(inside) <= 1
    assert position == len(data) and made == data
    missing = [chunk for chunk in chunks if place[chunk.offset] == "remote" and chunk.digest not in local]
    assert sum(job.end - job.start for job in asked) <= sum(chunk.length for chunk in missing) + near * (
        len(missing) + 1
    )


@given(st.integers(0, 1000), st.integers(1, 300))
def test_a_blob_of_which_nothing_is_known(size: int, piece: int) -> None:
    jobs = plan(pieces(size, piece), lambda part: False, {}, piece, 0)
    assert [(job.start, job.end) for job in jobs] == [(at, min(at + piece, size)) for at in range(0, size, piece)]
    assert all(job.way is Way.REMOTE for job in jobs)


def test_neighbours_that_are_neighbours_there_too_are_copied_at_once() -> None:
    chunks = [Chunk(at, 10, bytes([at]) * 32) for at in (0, 10, 20)]
    index = FileIndex("m.gguf", Digest.of(b""), 30, (), chunks)
    path = Path("old")
    local = {chunk.digest: Place(path, at) for chunk, at in zip(chunks, (105, 115, 300), strict=True)}
    (job,) = plan(parts(index), lambda part: False, local, 1000, 0)
    assert [tuple(copy) for copy in job.copies] == [(0, 20, path, 105), (20, 10, path, 300)]
