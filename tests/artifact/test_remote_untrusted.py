"""Answers that lie, lead elsewhere or break off: each is one error that says so, and nothing goes where it leads."""

from __future__ import annotations

import json
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import DigestMismatch, ServerError, Unreachable
from artifact.manifest import EMPTY_CONFIG, Index, Manifest
from artifact.remote import RemoteRepository
from artifact.remote.transport import Transport
from artifact.remote.urls import authority, path_and_query, split_url
from artifact.source import bytes_source
from tests.artifact.exchanges import BLOB, DATA, DIGEST, QUIET, RAW, Exchange, Serve, answer_manifest
from tests.artifact.test_remote_upload import Uploads, push_blob

pytestmark = pytest.mark.usefixtures("no_waiting")

ENDLESS = "9" * 5000
INDEX = Index([Descriptor(mediatypes.IMAGE_MANIFEST, DIGEST, len(RAW))]).to_bytes()


# --- where it leads ---


@pytest.mark.parametrize(
    ("stated", "reason"),
    [
        ("http://registry.example.com.evil.example/u", "from https to http"),
        ("http://169.254.169.254/latest/api/token", "from https to http"),
        ("https://169.254.169.254/latest/api/token", "into this network"),
        ("https://127.1/u", "into this network"),
        ("https://2130706433/u", "into this network"),
        ("//10.0.0.1/u", "into this network"),
        ("ftp://elsewhere.example/u", "no URL"),
        ("file:///etc/passwd", "no URL"),
        ("http://[x/", "no URL"),
        ("https://registry.example.com:port/u", "no URL"),
    ],
)
def test_an_upload_leads_no_further_than_a_redirect(stated: str, reason: str) -> None:
    with pytest.raises(ServerError, match=reason):
        Transport("registry.example.com").location(stated)


@pytest.mark.parametrize(
    ("stated", "location"),
    [
        ("/v2/x/blobs/uploads/1?a=b", "/v2/x/blobs/uploads/1?a=b"),
        ("https://registry.example.com/u?a=b#c", "/u?a=b"),
        ("http://registry.example.com/u", "/u"),
        ("https://REGISTRY.example.com:443/u", "/u"),
        ("https://registry.example.com//169.254.169.254/u", "/169.254.169.254/u"),
        ("https://uploads.example/u", "https://uploads.example/u"),
        ("https://registry.example.com:8443/u", "https://registry.example.com:8443/u"),
    ],
)
def test_an_upload_goes_on_where_the_registry_says(stated: str, location: str) -> None:
    assert Transport("registry.example.com").location(stated) == location


@given(st.text(max_size=60))
def test_a_url_is_taken_apart_or_refused(text: str) -> None:
    try:
        parts = split_url(text, "registry.example.com")
    except ServerError:
        return
    assert authority(parts) == authority(parts).lower()
    assert not urlsplit(path_and_query(parts)).netloc


def test_the_next_page_is_never_on_another_host(serve: Serve) -> None:
    elsewhere = serve(lambda exchange: exchange.answer(200, b'{"tags":["stolen"]}'))

    def script(exchange: Exchange) -> None:
        link = f'<http://{exchange.headers["host"]}//{elsewhere.host}/tags?last=a>; rel="next"'
        exchange.answer(200, b'{"tags":["a"]}', **({} if exchange.path.startswith("//") else {"Link": link}))

    with pytest.raises(ServerError):
        RemoteRepository(serve(script).host, "x").tags()
    assert elsewhere.seen == []


def test_the_next_page_may_be_named_as_seen_from_this_one(serve: Serve) -> None:
    def script(exchange: Exchange) -> None:
        assert urlsplit(exchange.path).path == "/v2/x/tags/list"
        if "last" in exchange.path:
            exchange.answer(200, b'{"tags":["b"]}')
        else:
            exchange.answer(200, b'{"tags":["a"]}', Link='<list?last=a>; rel="next"')

    assert RemoteRepository(serve(script).host, "x").tags() == ["a", "b"]


