"""Distribution-spec, "Pushing blobs", "Cancel a blob upload" (end-4, end-5, end-6, end-13, end-14)."""

from __future__ import annotations

import os
from collections.abc import Callable

import httpx
import pytest

from tests.registry.pushing import begin, error_code, push_blob, sha256, sha512

DATA = os.urandom(300_001)


def test_post_then_put(client: httpx.Client, repo: str) -> None:
    """end-4a, end-6: 202 with Location, 201 with a pullable Location."""
    location = begin(client, repo)
    answer = client.put(location, params={"digest": sha256(DATA)}, content=DATA)
    assert answer.status_code == 201
    assert answer.headers["docker-content-digest"] == sha256(DATA)
    assert client.get(answer.headers["location"]).content == DATA
    assert client.get(location).status_code == 404


def test_post_without_the_slash(client: httpx.Client, repo: str) -> None:
    assert client.post(f"/v2/{repo}/blobs/uploads").status_code == 202


@pytest.mark.parametrize("digest", [sha256(DATA), sha512(DATA)])
def test_single_post(client: httpx.Client, repo: str, digest: str) -> None:
    """end-4b: 201."""
    answer = client.post(f"/v2/{repo}/blobs/uploads/", params={"digest": digest}, content=DATA)
    assert answer.status_code == 201
    assert client.get(answer.headers["location"]).content == DATA


def test_single_post_of_other_bytes(client: httpx.Client, repo: str) -> None:
    answer = client.post(f"/v2/{repo}/blobs/uploads/", params={"digest": sha256(b"else")}, content=DATA)
    assert answer.status_code == 400
    assert error_code(answer) == "DIGEST_INVALID"
    assert client.head(f"/v2/{repo}/blobs/{sha256(b'else')}").status_code == 404


def test_chunks(client: httpx.Client, repo: str) -> None:
    """end-5: each PATCH 202 with Range; end-13: GET 204 with Range; the last chunk in the PUT."""
    location = begin(client, repo)
    for start, end in ((0, 99_999), (100_000, 199_999)):
        answer = client.patch(location, content=DATA[start : end + 1], headers={"Content-Range": f"{start}-{end}"})
        assert answer.status_code == 202
        assert answer.headers["range"] == f"0-{end}"
        location = answer.headers["location"]
        status = client.get(location)
        assert (status.status_code, status.headers["range"]) == (204, f"0-{end}")
    answer = client.put(
        location,
        params={"digest": sha256(DATA)},
        content=DATA[200_000:],
        headers={"Content-Range": f"200000-{len(DATA) - 1}"},
    )
    assert answer.status_code == 201
    assert client.get(answer.headers["location"]).content == DATA


@pytest.mark.parametrize("digest", [sha256(DATA), sha512(DATA)])
def test_streamed_patches_without_a_range(client: httpx.Client, repo: str, digest: str) -> None:
    """As Docker pushes: PATCH with chunked transfer coding, then an empty PUT; sha512 is told only at the end."""
    location = begin(client, repo)
    for piece in (DATA[:77], DATA[77:]):
        answer = client.patch(location, content=iter([piece[:10], piece[10:]]))
        assert answer.status_code == 202
        location = answer.headers["location"]
    assert client.put(location, params={"digest": digest}).status_code == 201
    assert client.get(f"/v2/{repo}/blobs/{digest}").content == DATA


def test_algorithm_announced(client: httpx.Client, repo: str) -> None:
    """end-4c: digest-algorithm."""
    location = begin(client, repo, **{"digest-algorithm": "sha512"})
    assert client.put(location, params={"digest": sha512(DATA)}, content=DATA).status_code == 201
    assert client.post(f"/v2/{repo}/blobs/uploads/?digest-algorithm=md5").status_code == 400


@pytest.mark.parametrize("header", ["10-19", "1-9", "9-0", "x", "bytes"])
def test_chunk_out_of_order(client: httpx.Client, repo: str, header: str) -> None:
    """end-5: 416, and the upload stands where it stood."""
    location = begin(client, repo)
    answer = client.patch(location, content=b"0123456789", headers={"Content-Range": header})
    assert answer.status_code == 416
    assert error_code(answer) == "BLOB_UPLOAD_INVALID"
    answer = client.patch(location, content=b"0123456789", headers={"Content-Range": "0-9"})
    assert answer.status_code == 202
    repeated = client.patch(location, content=b"0123456789", headers={"Content-Range": "0-9"})
    assert (repeated.status_code, repeated.headers["range"]) == (416, "0-9")


