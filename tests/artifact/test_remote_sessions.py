"""Uploads that are interrupted: by answers that ask for patience, by sessions that end, and by what is on this side."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from artifact.digest import Digest
from artifact.errors import DigestMismatch, StowageError, Unreachable
from artifact.progress import Quiet
from artifact.remote import RemoteRepository
from artifact.remote.sessions import UploadSession
from artifact.source import Reader, bytes_source
from tests.artifact.conftest import ScriptedServer
from tests.artifact.exchanges import BLOB, DATA, QUIET, Exchange, Serve
from tests.artifact.test_remote_upload import Uploads, push_blob, small_chunks

pytestmark = pytest.mark.usefixtures("no_waiting")

Push = Callable[[str], object]


def add_blob(host: str) -> Digest:
    return RemoteRepository(host, "x").add_blob("weights", len(DATA), bytes_source(DATA), QUIET)


@pytest.fixture(params=[push_blob, add_blob], ids=["named", "unnamed"])
def push(request: pytest.FixtureRequest) -> Push:
    return request.param


class Faulty(Uploads):
    """Answers some requests in another way, once for each `(method, start)` in `faults`."""

    def __init__(self, faults: dict[tuple[str, int], Callable[[Exchange], None]]) -> None:
        super().__init__()
        self.faults = faults

    def __call__(self, exchange: Exchange) -> None:
        fault = self.faults.pop((exchange.method, len(self.received)), None)
        if fault is None:
            super().__call__(exchange)
        else:
            fault(exchange)


def answered(status: int, **headers: str) -> Callable[[Exchange], None]:
    def answer(exchange: Exchange) -> None:
        exchange.body()
        exchange.answer(status, **headers)

    return answer


def sent(server: ScriptedServer, method: str) -> int:
    return [item.method for item in server.seen].count(method)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_an_answer_that_asks_for_patience_costs_one_piece(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, push: Push, status: int
) -> None:
    small_chunks(monkeypatch)
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    uploads = Faulty({("PATCH", 1_500_000): answered(status, Retry_After="7")})
    server = serve(uploads)
    assert push(server.host)
    assert uploads.blobs == {str(BLOB.digest): DATA}
    assert (sent(server, "POST"), sent(server, "PATCH"), sent(server, "PUT")) == (1, 6, 1)
    assert any(6 < seconds <= 7 for seconds in slept), "what the registry asks for is kept"


def test_a_registry_that_stays_busy_is_said_and_the_next_push_goes_on(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_chunks(monkeypatch)
    uploads, busy = Uploads(), True

    def script(exchange: Exchange) -> None:
        if busy and len(uploads.received) == 1_000_000 and exchange.method != "HEAD":
            answered(503)(exchange)
        else:
            uploads(exchange)

    server = serve(script)
    with pytest.raises(Unreachable, match="answered 503"):
        push_blob(server.host)
    busy = False
    before = len(server.seen)
    assert push_blob(server.host)
    assert [item.method for item in server.seen[before:]] == ["HEAD", "GET", *["PATCH"] * 3, "PUT"]


def test_a_registry_that_fails_at_every_second_piece_gets_one_put(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, push: Push
) -> None:
    small_chunks(monkeypatch)
    uploads = Uploads()

    def script(exchange: Exchange) -> None:
        later = exchange.method == "PATCH" and uploads.received
        answered(500)(exchange) if later else uploads(exchange)

    assert push(serve(script).host)
    assert uploads.blobs == {str(BLOB.digest): DATA}


def test_an_upload_that_expired_is_begun_again(serve: Serve, monkeypatch: pytest.MonkeyPatch, push: Push) -> None:
    small_chunks(monkeypatch)
    uploads = Faulty({("PATCH", 1_500_000): answered(404), ("GET", 1_500_000): answered(404)})
    server = serve(uploads)
    assert push(server.host)
    assert uploads.blobs == {str(BLOB.digest): DATA}
    assert (sent(server, "POST"), sent(server, "PATCH")) == (2, 3 + 1 + 5)


def test_a_registry_that_forgets_every_upload_is_said(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, push: Push
) -> None:
    small_chunks(monkeypatch)

    def script(exchange: Exchange) -> None:
        if exchange.method == "POST":
            exchange.answer(202, Location="/v2/x/blobs/uploads/1")
        else:
            answered(404)(exchange)

    server = serve(script)
    with pytest.raises(StowageError, match="no longer knows the upload"):
        push(server.host)
    assert len(server.seen) < 60


def hung_up(exchange: Exchange) -> None:
    exchange.body()
    exchange.hang_up()


def test_the_last_request_is_sent_again(serve: Serve, monkeypatch: pytest.MonkeyPatch, push: Push) -> None:
    small_chunks(monkeypatch)
    uploads = Faulty({("PUT", len(DATA)): hung_up})
    server = serve(uploads)
    assert push(server.host)
    assert uploads.blobs == {str(BLOB.digest): DATA}
    assert (sent(server, "PATCH"), sent(server, "PUT")) == (5, 2)


@pytest.mark.parametrize("pieces", [True, False])
def test_a_blob_whose_last_answer_was_lost_is_there(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, push: Push, pieces: bool
) -> None:
    if pieces:
        small_chunks(monkeypatch)
    uploads = Uploads()

    def script(exchange: Exchange) -> None:
        if exchange.method == "PUT":
            uploads.blobs[str(BLOB.digest)] = bytes(uploads.received) + exchange.body()
            exchange.hang_up()
        else:
            uploads(exchange)

    server = serve(script)
    assert push(server.host)
    assert uploads.blobs == {str(BLOB.digest): DATA}
    assert sent(server, "PUT") == 1


def test_bytes_that_were_damaged_are_not_gone_on_with(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    small_chunks(monkeypatch)
    uploads = Uploads()
    server = serve(uploads)
    with pytest.raises(DigestMismatch):
        RemoteRepository(server.host, "x").push_blob(BLOB, bytes_source(b"!" + DATA[1:]), QUIET)
    assert push_blob(server.host)
    assert uploads.blobs == {str(BLOB.digest): DATA}


def test_a_folder_that_cannot_be_written_stops_no_push(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And what was begun is gone on with all the same, as long as the process lasts."""
    small_chunks(monkeypatch)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    uploads = Uploads()
    uploads.break_after = [500_000, 1_500_000]
    assert push_blob(serve(uploads).host)
    assert uploads.blobs == {str(BLOB.digest): DATA} and uploads.patches == 7