@pytest.mark.parametrize(
    "link",
    [
        '</v2/x/tags/list?last=a,b;c&n=1>; rel="next"',
        '</v2/x/tags/list>; rel="first", </v2/x/tags/list?last=a,b;c&n=1>; title="x"; rel=next',
        '</v2/x/tags/list?last=a,b;c&n=1> ; REL="prev Next", </v2/x/tags/list>;rel="last"',
    ],
)
def test_the_next_page_is_told_from_other_links(serve: Serve, link: str) -> None:
    """RFC 8288, section 3: several links may stand in one header, and commas in a link."""

    def script(exchange: Exchange) -> None:
        more = {} if "last=a,b;c&n=1" in exchange.path else {"Link": link}
        exchange.answer(200, b'{"tags":["a"]}' if more else b'{"tags":["b"]}', **more)

    assert RemoteRepository(serve(script).host, "x").tags() == ["a", "b"]


# --- what it says ---


@pytest.mark.parametrize(
    ("headers", "body", "work"),
    [
        ({"Location": "http://[x/"}, b"", lambda remote: remote.add_blob("w", 3, bytes_source(b"abc"), QUIET)),
        ({"Location": "http://[x/"}, b"", lambda remote: push_blob(remote.host)),
        ({"Link": '<http://[x/>; rel="next"'}, b"{}", lambda remote: remote.tags()),
    ],
)
def test_a_url_that_is_none_is_an_error_of_the_registry(
    serve: Serve, headers: dict[str, str], body: bytes, work: Callable[[RemoteRepository], object]
) -> None:
    statuses = {"HEAD": 404, "POST": 202}
    server = serve(lambda exchange: exchange.answer(statuses.get(exchange.method, 200), body, **headers))
    with pytest.raises(ServerError, match="no URL"):
        work(RemoteRepository(server.host, "x"))


def test_a_redirect_to_what_is_no_url_is_an_error_of_the_registry(serve: Serve) -> None:
    server = serve(lambda exchange: exchange.answer(307, Location="http://[x/"))
    with pytest.raises(ServerError, match="no URL"):
        RemoteRepository(server.host, "x").read_blob(BLOB)


def test_an_error_of_any_depth_is_an_error(serve: Serve) -> None:
    server = serve(lambda exchange: exchange.answer(400, b"[" * 60_000))
    with pytest.raises(ServerError, match="answered 400"):
        RemoteRepository(server.host, "x").manifest("t")


def test_sizes_of_any_length_are_read(serve: Serve) -> None:
    def script(exchange: Exchange) -> None:
        if exchange.method == "GET" and "manifests" in exchange.path:
            answer_manifest(exchange)
        elif exchange.headers.get("range"):
            exchange.answer(206, b"", Content_Length=ENDLESS, Content_Range=f"bytes 1-{ENDLESS}/*")
        else:
            exchange.answer(200, b"", Content_Length=ENDLESS, Docker_Content_Digest=str(DIGEST))

    remote = RemoteRepository(serve(script).host, "x")
    assert remote.resolve("t").size == len(RAW)
    assert remote.blob_size(BLOB.digest) is None
    for offset in (0, 1):
        with pytest.raises(DigestMismatch), remote.open_blob(BLOB, offset):
            pass