def test_final_chunk_out_of_order(client: httpx.Client, repo: str) -> None:
    """end-6: 416, and the upload can still be closed rightly."""
    location = begin(client, repo)
    client.patch(location, content=b"0123456789", headers={"Content-Range": "0-9"})
    digest = sha256(b"0123456789abc")
    wrong = client.put(location, params={"digest": digest}, content=b"abc", headers={"Content-Range": "11-13"})
    assert wrong.status_code == 416
    right = client.put(location, params={"digest": digest}, content=b"abc", headers={"Content-Range": "10-12"})
    assert right.status_code == 201


def test_recovery_from_a_chunk_out_of_order(client: httpx.Client, repo: str) -> None:
    """end-13: after each 416 the upload's GET says 204, where to send what, and a Range that can be read, before the
    first byte too; end-5 and end-6 go on from there."""
    location, size = begin(client, repo), 100
    digest = sha256(DATA[: 3 * size])
    for start in (0, size, 2 * size):
        wrong = start + size if start < 2 * size else 0
        headers = {"Content-Range": f"{wrong}-{wrong + size - 1}"}
        piece = DATA[wrong : wrong + size]
        if wrong == 2 * size:
            answer = client.put(location, params={"digest": digest}, content=piece, headers=headers)
        else:
            answer = client.patch(location, content=piece, headers=headers)
        assert (answer.status_code, error_code(answer)) == (416, "BLOB_UPLOAD_INVALID")
        status = client.get(location)
        assert (status.status_code, status.headers["range"]) == (204, f"0-{max(start - 1, 0)}")
        location = status.headers["location"]
        headers = {"Content-Range": f"{start}-{start + size - 1}"}
        assert client.patch(location, content=DATA[start : start + size], headers=headers).status_code == 202
    assert client.put(location, params={"digest": digest}).status_code == 201
    assert client.get(f"/v2/{repo}/blobs/{digest}").content == DATA[: 3 * size]


def test_chunk_of_another_size_than_it_says(client: httpx.Client, repo: str) -> None:
    location = begin(client, repo)
    answer = client.patch(location, content=b"0123456789", headers={"Content-Range": "0-8"})
    assert answer.status_code == 400
    assert error_code(answer) == "SIZE_INVALID"
    answer = client.patch(location, content=iter([b"0123456789"]), headers={"Content-Range": "0-8"})
    assert answer.status_code == 400
    answer = client.patch(location, content=b"0123456789", headers={"Content-Range": "0-9"})
    assert answer.status_code == 202


@pytest.mark.parametrize("query", ["", "?digest=", "?digest=sha256:1", "?digest=md5:00"])
def test_close_without_a_digest(client: httpx.Client, repo: str, query: str) -> None:
    answer = client.put(begin(client, repo) + query, content=DATA)
    assert answer.status_code == 400
    assert error_code(answer) == "DIGEST_INVALID"


Push = Callable[[httpx.Client, str, str, bytes], httpx.Response]


def _single_post(client: httpx.Client, repo: str, digest: str, data: bytes) -> httpx.Response:
    return client.post(f"/v2/{repo}/blobs/uploads/", params={"digest": digest}, content=data)


def _post_and_put(client: httpx.Client, repo: str, digest: str, data: bytes) -> httpx.Response:
    return client.put(begin(client, repo), params={"digest": digest}, content=data)


def _streamed(client: httpx.Client, repo: str, digest: str, data: bytes) -> httpx.Response:
    answer = client.patch(begin(client, repo), content=iter([data]))
    assert answer.status_code == 202
    return client.put(answer.headers["location"], params={"digest": digest})


def _chunked(client: httpx.Client, repo: str, digest: str, data: bytes) -> httpx.Response:
    headers = {"Content-Range": f"0-{len(data) - 1}"} if data else {}  # no range says "nothing"
    answer = client.patch(begin(client, repo), content=data, headers=headers)
    assert answer.status_code == 202
    return client.put(answer.headers["location"], params={"digest": digest})


def _last_chunk_in_the_put(client: httpx.Client, repo: str, digest: str, data: bytes) -> httpx.Response:
    half = len(data) // 2
    location = begin(client, repo)
    if half:
        client.patch(location, content=data[:half], headers={"Content-Range": f"0-{half - 1}"})
    last = {"Content-Range": f"{half}-{len(data) - 1}"} if data else {}
    return client.put(location, params={"digest": digest}, content=data[half:], headers=last)


