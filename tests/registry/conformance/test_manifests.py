"""Distribution-spec, "Pulling manifests", "Pushing Manifests" (end-3, end-7)."""

from __future__ import annotations

import json

import httpx
import pytest

from tests.registry.pushing import (
    EMPTY,
    INDEX,
    MANIFEST,
    descriptor,
    error_code,
    manifest_of,
    push_blob,
    push_image,
    put_manifest,
    sha256,
    sha512,
)  # fmt: skip

DOCKER = "application/vnd.docker.distribution.manifest.v2+json"


def test_push_and_pull(client: httpx.Client, repo: str) -> None:
    """end-7a: 201 with Location; end-3: the exact bytes by tag and by digest, whatever the Accept."""
    push_blob(client, repo, b"{}")
    raw = manifest_of([]).replace(b", ", b" ,\n ")
    pushed = put_manifest(client, repo, raw, "v1")
    assert pushed.status_code == 201
    assert pushed.headers["docker-content-digest"] == sha256(raw)
    assert client.get(pushed.headers["location"]).content == raw
    for reference in ("v1", sha256(raw)):
        for method in ("GET", "HEAD"):
            answer = client.request(method, f"/v2/{repo}/manifests/{reference}", headers={"Accept": "text/plain"})
            assert answer.status_code == 200
            assert answer.content == (raw if method == "GET" else b"")
            assert answer.headers["content-type"] == MANIFEST
            assert answer.headers["content-length"] == str(len(raw))
            assert answer.headers["docker-content-digest"] == sha256(raw)


def test_sha512(client: httpx.Client, repo: str) -> None:
    push_blob(client, repo, b"{}")
    raw = manifest_of([])
    pushed = put_manifest(client, repo, raw, sha512(raw), tag="v5")
    assert pushed.status_code == 201
    assert pushed.headers["docker-content-digest"] == sha512(raw)
    for reference in ("v5", sha512(raw)):
        answer = client.get(f"/v2/{repo}/manifests/{reference}")
        assert answer.headers["docker-content-digest"] == sha512(raw)
    assert client.get(f"/v2/{repo}/manifests/{sha256(raw)}").status_code == 404


def test_what_the_client_has_already_is_not_sent_again(client: httpx.Client, repo: str) -> None:
    """RFC 9110, section 13.1.2: 304 to If-None-Match, until the tag moves."""
    raw = push_image(client, repo, "v1", b"one")
    path = f"/v2/{repo}/manifests/v1"
    etag = client.get(path).headers["etag"]
    for value in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        for method in ("GET", "HEAD"):
            answer = client.request(method, path, headers={"If-None-Match": value})
            assert (answer.status_code, answer.content) == (304, b"")
            assert answer.headers["etag"] == etag
            assert answer.headers["docker-content-digest"] == sha256(raw)
    assert client.get(path, headers={"If-None-Match": '"other"'}).content == raw
    second = push_image(client, repo, "v1", b"two")
    assert client.get(path, headers={"If-None-Match": etag}).content == second


def test_tag_moves(client: httpx.Client, repo: str) -> None:
    push_image(client, repo, "v1", b"one")
    second = push_image(client, repo, "v1", b"two")
    assert client.get(f"/v2/{repo}/manifests/v1").content == second


def test_tags_beside_a_digest(client: httpx.Client, repo: str) -> None:
    """end-7b: OCI-Tag names each tag that was set."""
    push_blob(client, repo, b"{}")
    raw = manifest_of([])
    tags = [f"t{i}" for i in range(10)]
    answer = put_manifest(client, repo, raw, tag=tags)
    assert answer.status_code == 201
    assert answer.headers["oci-tag"].split(", ") == tags
    for tag in tags:
        assert client.get(f"/v2/{repo}/manifests/{tag}").content == raw
    assert put_manifest(client, repo, raw, tag=[f"t{i}" for i in range(101)]).status_code == 414
    assert put_manifest(client, repo, raw, tag=["good", "b/ad"]).status_code == 400
    assert client.get(f"/v2/{repo}/manifests/good").status_code == 404


def test_digest_of_other_bytes(client: httpx.Client, repo: str) -> None:
    push_blob(client, repo, b"{}")
    answer = put_manifest(client, repo, manifest_of([]), sha256(b"other"))
    assert answer.status_code == 400
    assert error_code(answer) == "DIGEST_INVALID"


@pytest.mark.parametrize("reference", [".bad", "sha256-x:y", "-x", "x" * 129])
def test_bad_reference(client: httpx.Client, repo: str, reference: str) -> None:
    push_blob(client, repo, b"{}")
    assert put_manifest(client, repo, manifest_of([]), reference).status_code == 400
    assert client.get(f"/v2/{repo}/manifests/{reference}").status_code in (400, 404)