def test_an_offset_of_any_length_is_read(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("chunks", "upload"):
        monkeypatch.setattr(f"artifact.remote.{module}.CHUNK", 500_000)
    uploads = Uploads()
    uploads.break_after = [500_000]

    def script(exchange: Exchange) -> None:
        if exchange.method == "GET":
            exchange.answer(204, Location="/v2/x/blobs/uploads/1?_state=a%3Db", Range=f"0-{ENDLESS}")
        elif exchange.method == "PATCH" and exchange.headers["content-range"].startswith("0-") and uploads.received:
            exchange.body()
            exchange.answer(416)
        elif exchange.method == "POST":
            uploads.received = bytearray()
            exchange.answer(202, Location="/v2/x/blobs/uploads/1?_state=a%3Db", OCI_Chunk_Min_Length=ENDLESS)
        else:
            uploads(exchange)

    assert push_blob(serve(script).host)
    assert uploads.blobs == {str(BLOB.digest): DATA}


# --- where it ends ---


class CutOff:
    """Breaks its first `times` answers off in the middle."""

    def __init__(self, times: int, **headers: str) -> None:
        self.times, self.headers = times, headers

    def __call__(self, exchange: Exchange) -> None:
        listing = json.dumps({"tags": ["a", "b"]}).encode()
        body = {"manifests": RAW, "tags": listing, "referrers": INDEX, "blobs": b""}[exchange.path.split("/")[3]]
        kind = {"Content_Type": mediatypes.IMAGE_MANIFEST, "Content_Length": str(len(body)), **self.headers}
        self.times -= 1
        exchange.answer(200, body if self.times < 0 else body[:5], **kind)
        if self.times >= 0:
            exchange.hang_up()


@pytest.mark.parametrize(
    "work",
    [
        lambda remote: remote.manifest("t"),
        lambda remote: remote.manifest(DIGEST),
        lambda remote: remote.tags(),
        lambda remote: remote.referrers(DIGEST),
    ],
    ids=["a manifest by tag", "a manifest by digest", "tags", "referrers"],
)
def test_an_answer_that_breaks_off_is_asked_for_again(serve: Serve, work: Callable[[RemoteRepository], object]) -> None:
    whole, cut = serve(CutOff(0)), serve(CutOff(1))
    assert work(RemoteRepository(cut.host, "x")) == work(RemoteRepository(whole.host, "x"))
    assert len(cut.seen) == 2
    with pytest.raises(Unreachable, match="broke off its answer"):
        work(RemoteRepository(serve(CutOff(100)).host, "x"))


# --- the fallback tag ---


def test_a_fallback_tag_that_is_something_else_is_left_as_it_is(serve: Serve) -> None:
    """Source: distribution-spec, "Pushing Manifests with Subject"."""

    def script(exchange: Exchange) -> None:
        exchange.body()
        answer_manifest(exchange) if exchange.method == "GET" else exchange.answer(201)

    server = serve(script)
    config = Descriptor.of(EMPTY_CONFIG, mediatypes.EMPTY)
    referrer = Manifest(config, (config,), "a/b", Descriptor.of(RAW, mediatypes.IMAGE_MANIFEST)).to_bytes()
    with pytest.raises(ServerError, match=f"the tag sha256-{DIGEST.hex} is no index; remove it"):
        RemoteRepository(server.host, "x").push_manifest(referrer, mediatypes.IMAGE_MANIFEST)
    assert [item.path for item in server.seen if item.method == "PUT"] == [
        f"/v2/x/manifests/{Digest.of(referrer)}",
    ]


def test_an_index_is_listed_as_a_referrer_too(serve: Serve) -> None:
    stored: dict[str, bytes] = {}

    def script(exchange: Exchange) -> None:
        name = exchange.path.rsplit("/", 1)[1]
        if exchange.method == "PUT":
            stored[name] = exchange.body()
            exchange.answer(201)
        elif name in stored:
            exchange.answer(200, stored[name], Content_Type=mediatypes.IMAGE_INDEX)
        else:
            exchange.answer(404)

    remote = RemoteRepository(serve(script).host, "x")
    raw = Index([], "a/b", Descriptor.of(RAW, mediatypes.IMAGE_MANIFEST)).to_bytes()
    pushed = remote.push_manifest(raw, mediatypes.IMAGE_INDEX)
    (listed,) = remote.referrers(DIGEST)
    assert (listed.digest, listed.media_type, listed.artifact_type) == (pushed.digest, mediatypes.IMAGE_INDEX, "a/b")
