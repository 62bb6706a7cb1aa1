"""Killed between the last byte of a blob and its name: the next one goes on, and asks for nothing again."""

from __future__ import annotations

import io
import os
import resource
import signal
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import artifact.layout.blobs
import artifact.layout.pieces
from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import Malformed
from artifact.layout import LayoutRepository
from artifact.layout.blobs import MAX_SIZE, exclusive
from artifact.layout.record import Record
from artifact.midstate import ResumableSha256, supported
from artifact.source import Reader, bytes_source
from tests.artifact.exchanges import QUIET

PIECE = 100_000
DATA = os.urandom(7 * PIECE + 777)
BLOB = Descriptor.of(DATA, mediatypes.MODEL_WEIGHT)
NOBODY = 65534


class Ranged:
    """A source with ranges that counts the bytes it is asked for."""

    asked = 0

    @contextmanager
    def range(self, start: int, length: int) -> Iterator[Reader]:
        self.asked += length
        yield io.BytesIO(DATA[start : start + length])

    @contextmanager
    def __call__(self, offset: int) -> Iterator[Reader]:
        self.asked += len(DATA) - offset
        yield io.BytesIO(DATA[offset:])


class Counting(ResumableSha256):
    """Counts what is hashed."""

    total = 0

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        Counting.total += len(data)
        super().update(data)


@pytest.fixture
def in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact.layout.pieces, "PIECE", PIECE)
    monkeypatch.setattr(artifact.layout.blobs, "IN_PIECES", PIECE)


def status_of(work: Callable[[], object]) -> int:
    """How a process that does this ends."""
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(call: str, time: int, work: Callable[[], object]) -> None:
    """Do `work` in a process that is killed when it makes a system call for the first, second, ... `time`."""
    real, left = getattr(os, call), time

    def dying(*arguments: object, **named: object) -> object:
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **named)

    def doomed() -> None:
        setattr(os, call, dying)
        work()

    assert status_of(doomed) == -signal.SIGKILL


STEPS = [("fsync", 1), ("ftruncate", 1), ("fsync", 2), ("fchmod", 1), ("replace", 1)]