def test_a_user_without_a_home_can_push(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    small_chunks(monkeypatch)
    monkeypatch.setattr("pathlib.Path.home", homeless)
    uploads = Uploads()
    assert push_blob(serve(uploads).host)


def test_what_is_remembered_is_private_and_goes_when_the_upload_ends(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small_chunks(monkeypatch)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    folder = tmp_path / "stowage" / "uploads"
    uploads = Uploads()
    uploads.break_after = [1_000_000] * 20
    server = serve(uploads)
    with pytest.raises(Unreachable):
        push_blob(server.host)
    (kept,) = folder.iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600 and folder.stat().st_mode & 0o777 == 0o700
    assert json.loads(kept.read_text()) == {"location": "/v2/x/blobs/uploads/1?_state=a%3Db"}
    uploads.break_after = []
    assert push_blob(server.host)
    assert list(folder.iterdir()) == []


def test_an_upload_is_gone_on_with_by_one_at_a_time(tmp_path: Path) -> None:
    """Also after whoever had it died; another one begins its own."""

    def claimed() -> UploadSession:
        session = UploadSession("https://h/x", BLOB.digest, tmp_path / "uploads")
        session.claim()
        return session

    def die() -> None:
        claimed().put("/of-the-dead")

    process = multiprocessing.get_context("fork").Process(target=die)
    process.start()
    process.join()
    first, second = claimed(), claimed()
    assert (first.location, second.location) == ("/of-the-dead", None)
    second.put("/of-the-second")
    second.close()
    first.close()
    third = claimed()
    assert third.location == "/of-the-dead", "what the second remembered was its own"
    third.forget()
    third.close()
    assert claimed().location is None


def test_a_disk_that_fails_here_is_not_the_registry(serve: Serve) -> None:
    class Failing:
        def readinto(self, buffer: memoryview, /) -> int:
            raise OSError(5, "Input/output error")

    @contextmanager
    def source(offset: int) -> Iterator[Reader]:
        yield Failing()

    server = serve(Uploads())
    with pytest.raises(StowageError, match="cannot be read to be sent: Input/output error") as raised:
        RemoteRepository(server.host, "x").push_blob(BLOB, source, QUIET)
    assert not isinstance(raised.value, Unreachable) and sent(server, "POST") == 1


def test_progress_adds_up_over_interruptions(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting(Quiet):
        begun = moved = 0

        def begin(self, name: str, total: int) -> None:
            self.begun += total

        def advance(self, name: str, count: int) -> None:
            self.moved += count

    small_chunks(monkeypatch)
    uploads = Faulty({("PATCH", 500_000): answered(503), ("PATCH", 1_000_000): answered(404)})
    uploads.break_after = [1_500_000]
    progress = Counting()
    assert RemoteRepository(serve(uploads).host, "x").push_blob(BLOB, bytes_source(DATA), progress)
    assert progress.begun == progress.moved == len(DATA)
