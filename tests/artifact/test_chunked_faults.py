"""Blobs whose tensor index is known, from servers that misbehave, and by transfers that are killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

import artifact.layout.pieces
from artifact.errors import Unreachable
from artifact.layout import LayoutRepository
from artifact.layout.record import Record
from artifact.midstate import ResumableSha256, supported
from artifact.remote import RemoteRepository
from artifact.tensorindex.indexed import IndexedSource
from artifact.transfer import push_blobs
from tests.artifact.chunked import BLOB, DATA, INDEX, LARGE, PIECE, TENSORS, in_file, pull, send
from tests.artifact.exchanges import QUIET, Exchange, Serve, asked, nothing_named

pytestmark = pytest.mark.usefixtures("small_pieces")


@pytest.mark.parametrize("when", [0, 5])
def test_a_registry_that_sends_all_for_a_range(
    serve: Serve, tmp_path: Path, when: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the beginning, or after it had sent ranges: what is here does not help, and the blob still comes."""
    local = in_file(tmp_path / "old", lambda chunk: chunk.offset % 3 != 0)
    server = serve(lambda e: send(e) if len(server.seen) <= when and "range" in e.headers else e.answer(200, DATA))
    pull(server.host, tmp_path / "store", local)
    assert "does not do ranges" in capsys.readouterr().err