@pytest.mark.usefixtures("in_pieces")
@pytest.mark.parametrize(("call", "time"), STEPS)
def test_nothing_is_asked_for_again(tmp_path: Path, call: str, time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = LayoutRepository(tmp_path)
    layout.push_blob(Descriptor.of(b"{}", mediatypes.MODEL_CONFIG), bytes_source(b"{}"), QUIET)
    killed_at(call, time, lambda: layout.push_blob(BLOB, Ranged(), QUIET))
    assert not layout.has_blob(BLOB.digest)
    source, Counting.total = Ranged(), 0
    monkeypatch.setattr(artifact.layout.pieces, "ResumableSha256", Counting)
    assert layout.push_blob(BLOB, source, QUIET)
    assert layout.blob_path(BLOB.digest).read_bytes() == DATA
    assert layout.blob_path(BLOB.digest).stat().st_mode & 0o777 == 0o444
    assert source.asked == 0
    if supported() and (call, time) in STEPS[:2]:
        assert Counting.total == 0, "nor hashed again, until the record is cut off, when all is on the disk"


@pytest.mark.parametrize("call", ["fsync", "fchmod", "replace"])
def test_a_small_blob_is_not_asked_for_again(tmp_path: Path, call: str) -> None:
    layout = LayoutRepository(tmp_path)
    layout.push_blob(Descriptor.of(b"{}", mediatypes.MODEL_CONFIG), bytes_source(b"{}"), QUIET)
    killed_at(call, 1, lambda: layout.push_blob(BLOB, bytes_source(DATA), QUIET))
    source = Ranged()
    assert layout.push_blob(BLOB, source, QUIET)
    assert (layout.blob_path(BLOB.digest).read_bytes(), source.asked) == (DATA, 0)


@pytest.mark.usefixtures("in_pieces")
def test_a_whole_file_of_other_bytes_is_fetched_again(tmp_path: Path) -> None:
    """As it is left where room was reserved and nothing written yet."""
    (tmp_path / "ingest").mkdir()
    (tmp_path / "ingest" / f"sha256-{BLOB.digest.hex}").write_bytes(bytes(len(DATA)))
    layout, source = LayoutRepository(tmp_path), Ranged()
    layout.push_blob(BLOB, source, QUIET)
    assert (layout.blob_path(BLOB.digest).read_bytes(), source.asked) == (DATA, len(DATA))


@pytest.mark.usefixtures("in_pieces")
def test_room_that_was_reserved_is_not_taken_for_bytes_that_came(tmp_path: Path) -> None:
    with (tmp_path / "partial").open("w+b", buffering=0) as stream:
        stream.write(DATA[: 2 * PIECE + 5])
        artifact.layout.pieces.allocate(stream.fileno(), len(DATA))
        found = Record.read(stream.fileno(), len(DATA), PIECE)
        assert found == Record(PIECE, 0, None, frozenset({0, 1}))
        artifact.layout.pieces.allocate(stream.fileno(), len(DATA))
        assert Record.read(stream.fileno(), len(DATA), PIECE) == found


@contextmanager
def shared_folder() -> Iterator[Path]:
    """A folder that every user may write; pytest's are those of one."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


def as_user(work: Callable[[], object]) -> int:
    """How a process that does this ends, for whom permissions count, unlike for root."""

    def unprivileged() -> None:
        if os.geteuid() == 0:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        work()

    return status_of(unprivileged)


def test_a_complete_file_without_a_name_may_be_opened_again_by_its_owner() -> None:
    with shared_folder() as folder:
        layout = LayoutRepository(folder / "store")

        def leave_one_behind() -> None:
            partial = folder / "store" / "ingest" / f"sha256-{BLOB.digest.hex}"
            partial.parent.mkdir(parents=True)
            partial.write_bytes(DATA)
            partial.chmod(0o444)

        assert as_user(leave_one_behind) == 0
        assert as_user(lambda: layout.push_blob(BLOB, bytes_source(b""), QUIET)) == 0
        assert layout.blob_path(BLOB.digest).read_bytes() == DATA


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can leave a file of somebody else's")
def test_the_file_of_another_user_is_said() -> None:
    with shared_folder() as folder:
        path = folder / "partial"
        path.write_bytes(DATA)
        path.chmod(0o444)

        def take_it_up() -> None:
            with pytest.raises(PermissionError), exclusive(path):
                pass

        assert as_user(take_it_up) == 0
        assert path.stat().st_mode & 0o777 == 0o444


def test_a_size_that_nothing_has_is_refused(tmp_path: Path) -> None:
    layout = LayoutRepository(tmp_path)
    for size in (MAX_SIZE + 1, 2**63 - 1):
        blob = Descriptor(mediatypes.MODEL_WEIGHT, Digest.of(b"x"), size)
        with pytest.raises(Malformed, match=rf"{blob.digest} is said to have {size:,} bytes.*ask who published it"):
            layout.push_blob(blob, Ranged(), QUIET)
    assert not (tmp_path / "ingest").exists()


def test_what_there_is_no_room_for_is_not_planned_for(tmp_path: Path) -> None:
    """The kernel's limit on file size stands for a disk that is not as large."""
    blob = Descriptor(mediatypes.MODEL_WEIGHT, Digest.of(b"x"), 2**43)

    def push() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, resource.RLIM_INFINITY))
        tracemalloc.start()
        with pytest.raises(OSError, match="File too large"):
            LayoutRepository(tmp_path).push_blob(blob, Ranged(), QUIET)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000

    assert status_of(push) == 0
    assert [path.stat().st_size for path in (tmp_path / "ingest").iterdir()] == [0]
