"""Large blobs, fetched in pieces from servers that break, lie, redirect and stall."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import artifact.layout.blobs
import artifact.layout.pace
import artifact.layout.pieces
import artifact.remote.transport
from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.errors import DigestMismatch, StorageFull, Unreachable
from artifact.layout import LayoutRepository
from artifact.layout.record import Record
from artifact.midstate import ResumableSha256, supported
from artifact.remote import RemoteRepository
from artifact.transfer import copy_blobs
from tests.artifact.exchanges import QUIET, Exchange, Serve, asked, nothing_named

PIECE = 100_000
DATA = os.urandom(25 * PIECE + 777)
BLOB = Descriptor.of(DATA, mediatypes.MODEL_WEIGHT)
Script = Callable[[Exchange, int, int], None]


@pytest.fixture(autouse=True, params=[1, 64], ids=["crowded", "spare processors"])
def processors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Pieces are small, and there are more or fewer processors than transfers."""
    monkeypatch.setattr(artifact.layout.pace, "processors", lambda: request.param)
    monkeypatch.setattr(artifact.layout.pieces, "PIECE", PIECE)
    monkeypatch.setattr(artifact.layout.blobs, "IN_PIECES", PIECE)
    return int(request.param)


def send(exchange: Exchange, start: int, end: int, data: bytes = DATA) -> None:
    exchange.answer(206, data[start:end], Content_Range=f"bytes {start}-{end - 1}/{len(data)}")


def send_part(exchange: Exchange, start: int, end: int, count: int) -> None:
    """Promise a range, send `count` bytes of it, and hang up."""
    exchange.handler.send_response(206)
    exchange.handler.send_header("Content-Length", str(end - start))
    exchange.handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(DATA)}")
    exchange.handler.end_headers()
    exchange.handler.wfile.write(DATA[start : start + count])
    exchange.handler.wfile.flush()
    exchange.hang_up()


def ranges(script: Script) -> Callable[[Exchange], None]:
    return lambda exchange: script(exchange, *asked(exchange))


def pull(host: str, folder: Path) -> bytes:
    target = LayoutRepository(folder)
    copy_blobs(RemoteRepository(host, "x"), target, [BLOB], QUIET, 1)
    return target.blob_path(BLOB.digest).read_bytes()


def asked_once(seen: list[Exchange]) -> None:
    """The ranges that were asked for, each from the beginning of a piece, are together the blob, once."""
    starts, ends = zip(*sorted(asked(item) for item in seen), strict=True)
    assert (0, *ends) == (*starts, len(DATA)) and all(start % PIECE == 0 for start in starts)


def test_every_byte_is_asked_for_once(serve: Serve, tmp_path: Path) -> None:
    server = serve(ranges(send))
    assert pull(server.host, tmp_path) == DATA
    asked_once(server.seen)
    requests = len(server.seen)
    assert requests < 26, "pieces that follow on one another are asked for together"
    assert not any((tmp_path / "ingest").iterdir())
    assert pull(server.host, tmp_path) == DATA and len(server.seen) == requests, "what is there is not fetched again"


def test_broken_connections_cost_only_what_is_missing(serve: Serve, tmp_path: Path, no_waiting: None) -> None:
    broken: dict[int, int] = {}

    def script(exchange: Exchange, start: int, end: int) -> None:
        if start % PIECE == 0 and start >= PIECE and len(broken) < 8:
            broken[start] = end
            send_part(exchange, start, end, 40_000)
        else:
            send(exchange, start, end)

    server = serve(ranges(script))
    assert pull(server.host, tmp_path) == DATA
    assert len(broken) == 8
    assert {(start + 40_000, end) for start, end in broken.items()} <= {asked(item) for item in server.seen}


