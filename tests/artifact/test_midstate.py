"""A hash that is put down and taken up anywhere must be the hash."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifact.midstate import ResumableSha256, supported

pytestmark = pytest.mark.skipif(not supported(), reason="libcrypto does not export SHA256_Init here")


@given(st.lists(st.binary(max_size=200), max_size=12))
def test_saved_after_every_piece(pieces: list[bytes]) -> None:
    hasher = ResumableSha256()
    for piece in pieces:
        hasher.update(piece)
        hasher = ResumableSha256.resume(hasher.state())
        hasher.hexdigest()
    assert hasher.hexdigest() == hashlib.sha256(b"".join(pieces)).hexdigest()


def test_count_beyond_four_gigabits() -> None:
    """The count is kept in two words; the low one overflows at 512 MiB."""
    block, hasher, reference = bytes(64 * 2**20), ResumableSha256(), hashlib.sha256()
    for _ in range(9):
        hasher.update(block)
        reference.update(block)
        hasher = ResumableSha256.resume(hasher.state())
    hasher.update(b"end")
    reference.update(b"end")
    assert hasher.hexdigest() == reference.hexdigest()


@pytest.mark.parametrize("state", ["", "00", "zz", "00" * 39, "00" * 41, "00" * 39 + "05"])
def test_not_a_state(state: str) -> None:
    with pytest.raises(ValueError):
        ResumableSha256.resume(state)