@pytest.mark.parametrize("digest_of", [sha256, sha512])
@pytest.mark.parametrize("push", [_single_post, _post_and_put, _streamed, _chunked, _last_chunk_in_the_put])
def test_every_way_to_push(client: httpx.Client, repo: str, push: Push, digest_of: Callable[[bytes], str]) -> None:
    """end-4b, end-5, end-6: 201, Docker-Content-Digest and a Location to pull from, for the empty blob too; 400 where
    the bytes are not what the digest names, and nothing of them is kept."""
    for data in (DATA[:2000], b"{}", b""):
        answer = push(client, repo, digest_of(data), data)
        assert (answer.status_code, answer.headers["docker-content-digest"]) == (201, digest_of(data))
        assert client.get(answer.headers["location"]).content == data
    named = digest_of(DATA[:2001])
    answer = push(client, repo, named, DATA[:2001] + b"oh no")
    assert (answer.status_code, error_code(answer)) == (400, "DIGEST_INVALID")
    for digest in (named, digest_of(DATA[:2001] + b"oh no")):
        assert client.head(f"/v2/{repo}/blobs/{digest}").status_code == 404


@pytest.mark.parametrize("wrong", [sha256(b"other"), sha512(b"other")])
def test_close_with_a_wrong_digest_removes_the_upload(client: httpx.Client, repo: str, wrong: str) -> None:
    location = begin(client, repo)
    client.patch(location, content=DATA)
    answer = client.put(location, params={"digest": wrong})
    assert answer.status_code == 400
    assert error_code(answer) == "DIGEST_INVALID"
    assert client.head(f"/v2/{repo}/blobs/{wrong}").status_code == 404
    assert client.get(location).status_code == 404


def test_cancel(client: httpx.Client, repo: str) -> None:
    """end-14: 204, and the upload is gone."""
    location = begin(client, repo)
    client.patch(location, content=DATA)
    assert client.delete(location).status_code == 204
    for method in ("GET", "PATCH", "DELETE"):
        answer = client.request(method, location)
        assert answer.status_code == 404
        assert error_code(answer) == "BLOB_UPLOAD_UNKNOWN"


@pytest.mark.parametrize("id_", ["00000000-0000-0000-0000-000000000000", "x", "..", "%2e%2e", "session"])
def test_unknown_upload(client: httpx.Client, repo: str, id_: str) -> None:
    answer = client.patch(f"/v2/{repo}/blobs/uploads/{id_}", content=b"x")
    assert answer.status_code in (400, 404)


def test_pushing_what_is_there_already(client: httpx.Client, repo: str) -> None:
    assert push_blob(client, repo, DATA) == push_blob(client, repo, DATA)
    assert client.get(f"/v2/{repo}/blobs/{sha256(DATA)}").content == DATA


def test_parts(client: httpx.Client, repo: str) -> None:
    """A blob of several store parts, in chunks that are no multiple of anything."""
    data = os.urandom(1024 * 1024) * 37 + b"end"
    location, step = begin(client, repo), 10_000_019
    for start in range(0, len(data), step):
        part = data[start : start + step]
        answer = client.patch(location, content=part, headers={"Content-Range": f"{start}-{start + len(part) - 1}"})
        assert answer.status_code == 202
    assert client.put(location, params={"digest": sha256(data)}).status_code == 201
    assert client.get(f"/v2/{repo}/blobs/{sha256(data)}", follow_redirects=True).content == data


def test_no_chunk_is_too_small(client: httpx.Client, repo: str, driver: str) -> None:
    """end-4: OCI-Chunk-Min-Length says what S3 takes as a part, and nothing for a folder; it asks clients to send no
    less ("SHOULD"), so chunks of one byte are taken all the same."""
    answer = client.post(f"/v2/{repo}/blobs/uploads/")
    assert answer.headers.get("oci-chunk-min-length") == {"filesystem": None, "s3": str(5 * 1024 * 1024)}[driver]
    for offset, byte in enumerate(b"abc"):
        headers = {"Content-Range": f"{offset}-{offset}"}
        assert client.patch(answer.headers["location"], content=bytes([byte]), headers=headers).status_code == 202
    assert client.put(answer.headers["location"], params={"digest": sha512(b"abc")}).status_code == 201


def test_sha512_in_chunks_with_the_last_in_the_put(client: httpx.Client, repo: str) -> None:
    """Announced or not, an upload in chunks may be closed with either algorithm."""
    for query in ({}, {"digest-algorithm": "sha512"}, {"digest-algorithm": "sha256"}):
        for digest_of in (sha256, sha512):
            location = begin(client, repo, **query)
            client.patch(location, content=b"first ", headers={"Content-Range": "0-5"})
            digest, last = digest_of(b"first last"), {"Content-Range": "6-9"}
            answer = client.put(location, params={"digest": digest}, content=b"last", headers=last)
            assert answer.status_code == 201
            assert answer.headers["docker-content-digest"] == digest
            assert client.get(answer.headers["location"]).content == b"first last"