def test_a_server_that_stays_broken_keeps_what_came(serve: Serve, tmp_path: Path, no_waiting: None) -> None:
    def dying(exchange: Exchange, start: int, end: int) -> None:
        if start >= 10 * PIECE:
            exchange.hang_up()
        else:
            send(exchange, start, end)

    server = serve(ranges(dying))
    with pytest.raises(Unreachable):
        pull(server.host, tmp_path)
    assert nothing_named(tmp_path)
    server.seen.clear()
    server.script = ranges(send)
    assert pull(server.host, tmp_path) == DATA
    assert min(asked(item)[0] for item in server.seen) == 10 * PIECE


@pytest.mark.parametrize(
    "stated", ["bytes 5-99/2500777", "", "items 0-1/2", "bytes */2500777", "bytes 0-99998/2500777"]
)
def test_another_range_than_the_one_asked_for(
    serve: Serve, tmp_path: Path, stated: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The blob comes in one piece, and a warning says why."""

    def lying(exchange: Exchange) -> None:
        if "range" in exchange.headers:
            exchange.answer(206, DATA[:PIECE], Content_Range=stated)
        else:
            exchange.answer(200, DATA)

    assert pull(serve(lying).host, tmp_path) == DATA
    assert "with another range" in capsys.readouterr().err


def test_a_range_of_another_length(serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def shorter(exchange: Exchange) -> None:
        if "range" in exchange.headers:
            start, end = asked(exchange)
            send(exchange, start, end - 1)
        else:
            exchange.answer(200, DATA)

    assert pull(serve(shorter).host, tmp_path) == DATA
    assert "with another range" in capsys.readouterr().err


def test_a_registry_without_ranges_works_with_a_warning(
    serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve(lambda exchange: exchange.answer(200, DATA))
    assert pull(server.host, tmp_path) == DATA
    assert f"{server.host} does not do ranges" in capsys.readouterr().err


def test_wrong_bytes_in_one_piece(serve: Serve, tmp_path: Path) -> None:
    damaged = bytearray(DATA)
    damaged[17 * PIECE + 5] ^= 1
    server = serve(ranges(lambda exchange, start, end: send(exchange, start, end, bytes(damaged))))
    with pytest.raises(DigestMismatch, match="damaged or were tampered with"):
        pull(server.host, tmp_path)
    assert nothing_named(tmp_path) and not any((tmp_path / "ingest").iterdir())


def test_damage_in_what_an_earlier_transfer_left_is_mended(serve: Serve, tmp_path: Path, no_waiting: None) -> None:
    server = serve(ranges(lambda e, start, end: send(e, start, end) if start < 10 * PIECE else e.hang_up()))
    with pytest.raises(Unreachable):
        pull(server.host, tmp_path)
    (left,) = (tmp_path / "ingest").iterdir()
    with left.open("r+b") as stream:
        stream.seek(8 * PIECE)
        stream.write(b"\0" * PIECE)
        stream.seek(len(DATA))
        stream.write(b"no record")
    server.script = ranges(send)
    assert pull(server.host, tmp_path) == DATA


def test_a_redirect_is_followed_once_for_all_pieces(serve: Serve, tmp_path: Path) -> None:
    storage = serve(ranges(send))
    registry = serve(lambda exchange: exchange.answer(307, Location=f"http://{storage.host}/data?signature=1"))
    assert pull(registry.host, tmp_path) == DATA
    assert len(registry.seen) < 5 < len(storage.seen)
    asked_once(storage.seen)


def test_an_expired_redirect_is_asked_for_again(serve: Serve, tmp_path: Path) -> None:
    issued = 0

    def store(exchange: Exchange) -> None:
        if exchange.path.endswith(f"={issued}") and len(storage.seen) % 7:
            send(exchange, *asked(exchange))
        else:
            exchange.answer(403, b"<Error><Code>AccessDenied</Code></Error>")

    def registry(exchange: Exchange) -> None:
        nonlocal issued
        issued += 1
        exchange.answer(307, Location=f"http://{storage.host}/data?signature={issued}")

    storage = serve(store)
    assert pull(serve(registry).host, tmp_path) == DATA
    assert 3 < issued < 20


def test_a_server_that_stalls_is_cut_off(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact.remote.transport, "_STALL", artifact.remote.transport.urllib3.Timeout(0.5))
    over, stalled = threading.Event(), set()

    def script(exchange: Exchange, start: int, end: int) -> None:
        if start >= 3 * PIECE and not stalled:
            stalled.add(start)
            exchange.handler.send_response(206)
            exchange.handler.send_header("Content-Length", str(end - start))
            exchange.handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(DATA)}")
            exchange.handler.end_headers()
            exchange.handler.wfile.flush()
            over.wait(60)
        else:
            send(exchange, start, end)

    try:
        assert pull(serve(ranges(script)).host, tmp_path) == DATA
    finally:
        over.set()
    assert stalled


def test_connections_are_added_while_they_help(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that gives every connection the same small rate gets the most connections there may be."""
    monkeypatch.setattr(artifact.layout.pace, "_WINDOW", 0.1)
    lock, now, most = threading.Lock(), 0, 0

    def script(exchange: Exchange, start: int, end: int) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.1)
        send(exchange, start, end)
        with lock:
            now -= 1

    assert pull(serve(ranges(script)).host, tmp_path) == DATA
    assert 1 < most <= artifact.layout.pieces.CONNECTIONS


