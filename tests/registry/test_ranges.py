"""Range and Content-Range as pure functions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.http.ranges import Unsatisfiable, chunk, requested

SIZES = st.integers(0, 2**63)


@given(header=st.text(max_size=40) | st.text("bytes=0123456789-, ", max_size=40), size=SIZES)
def test_any_header_gives_a_part_or_the_whole_or_none(header: str, size: int) -> None:
    try:
        part = requested(header, size)
    except Unsatisfiable:
        return
    if part is not None:
        start, length = part
        assert 0 <= start < start + length <= size


@given(start=SIZES, length=st.integers(1, 2**62), size=st.integers(1, 2**63))
def test_first_and_last(start: int, length: int, size: int) -> None:
    header = f"bytes={start}-{start + length - 1}"
    if start >= size:
        with pytest.raises(Unsatisfiable):
            requested(header, size)
    else:
        assert requested(header, size) == (start, min(length, size - start))


@given(count=st.integers(1, 2**62), size=st.integers(1, 2**62))
def test_suffix(count: int, size: int) -> None:
    assert requested(f"bytes=-{count}", size) == (max(size - count, 0), min(count, size))


@given(start=SIZES, length=st.integers(1, 2**62))
def test_chunk(start: int, length: int) -> None:
    end = start + length - 1
    for header in (f"{start}-{end}", f"bytes {start}-{end}/{end + 1}", f"bytes {start}-{end}/*"):
        assert chunk(header) == (start, length)


@given(st.text(max_size=30))
def test_any_text_is_a_chunk_or_an_error(text: str) -> None:
    try:
        start, length = chunk(text)
    except ValueError:
        return
    assert start >= 0
    assert length > 0


@pytest.mark.parametrize("header", ["", "-", "1-", "-1", "2-1", "a-b", "0-1,2-3", "bytes=*/5", "0-" + "9" * 30])
def test_not_a_chunk(header: str) -> None:
    with pytest.raises(ValueError, match="not a chunk range"):
        chunk(header)
