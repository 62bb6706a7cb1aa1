"""What is handed over to the hash, and what it has to read by itself, are together the whole, in order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from artifact.layout.handover import Handover

LENGTH = 4
DATA = bytes(range(200))


@given(st.lists(st.tuples(st.integers(1, LENGTH), st.booleans(), st.booleans()), max_size=40), st.integers(0, 9))
def test_every_byte_is_hashed_once_in_order(steps: list[tuple[int, bool, bool]], begin: int) -> None:
    """Each step receives some bytes; those of one in two belong further ahead; then the hash may take a turn."""
    handover = Handover(begin, 2, LENGTH)
    buffer = memoryview(bytearray(LENGTH))
    hashed, there, elsewhere = bytearray(DATA[:begin]), begin, 190

    def turn() -> bool:
        taken = handover.take()
        if taken is not None:
            hashed.extend(taken)
            handover.give_back(taken)
        elif len(hashed) < there:
            handover.skip_to(there)
            hashed.extend(DATA[len(hashed) : there])
        return len(hashed) < there

    for count, ahead, hashes in steps:
        position = elsewhere if ahead else there
        buffer[:count] = DATA[position : position + count]
        given_up = buffer
        buffer = handover.offer(buffer, count, position)
        assert not ahead or buffer is given_up, "what is not next is not taken"
        there += 0 if ahead else count
        if hashes:
            turn()
    while turn():
        pass
    assert bytes(hashed) == DATA[:there]


def test_it_is_full_for_who_has_the_next_bytes_only() -> None:
    handover, buffer = Handover(0, 2, LENGTH), memoryview(bytearray(LENGTH))
    for position in (0, LENGTH):
        assert not handover.full(position)
        buffer = handover.offer(buffer, LENGTH, position)
    assert handover.full(2 * LENGTH) and not handover.full(3 * LENGTH)
    taken = handover.take()
    assert taken is not None and handover.full(2 * LENGTH), "it is still being hashed"
    handover.give_back(taken)
    assert not handover.full(2 * LENGTH)