def test_a_server_that_breaks_off_everywhere(serve: Serve, tmp_path: Path, no_waiting: None, proving: str) -> None:
    """In the middle of chunks: what had come of them is not asked for again, and still checked."""
    tried: Counter[int] = Counter()

    def script(exchange: Exchange) -> None:
        start, end = asked(exchange)
        tried[end] += 1
        if tried[end] > 2 or end - start < 10:
            return send(exchange)
        exchange.handler.send_response(206)
        exchange.handler.send_header("Content-Length", str(end - start))
        exchange.handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(DATA)}")
        exchange.handler.end_headers()
        exchange.handler.wfile.write(DATA[start : start + (end - start) // 3])
        exchange.handler.wfile.flush()
        exchange.hang_up()

    server = serve(script)
    pull(server.host, tmp_path)
    starts = sorted(asked(item) for item in server.seen)
    assert len(set(starts)) == len(starts), "no range twice"


def test_a_server_that_resets_connections(serve: Serve, tmp_path: Path, no_waiting: None) -> None:
    import socket
    import struct

    tried: Counter[tuple[int, int]] = Counter()

    def script(exchange: Exchange) -> None:
        tried[asked(exchange)] += 1
        if tried[asked(exchange)] < 3:
            connection = exchange.handler.connection
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            exchange.hang_up()
        else:
            send(exchange)

    pull(serve(script).host, tmp_path)


def test_a_redirect_that_expires_between_chunks(serve: Serve, tmp_path: Path) -> None:
    local = in_file(tmp_path / "old", lambda chunk: chunk.offset // LARGE % 3 == 0)
    issued = 0

    def store(exchange: Exchange) -> None:
        if exchange.path.endswith(f"={issued}") and len(storage.seen) % 4:
            send(exchange)
        else:
            exchange.answer(403, b"<Error><Code>AccessDenied</Code></Error>")

    def registry(exchange: Exchange) -> None:
        nonlocal issued
        issued += 1
        exchange.answer(307, Location=f"http://{storage.host}/data?signature={issued}")

    storage = serve(store)
    pull(serve(registry).host, tmp_path / "store", local)
    assert issued > 1


def test_a_server_that_trickles_is_borne_with(serve: Serve, tmp_path: Path, proving: str) -> None:
    """Bytes that come in drops, across the borders of chunks."""

    def script(exchange: Exchange) -> None:
        start, end = asked(exchange)
        exchange.handler.send_response(206)
        exchange.handler.send_header("Content-Length", str(end - start))
        exchange.handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(DATA)}")
        exchange.handler.end_headers()
        for at in range(start, end, 7_777):
            exchange.handler.wfile.write(DATA[at : min(at + 7_777, end)])
            exchange.handler.wfile.flush()

    pull(serve(script).host, tmp_path)


PULLING = """
import pickle, sys
import artifact.layout.pieces
from pathlib import Path
from artifact.layout import LayoutRepository
from artifact.progress import Quiet
from artifact.remote import RemoteRepository
from artifact.tensorindex.indexed import IndexedSource
from artifact.transfer import push_blobs
host, folder, piece = sys.argv[1:]
artifact.layout.pieces.PIECE = int(piece)
blob, index, local = pickle.load(sys.stdin.buffer)
source = IndexedSource(RemoteRepository(host, "x").blob_source(blob), index, local)
push_blobs(LayoutRepository(Path(folder)), {blob: source}, Quiet(), 1)
"""


class Counting(ResumableSha256):
    """Counts what is hashed."""

    total = 0

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        Counting.total += len(data)
        super().update(data)


def test_killed_in_the_middle_of_a_delta_it_goes_on(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not supported():
        pytest.skip("libcrypto does not export SHA256_Init here")
    import pickle

    half = TENSORS[7].offset
    local = in_file(tmp_path / "old", lambda chunk: chunk.offset // LARGE % 2 == 0)
    held = threading.Event()

    def until_half(exchange: Exchange) -> None:
        if asked(exchange)[1] > half:
            held.wait(60)
            exchange.hang_up()
        else:
            send(exchange)

    server = serve(until_half)
    argv = [sys.executable, "-c", PULLING, server.host, str(tmp_path / "store"), str(PIECE)]
    child = subprocess.Popen(argv, stdin=subprocess.PIPE)
    assert child.stdin is not None
    pickle.dump((BLOB, INDEX, local), child.stdin)
    child.stdin.close()
    deadline = time.monotonic() + 120
    while (hashed := recorded(tmp_path / "store").hashed) < half - 2 * PIECE:
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    held.set()
    hashed = recorded(tmp_path / "store").hashed
    assert nothing_named(tmp_path / "store") if (tmp_path / "store" / "blobs").exists() else True
    server.seen.clear()
    server.script = send
    Counting.total = 0
    monkeypatch.setattr(artifact.layout.pieces, "ResumableSha256", Counting)
    pull(server.host, tmp_path / "store", local)
    assert min(asked(item)[0] for item in server.seen) >= hashed, "what was hashed is not fetched again"
    assert Counting.total == len(DATA) - hashed, "nor hashed"


def recorded(folder: Path) -> Record:
    """What the transfer under way in `folder` has written down."""
    for path in (folder / "ingest").glob("*"):
        with path.open("rb") as stream:
            return Record.read(stream.fileno(), len(DATA), PIECE)
    return Record(PIECE, 0, None, frozenset())


def test_a_transfer_begun_without_the_index_goes_on_with_it_and_back(
    serve: Serve, tmp_path: Path, no_waiting: None
) -> None:
    server = serve(lambda e: send(e) if asked(e)[0] < 5 * PIECE else e.hang_up())
    target, plain = LayoutRepository(tmp_path), RemoteRepository(server.host, "x").blob_source(BLOB)
    with pytest.raises(Unreachable):
        push_blobs(target, {BLOB: plain}, QUIET, 1)
    server.seen.clear()
    server.script = lambda e: send(e) if asked(e)[0] < 9 * PIECE else e.hang_up()
    with pytest.raises(Unreachable):
        push_blobs(target, {BLOB: IndexedSource(plain, INDEX, {})}, QUIET, 1)
    assert min(asked(item)[0] for item in server.seen) > 5 * PIECE - LARGE
    server.seen.clear()
    server.script = send
    push_blobs(target, {BLOB: plain}, QUIET, 1)
    assert target.blob_path(BLOB.digest).read_bytes() == DATA
    assert min(asked(item)[0] for item in server.seen) >= 7 * PIECE