class Busy:
    """A line that brings the same however many ask: counts how many do at the time of each request."""

    def __init__(self) -> None:
        self.asking: list[int] = []
        self._line, self._lock, self._now = threading.Lock(), threading.Lock(), 0

    def __call__(self, exchange: Exchange, start: int, end: int) -> None:
        with self._lock:
            self._now += 1
            self.asking.append(self._now)
        with self._line:
            time.sleep(0.03)
            with self._lock:
                self._now -= 1
            send(exchange, start, end)


def test_a_connection_that_does_not_help_ends_on_a_fast_line(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it brings comes out of order, and would have to be read again for the hash."""
    monkeypatch.setattr(artifact.layout.pace, "_WINDOW", 0.1)
    monkeypatch.setattr(artifact.layout.pieces, "_RUN", 1)
    for fast in (True, False):
        monkeypatch.setattr(artifact.layout.pieces, "_PROVE_BELOW", 0 if fast else 10**12)
        line = Busy()
        assert pull(serve(ranges(line)).host, tmp_path / str(fast)) == DATA
        assert line.asking[0] == 1 and max(line.asking) == 2
        assert set(line.asking[-5:]) == ({1} if fast else {2})


def test_where_hashing_takes_the_time_there_is_one_connection_and_nothing_is_read_again(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifact.layout.pace, "processors", lambda: 64)  # else whoever receives hashes
    monkeypatch.setattr(artifact.layout.pace, "_WINDOW", 0.05)
    for name, value in {"_BUFFER": 20_000, "_HANDED": 2, "_CALM": 60}.items():
        monkeypatch.setattr(artifact.layout.pieces, name, value)
    update, preadv, read = ResumableSha256.update, os.preadv, []

    def slow(self: ResumableSha256, data: bytes | memoryview) -> None:
        time.sleep(0.005)
        update(self, data)

    def noted(file: int, buffers: list[memoryview], offset: int) -> int:
        read.append(offset)
        return preadv(file, buffers, offset)

    monkeypatch.setattr(ResumableSha256, "update", slow)
    monkeypatch.setattr(os, "preadv", noted)
    line = Busy()
    assert pull(serve(ranges(line)).host, tmp_path) == DATA
    assert set(line.asking) == {1} and read == []


def test_a_full_disk_is_met_at_once(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    server = serve(ranges(send))
    with pytest.raises(StorageFull, match="free some space"):
        pull(server.host, tmp_path)
    assert not server.seen and nothing_named(tmp_path)


def test_a_file_system_that_cannot_reserve(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    assert pull(serve(ranges(send)).host, tmp_path) == DATA


class Counting(ResumableSha256):
    """Counts what is hashed."""

    total = 0

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        Counting.total += len(data)
        super().update(data)


PULLING = """
import sys
import artifact.layout.blobs, artifact.layout.pieces
from pathlib import Path
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.layout import LayoutRepository
from artifact.layout.record import Record
from artifact.progress import Quiet
from artifact.remote import RemoteRepository
from artifact.transfer import copy_blobs
host, folder, digest, size, piece = sys.argv[1:]
artifact.layout.pieces.PIECE = artifact.layout.blobs.IN_PIECES = int(piece)
blob = Descriptor("application/octet-stream", Digest.parse(digest), int(size))
copy_blobs(RemoteRepository(host, "x"), LayoutRepository(Path(folder)), [blob], Quiet(), 1)
"""


def test_killed_at_any_moment_it_goes_on_without_fetching_or_hashing_twice(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not supported():
        pytest.skip("libcrypto does not export SHA256_Init here")
    held = threading.Event()

    def until_half(exchange: Exchange, start: int, end: int) -> None:
        if start >= 12 * PIECE:
            held.wait(60)
            exchange.hang_up()
        else:
            send(exchange, start, end)

    server = serve(ranges(until_half))
    argv = [sys.executable, "-c", PULLING, server.host, str(tmp_path), str(BLOB.digest), str(BLOB.size), str(PIECE)]
    child = subprocess.Popen(argv)
    deadline = time.monotonic() + 120
    while recorded(tmp_path).hashed < 12 * PIECE:
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    held.set()
    assert nothing_named(tmp_path)
    server.seen.clear()
    server.script = ranges(send)
    Counting.total = 0
    monkeypatch.setattr(artifact.layout.pieces, "ResumableSha256", Counting)
    assert pull(server.host, tmp_path) == DATA
    assert len(server.seen) == 14
    assert Counting.total == len(DATA) - 12 * PIECE


def recorded(folder: Path) -> Record:
    """What the transfer under way in `folder` has written down."""
    for path in (folder / "ingest").glob("*"):
        with path.open("rb") as stream:
            return Record.read(stream.fileno(), len(DATA), PIECE)
    return Record(PIECE, 0, None, frozenset())


def test_without_a_hash_that_can_be_saved_it_hashes_again(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_waiting: None
) -> None:
    monkeypatch.setattr(artifact.layout.pieces, "supported", lambda: False)
    server = serve(ranges(lambda e, start, end: send(e, start, end) if start < 10 * PIECE else e.hang_up()))
    with pytest.raises(Unreachable):
        pull(server.host, tmp_path)
    server.seen.clear()
    server.script = ranges(send)
    assert pull(server.host, tmp_path) == DATA
    assert min(asked(item)[0] for item in server.seen) == 10 * PIECE


def test_sha512(serve: Serve, tmp_path: Path) -> None:
    from artifact.digest import Digest

    blob = Descriptor(BLOB.media_type, Digest("sha512", hashlib.sha512(DATA).hexdigest()), len(DATA))
    target = LayoutRepository(tmp_path)
    copy_blobs(RemoteRepository(serve(ranges(send)).host, "x"), target, [blob], QUIET, 1)
    assert target.blob_path(blob.digest).read_bytes() == DATA


def test_what_a_transfer_in_one_stream_left_is_used(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "ingest").mkdir()
    (tmp_path / "ingest" / f"sha256-{BLOB.digest.hex}").write_bytes(DATA[: 5 * PIECE + 10])
    server = serve(ranges(send))
    assert pull(server.host, tmp_path) == DATA
    assert min(asked(item)[0] for item in server.seen) == 5 * PIECE


@pytest.mark.skipif(not supported(), reason="this Python's SHA-256 cannot be saved")
def test_with_a_transfer_for_each_processor_whoever_receives_hashes(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processors: int
) -> None:
    hashing: Counter[str] = Counter()
    update = ResumableSha256.update

    def noted(self: ResumableSha256, data: bytes | memoryview) -> None:
        hashing[threading.current_thread().name.partition("_")[0]] += len(data)
        update(self, data)

    monkeypatch.setattr(ResumableSha256, "update", noted)
    assert pull(serve(ranges(send)).host, tmp_path) == DATA
    assert hashing.total() == len(DATA), "every byte is hashed once"
    assert bool(hashing["fetch"]) is (processors == 1)
