"""What is written down of a transfer under way, how fast it goes, and when one more connection is wanted."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import artifact.layout.record
from artifact.layout.pace import Pace, Traffic
from artifact.layout.record import Record

SIZE, PIECE = 100_000, 1000
RECORDS = st.builds(
    Record,
    st.just(PIECE),
    st.integers(0, SIZE),
    st.one_of(st.none(), st.binary(min_size=40, max_size=103).map(bytes.hex)),
    st.frozensets(st.integers(0, SIZE // PIECE - 1)),
)


@given(st.lists(RECORDS, min_size=1, max_size=3))
def test_the_last_one_written_is_read(records: list[Record]) -> None:
    with tempfile.TemporaryFile() as stream:
        os.ftruncate(stream.fileno(), SIZE)
        for record in records:
            record.write(stream.fileno(), SIZE)
        assert Record.read(stream.fileno(), SIZE, PIECE) == records[-1]


@given(RECORDS, st.data())
def test_a_damaged_one_tells_nothing(record: Record, data: st.DataObject) -> None:
    with tempfile.TemporaryFile() as stream:
        os.ftruncate(stream.fileno(), SIZE)
        record.write(stream.fileno(), SIZE)
        length = os.fstat(stream.fileno()).st_size
        if data.draw(st.booleans()):
            os.ftruncate(stream.fileno(), data.draw(st.integers(SIZE + 1, length - 1)))
        else:
            at = data.draw(st.integers(SIZE, length - 1))
            byte = os.pread(stream.fileno(), 1, at)[0]
            os.pwrite(stream.fileno(), bytes([byte ^ data.draw(st.integers(1, 255))]), at)
        found = Record.read(stream.fileno(), SIZE, PIECE)
        assert found == Record(PIECE, 0, None, frozenset())


@given(st.integers(0, SIZE))
def test_a_file_without_one_was_written_from_its_beginning(length: int) -> None:
    with tempfile.TemporaryFile() as stream:
        os.ftruncate(stream.fileno(), length)
        assert Record.read(stream.fileno(), SIZE, PIECE) == Record(PIECE, 0, None, frozenset(range(length // PIECE)))
        last = -(-length // PIECE)
        assert Record.read(stream.fileno(), length, PIECE).done == frozenset(range(last)), "all of it is there"


def test_after_a_restart_of_the_machine_no_hash_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryFile() as stream:
        os.ftruncate(stream.fileno(), SIZE)
        Record(PIECE, 5000, "00" * 40, frozenset({1, 7})).write(stream.fileno(), SIZE)
        monkeypatch.setattr(artifact.layout.record, "_boot", lambda: "another")
        assert Record.read(stream.fileno(), SIZE, PIECE) == Record(PIECE, 0, None, frozenset({1, 7}))


def test_pieces_of_another_size_are_not_ours() -> None:
    with tempfile.TemporaryFile() as stream:
        os.ftruncate(stream.fileno(), SIZE)
        Record(PIECE, 5000, "00" * 40, frozenset({1, 7})).write(stream.fileno(), SIZE)
        assert Record.read(stream.fileno(), SIZE, 2 * PIECE) == Record(2 * PIECE, 0, None, frozenset())


def rates(*per_second: float, connections: int = 1) -> list[bool]:
    """What a pace says after each second of such a rate, while there are so many connections."""
    pace, arrived, said = Pace(), 1000, []
    pace.wants_another(0.0, arrived, connections)
    for second, rate in enumerate(per_second, 1):
        arrived += int(rate)
        said.append(pace.wants_another(float(second), arrived, connections))
    return said


def test_connections_are_added_for_as_long_as_they_pay() -> None:
    assert rates(100, 200, 300, 400) == [True, True, True, True]
    assert rates(100, 105, 500) == [True, False, False], "never again after one that did not pay"
    assert rates(100, 90) == [True, False]


def test_where_there_are_many_connections_one_would_tell_nothing() -> None:
    pace = Pace()
    assert not pace.wants_another(0.0, 100, 12)
    assert [pace.wants_another(1.0, 200, 12) for _ in range(5)] == [True, True, True, False, False]
    assert [pace.wants_another(2.0, 320, 15) for _ in range(5)] == [True, True, True, False, False]
    assert not any(pace.wants_another(3.0, 440, 18) for _ in range(5))


def test_connections_that_did_not_pay_are_to_spare() -> None:
    pace = Pace()
    pace.wants_another(0.0, 100, 8)
    assert [pace.wants_another(1.0, 200, 8) for _ in range(3)] == [True, True, False]
    assert not pace.spares_one(), "nobody knows yet"
    assert [pace.wants_another(2.0, 400, 10) for _ in range(3)] == [True, True, False], "those were worth it"
    assert not any(pace.wants_another(3.0, 610, 12) for _ in range(3))
    assert [pace.spares_one() for _ in range(3)] == [True, True, False], "the last two were not"


def test_nothing_is_added_before_anything_has_come() -> None:
    pace = Pace()
    assert not any(pace.wants_another(float(second), 0, 1) for second in range(10))


def test_transfers_try_further_connections_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a line that is busy four transfers try one connection more, and not one more each."""
    now, traffic, opened = 0.0, Traffic(), 0
    monkeypatch.setattr("artifact.layout.pace.time", SimpleNamespace(monotonic=lambda: now))
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(traffic.transfer())
            stack.enter_context(traffic.connection())
        for tenth in range(50):
            now = tenth / 10
            traffic.add(100)
            if traffic.wants_connection():
                opened += 1
        assert opened == 1
        stack.enter_context(traffic.transfer())
        for tenth in range(50, 100):
            now = tenth / 10
            traffic.add(100)
            if traffic.wants_connection():
                opened += 1
        assert opened == 2, "who begins later may try again"


def test_transfers_side_by_side_are_as_fast_as_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that four share is no slower for that: nothing is done for slow lines that costs on a fast one."""
    now, traffic = 0.0, Traffic()
    monkeypatch.setattr("artifact.layout.pace.time", SimpleNamespace(monotonic=lambda: now))
    with traffic.transfer():
        with traffic.transfer():
            traffic.add(60)
            traffic.add(60)
            now = 1.0
            assert not traffic.below(100)
        now = 2.0
        assert traffic.below(100)
    now = 50.0
    with traffic.transfer():
        assert not traffic.below(100), "what came before counts no more, nor does the time"
        traffic.add(60)
        now = 51.0
        assert traffic.below(100)
    assert traffic.arrived == 180