@pytest.mark.parametrize("reference", ["v1", "sha256:" + "1" * 64])
@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
def test_absent(client: httpx.Client, repo: str, method: str, reference: str) -> None:
    answer = client.request(method, f"/v2/{repo}/manifests/{reference}")
    assert answer.status_code == 404
    if method != "HEAD":
        assert error_code(answer) == "MANIFEST_UNKNOWN"


def test_blobs_must_be_there(client: httpx.Client, repo: str) -> None:
    """Error code MANIFEST_BLOB_UNKNOWN."""
    answer = put_manifest(client, repo, manifest_of([b"never pushed"]), "v1")
    assert answer.status_code == 404
    assert error_code(answer) == "MANIFEST_BLOB_UNKNOWN"
    push_blob(client, f"{repo}/other", b"elsewhere")
    push_blob(client, repo, b"{}")
    assert put_manifest(client, repo, manifest_of([b"elsewhere"]), "v1").status_code == 404
    assert client.get(f"/v2/{repo}/manifests/v1").status_code == 404


def test_sizes_must_be_right(client: httpx.Client, repo: str) -> None:
    push_blob(client, repo, b"{}")
    push_blob(client, repo, b"layer")
    raw = json.dumps({**json.loads(manifest_of([])), "layers": [{**descriptor(b"layer"), "size": 6}]}).encode()
    answer = put_manifest(client, repo, raw, "v1")
    assert (answer.status_code, error_code(answer)) == (400, "MANIFEST_INVALID")


def test_index(client: httpx.Client, repo: str) -> None:
    raw = push_image(client, repo)
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor(raw, MANIFEST)]}
    assert put_manifest(client, repo, json.dumps(index).encode(), "all", INDEX).status_code == 201
    assert client.get(f"/v2/{repo}/manifests/all").headers["content-type"] == INDEX
    index["manifests"].append(descriptor(b"absent", MANIFEST))
    answer = put_manifest(client, repo, json.dumps(index).encode(), "all2", INDEX)
    assert (answer.status_code, error_code(answer)) == (404, "MANIFEST_BLOB_UNKNOWN")


def test_docker_manifest(client: httpx.Client, repo: str) -> None:
    push_blob(client, repo, b"{}")
    raw = manifest_of([], mediaType=DOCKER)
    assert put_manifest(client, repo, raw, "v1", DOCKER).status_code == 201
    assert client.get(f"/v2/{repo}/manifests/v1").headers["content-type"] == DOCKER


def test_content_type_with_a_parameter(client: httpx.Client, repo: str) -> None:
    push_blob(client, repo, b"{}")
    assert put_manifest(client, repo, manifest_of([]), "v1", f"{MANIFEST}; charset=utf-8").status_code == 201
    assert client.get(f"/v2/{repo}/manifests/v1").headers["content-type"] == MANIFEST


@pytest.mark.parametrize(
    ("raw", "media_type"),
    [
        (b"not json", MANIFEST),
        (b"[]", MANIFEST),
        (b"{}", MANIFEST),
        (manifest_of([]), "application/json"),
        (manifest_of([]), ""),
        (manifest_of([], schemaVersion=1), MANIFEST),
        (manifest_of([], layers=None), MANIFEST),
        (manifest_of([], config={"mediaType": EMPTY}), MANIFEST),
        (manifest_of([], subject={"digest": "x"}), MANIFEST),
        (b'{"schemaVersion":2,"schemaVersion":2,' + manifest_of([])[1:], MANIFEST),
        (b"[" * 100_000, MANIFEST),
        (manifest_of([]).replace(b"sha256:", b"sha256:../"), MANIFEST),
    ],
)
def test_what_is_no_manifest(client: httpx.Client, repo: str, raw: bytes, media_type: str) -> None:
    push_blob(client, repo, b"{}")
    answer = put_manifest(client, repo, raw, "v1", media_type)
    assert (answer.status_code, error_code(answer)) == (400, "MANIFEST_INVALID")
    assert client.get(f"/v2/{repo}/manifests/v1").status_code == 404


def test_size_limit(client: httpx.Client, repo: str) -> None:
    """413 over 4 MiB, and not below."""
    push_blob(client, repo, b"{}")
    room = 4 * 1024 * 1024 - len(manifest_of([], annotations={"a": ""}))
    fits = manifest_of([], annotations={"a": "x" * room})
    assert put_manifest(client, repo, fits, "v1").status_code == 201
    assert client.get(f"/v2/{repo}/manifests/v1").content == fits
    answer = put_manifest(client, repo, manifest_of([], annotations={"a": "x" * (room + 1)}), "v2")
    assert answer.status_code == 413
