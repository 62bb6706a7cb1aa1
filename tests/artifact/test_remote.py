"""The registry client against servers that break the rules, and against the rules themselves."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import (
    DigestMismatch,
    InvalidInput,
    Malformed,
    NotFound,
    ServerError,
    Unreachable,
)
from artifact.layout import LayoutRepository
from artifact.manifest import Index
from artifact.remote import RemoteRepository
from artifact.remote.credentials import Credentials
from artifact.version import USER_AGENT
from tests.artifact.exchanges import BLOB, DATA, DIGEST, QUIET, RAW, Exchange, Serve, answer_manifest

pytestmark = pytest.mark.usefixtures("no_waiting")


# --- manifests ---


def test_a_manifest_is_checked_against_the_digest_asked_for(serve: Serve) -> None:
    server = serve(lambda exchange: answer_manifest(exchange, RAW + b" "))
    with pytest.raises(DigestMismatch):
        RemoteRepository(server.host, "x").manifest(DIGEST)
    assert all(item.headers["user-agent"] == USER_AGENT for item in server.seen)
    assert mediatypes.IMAGE_MANIFEST in server.seen[0].headers["accept"]


def test_a_manifest_by_tag_is_checked_against_the_digest_the_registry_names(serve: Serve) -> None:
    server = serve(lambda exchange: answer_manifest(exchange, RAW + b" ", Docker_Content_Digest=str(DIGEST)))
    with pytest.raises(DigestMismatch):
        RemoteRepository(server.host, "x").manifest("t")


def test_head_without_digest_falls_back_to_get(serve: Serve) -> None:
    server = serve(answer_manifest)
    assert RemoteRepository(server.host, "x").resolve("t").digest == DIGEST
    assert [item.method for item in server.seen] == ["HEAD", "GET"]


def test_a_digest_header_that_is_no_digest_is_refused(serve: Serve) -> None:
    server = serve(lambda exchange: answer_manifest(exchange, Docker_Content_Digest="sha256:../../etc"))
    with pytest.raises(ServerError, match="no digest"):
        RemoteRepository(server.host, "x").resolve("t")


def test_a_huge_manifest_is_refused(serve: Serve) -> None:
    server = serve(lambda exchange: answer_manifest(exchange, b" " * (4 * 1024 * 1024 + 1)))
    with pytest.raises(Malformed, match="larger"):
        RemoteRepository(server.host, "x").manifest("t")


def test_errors_say_what_is_missing_and_what_the_server_said(serve: Serve) -> None:
    body = json.dumps({"errors": [{"code": "NAME_INVALID", "message": "no such thing"}]}).encode()
    server = serve(lambda exchange: exchange.answer(400, body))
    with pytest.raises(ServerError, match="400 to GET of manifest t in x: NAME_INVALID no such thing"):
        RemoteRepository(server.host, "x").manifest("t")
    missing = serve(lambda exchange: exchange.answer(404))
    with pytest.raises(NotFound, match="manifest t in x"):
        RemoteRepository(missing.host, "x").manifest("t")


def test_a_dead_server_is_named() -> None:
    with pytest.raises(Unreachable, match=r"cannot reach 127\.0\.0\.1:1: .*[Rr]efused"):
        RemoteRepository("127.0.0.1:1", "x").resolve("t")


@pytest.mark.parametrize("name", ["../x", "UP", "x?y", "x/../y", ""])
def test_a_name_is_checked_before_it_becomes_a_url(name: str) -> None:
    with pytest.raises(InvalidInput):
        RemoteRepository("localhost:1", name)


def test_a_tag_is_checked_before_it_becomes_a_url() -> None:
    with pytest.raises(InvalidInput):
        RemoteRepository("localhost:1", "x").resolve("../../blobs/x")


def test_passing_trouble_is_tried_again(serve: Serve) -> None:
    answers = iter([503, 429, 200])

    def script(exchange: Exchange) -> None:
        status = next(answers)
        answer_manifest(exchange) if status == 200 else exchange.answer(status, Retry_After="1")

    server = serve(script)
    assert RemoteRepository(server.host, "x").manifest("t")[1] == RAW
    assert len(server.seen) == 3


# --- listings ---


def test_tags_follow_links_but_never_to_another_host(serve: Serve) -> None:
    elsewhere = serve(lambda exchange: exchange.answer(200, b'{"tags":["stolen"]}'))

    def script(exchange: Exchange) -> None:
        query = parse_qs(urlsplit(exchange.path).query)
        if "last" in query:
            exchange.answer(200, b'{"tags":["b","not a tag",7]}')
        else:
            link = f'<http://{elsewhere.host}/v2/x/tags/list?last=a>; rel="next"'
            exchange.answer(200, b'{"tags":["a"]}', Link=link)

    assert RemoteRepository(serve(script).host, "x").tags() == ["a", "b"]
    assert elsewhere.seen == []


def test_an_endless_listing_ends(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("artifact.remote.repository._MAX_PAGES", 5)
    server = serve(
        lambda exchange: exchange.answer(200, b'{"tags":["a"]}', Link='</v2/x/tags/list?last=a>; rel="next"')
    )
    with pytest.raises(ServerError, match="pages"):
        RemoteRepository(server.host, "x").tags()


def test_referrers_fall_back_to_the_tag_scheme(serve: Serve) -> None:
    index = Index([Descriptor(mediatypes.IMAGE_MANIFEST, DIGEST, len(RAW), artifact_type="a/b")]).to_bytes()

    def script(exchange: Exchange) -> None:
        if exchange.path == f"/v2/x/manifests/sha256-{BLOB.digest.hex}":
            exchange.answer(200, index, Content_Type=mediatypes.IMAGE_INDEX)
        else:
            exchange.answer(404)

    repository = RemoteRepository(serve(script).host, "x")
    assert [item.digest for item in repository.referrers(BLOB.digest)] == [DIGEST]
    assert repository.referrers(BLOB.digest, "c/d") == []
    assert repository.referrers(DIGEST) == []


def test_too_many_referrers_are_refused(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("artifact.remote.repository._MAX_REFERRERS", 3)
    entries = [Descriptor("a/b", Digest.of(bytes([number])), 1) for number in range(5)]
    server = serve(lambda exchange: exchange.answer(200, Index(entries).to_bytes()))
    with pytest.raises(ServerError, match="more than 3 referrers"):
        RemoteRepository(server.host, "x").referrers(DIGEST)


# --- pulling blobs ---


def pull(host: str, root: Path) -> bytes:
    layout, remote = LayoutRepository(root), RemoteRepository(host, "x")
    layout.push_blob(BLOB, lambda offset: remote.open_blob(BLOB, offset), QUIET)
    return layout.blob_path(BLOB.digest).read_bytes()


def test_the_size_of_a_blob(serve: Serve) -> None:
    """By HEAD; unknown where the registry has no such blob, or does not say."""

    def script(exchange: Exchange) -> None:
        assert exchange.method == "HEAD"
        if not exchange.path.endswith(str(BLOB.digest)):
            exchange.answer(404)
        elif silent:
            exchange.answer(200, Content_Length="")
        else:
            exchange.answer(200, Content_Length=str(BLOB.size))

    silent = False
    remote = RemoteRepository(serve(script).host, "x")
    assert remote.blob_size(BLOB.digest) == BLOB.size
    assert remote.blob_size(Digest.of(b"another")) is None
    silent = True
    assert remote.blob_size(BLOB.digest) is None and remote.has_blob(BLOB.digest)


def ranged(exchange: Exchange) -> int:
    return int(exchange.headers.get("range", "bytes=0-").removeprefix("bytes=").split("-")[0])


def serve_range(exchange: Exchange, start: int, data: bytes = DATA) -> None:
    if not start:
        exchange.answer(200, data)
    else:
        exchange.answer(206, data[start:], Content_Range=f"bytes {start}-{len(data) - 1}/{len(data)}")


def test_a_broken_download_goes_on_by_range(serve: Serve, tmp_path: Path) -> None:
    def script(exchange: Exchange) -> None:
        start = ranged(exchange)
        if start < 2_000_000:
            end = start + 1_000_000
            exchange.answer(206 if start else 200, DATA[start:end], Content_Length=str(len(DATA) - start),
                            Content_Range=f"bytes {start}-{len(DATA) - 1}/{len(DATA)}")  # fmt: skip
            exchange.hang_up()
        else:
            serve_range(exchange, start)

    server = serve(script)
    assert pull(server.host, tmp_path) == DATA
    assert [ranged(item) for item in server.seen] == [0, 1_000_000, 2_000_000]
    assert all(item.headers["accept-encoding"] == "identity" for item in server.seen)


def test_a_registry_without_ranges_still_works(serve: Serve, tmp_path: Path) -> None:
    broken = iter([True])

    def script(exchange: Exchange) -> None:
        if next(broken, False):
            exchange.answer(200, DATA[:1_000_000], Content_Length=str(len(DATA)))
            exchange.hang_up()
        else:
            exchange.answer(200, DATA)

    assert pull(serve(script).host, tmp_path) == DATA


def test_a_registry_that_sends_another_range_still_works(serve: Serve, tmp_path: Path) -> None:
    broken = iter([True])

    def script(exchange: Exchange) -> None:
        if ranged(exchange):
            exchange.answer(206, DATA, Content_Range=f"bytes 0-{len(DATA) - 1}/{len(DATA)}")
        elif next(broken, False):
            exchange.answer(200, DATA[:1_000_000], Content_Length=str(len(DATA)))
            exchange.hang_up()
        else:
            exchange.answer(200, DATA)

    server = serve(script)
    assert pull(server.host, tmp_path) == DATA
    assert [ranged(item) for item in server.seen] == [0, 1_000_000, 0]


@pytest.mark.parametrize("served", [DATA[:-1], DATA + b"x", b"", DATA[:-1] + bytes([DATA[-1] ^ 1])])
def test_other_bytes_are_refused_and_not_kept(serve: Serve, tmp_path: Path, served: bytes) -> None:
    server = serve(lambda exchange: serve_range(exchange, 0, served))
    with pytest.raises(DigestMismatch):
        pull(server.host, tmp_path)
    assert not LayoutRepository(tmp_path).has_blob(BLOB.digest)


def test_redirects_are_followed_without_the_login(serve: Serve, tmp_path: Path) -> None:
    storage = serve(lambda exchange: serve_range(exchange, ranged(exchange)))

    def script(exchange: Exchange) -> None:
        if "authorization" not in exchange.headers:
            exchange.answer(401, WWW_Authenticate='Basic realm="r"')
        else:
            exchange.answer(307, Location=f"http://{storage.host}/data?signature=1")

    server = serve(script)
    Credentials.load().store(server.host, "user", "secret")
    assert pull(server.host, tmp_path) == DATA
    assert "authorization" in server.seen[-1].headers
    assert "authorization" not in storage.seen[0].headers


@pytest.mark.parametrize("location", ["ftp://h/x", "file:///etc/passwd", "data:,x"])
def test_a_redirect_to_something_else_is_refused(serve: Serve, tmp_path: Path, location: str) -> None:
    server = serve(lambda exchange: exchange.answer(307, Location=location))
    with pytest.raises(ServerError, match="no URL"):
        pull(server.host, tmp_path)


def test_a_redirect_loop_ends(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda exchange: exchange.answer(307, Location=exchange.path))
    with pytest.raises(ServerError, match="redirects more than"):
        pull(server.host, tmp_path)
    assert len(server.seen) < 10
