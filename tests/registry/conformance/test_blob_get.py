"""Distribution-spec, "Pulling blobs", "Checking if content exists" (end-2), and RFC 9110 section 14 for ranges."""

from __future__ import annotations

import os

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.registry.pushing import error_code, push_blob, sha256, sha512

SMALL = bytes(range(256)) * 4
ABSENT = "sha256:" + "0" * 64


def test_blob_comes_back_as_it_went(client: httpx.Client, repo: str) -> None:
    """end-2: 200, with Docker-Content-Digest and Content-Length."""
    digest = push_blob(client, repo, SMALL)
    answer = client.get(f"/v2/{repo}/blobs/{digest}")
    assert answer.status_code == 200
    assert answer.content == SMALL
    assert answer.headers["docker-content-digest"] == digest
    assert answer.headers["content-length"] == str(len(SMALL))


def test_head_says_size_and_digest(client: httpx.Client, repo: str) -> None:
    digest = push_blob(client, repo, SMALL)
    answer = client.head(f"/v2/{repo}/blobs/{digest}")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(len(SMALL))
    assert answer.headers["docker-content-digest"] == digest


def test_empty_blob(client: httpx.Client, repo: str) -> None:
    digest = push_blob(client, repo, b"")
    assert client.get(f"/v2/{repo}/blobs/{digest}").content == b""
    assert client.head(f"/v2/{repo}/blobs/{digest}").headers["content-length"] == "0"
    assert client.get(f"/v2/{repo}/blobs/{digest}", headers={"Range": "bytes=0-0"}).status_code == 416


def test_sha512_blob(client: httpx.Client, repo: str) -> None:
    digest = push_blob(client, repo, SMALL, sha512(SMALL))
    answer = client.get(f"/v2/{repo}/blobs/{digest}")
    assert answer.content == SMALL
    assert answer.headers["docker-content-digest"] == digest


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
def test_absent_blob(client: httpx.Client, repo: str, method: str) -> None:
    answer = client.request(method, f"/v2/{repo}/blobs/{ABSENT}")
    assert answer.status_code == 404
    if method != "HEAD":
        assert error_code(answer) == "BLOB_UNKNOWN"


@pytest.mark.parametrize("digest", ["sha256:abc", "md5:" + "0" * 32, "sha256:" + "A" * 64, "sha256..", "x"])
def test_bad_digest(client: httpx.Client, repo: str, digest: str) -> None:
    answer = client.get(f"/v2/{repo}/blobs/{digest}")
    assert answer.status_code == 400
    assert error_code(answer) == "DIGEST_INVALID"


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [
        ("bytes=0-9", 0, 10),
        ("bytes=1000-", 1000, 1024),
        ("bytes=-24", 1000, 1024),
        ("bytes=-99999", 0, 1024),
        ("bytes=1020-99999", 1020, 1024),
        ("bytes=5-5", 5, 6),
    ],
)
def test_range(client: httpx.Client, repo: str, header: str, start: int, end: int) -> None:
    digest = push_blob(client, repo, SMALL)
    answer = client.get(f"/v2/{repo}/blobs/{digest}", headers={"Range": header})
    assert (answer.status_code, answer.content) == (206, SMALL[start:end])
    assert answer.headers["content-length"] == str(end - start)
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{len(SMALL)}"


def test_conditions(client: httpx.Client, repo: str) -> None:
    """RFC 9110, sections 13.1.2 and 13.1.5: 304 to If-None-Match; a part only of the version that If-Range names."""
    path = f"/v2/{repo}/blobs/{push_blob(client, repo, SMALL)}"
    etag = client.head(path).headers["etag"]
    for method in ("GET", "HEAD"):
        answer = client.request(method, path, headers={"If-None-Match": etag})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
    assert client.get(path, headers={"If-None-Match": '"x"'}).content == SMALL
    for condition, status, content in ((etag, 206, SMALL[:10]), ('"x"', 200, SMALL)):
        answer = client.get(path, headers={"Range": "bytes=0-9", "If-Range": condition})
        assert (answer.status_code, answer.content) == (status, content)


@pytest.mark.parametrize("header", ["bytes=500-0", "bytes=1024-", "bytes=2000-3000", "bytes=-0"])
def test_range_outside(client: httpx.Client, repo: str, header: str) -> None:
    digest = push_blob(client, repo, SMALL)
    answer = client.get(f"/v2/{repo}/blobs/{digest}", headers={"Range": header})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{len(SMALL)}"


@pytest.mark.parametrize("header", ["lines=1-2", "bytes=a-b", "bytes=-", "bytes=0-1,5-6", "bytes"])
def test_range_not_understood_is_ignored(client: httpx.Client, repo: str, header: str) -> None:
    digest = push_blob(client, repo, SMALL)
    answer = client.get(f"/v2/{repo}/blobs/{digest}", headers={"Range": header})
    assert (answer.status_code, answer.content) == (200, SMALL)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, 1100), end=st.one_of(st.none(), st.integers(0, 1100)))
def test_any_range(client: httpx.Client, start: int, end: int | None) -> None:
    """Whatever the range, the answer is that part of the content or 416."""
    path = f"/v2/test/ranges/blobs/{sha256(SMALL)}"
    if client.head(path).status_code == 404:
        push_blob(client, "test/ranges", SMALL)
    answer = client.get(path, headers={"Range": f"bytes={start}-{'' if end is None else end}"})
    expected = SMALL[start:] if end is None else SMALL[start : end + 1]
    assert answer.status_code == (206 if expected else 416)
    if expected:
        assert answer.content == expected
        assert answer.headers["content-range"] == f"bytes {start}-{start + len(expected) - 1}/{len(SMALL)}"


def test_large_blob_by_the_way_of_its_driver(client: httpx.Client, repo: str, driver: str) -> None:
    """A GET of a large blob is redirected to S3 and streamed from a folder; HEAD is never redirected."""
    data = os.urandom(17 * 1024 * 1024 + 17)
    path = f"/v2/{repo}/blobs/{push_blob(client, repo, data)}"
    answer = client.get(path)
    assert answer.status_code == (307 if driver == "s3" else 200)
    assert client.get(path, follow_redirects=True).content == data
    part = client.get(path, headers={"Range": "bytes=1048575-2097153"}, follow_redirects=True)
    assert (part.status_code, part.content) == (206, data[1048575:2097154])
    assert client.head(path).status_code == 200


def test_no_redirect_below_three_chunks(client: httpx.Client, repo: str) -> None:
    """A blob of three chunks of the least size that is asked for (end-4) comes from the registry itself, with the
    header that the store's own answer would lack."""
    data = os.urandom(3 * 5 * 1024 * 1024)
    digest = push_blob(client, repo, data)
    answer = client.get(f"/v2/{repo}/blobs/{digest}")
    assert (answer.status_code, answer.headers["docker-content-digest"]) == (200, digest)
    assert answer.content == data
