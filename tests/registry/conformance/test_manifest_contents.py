"""Distribution-spec, "Pushing Manifests" (end-7): what a manifest may hold. It is stored byte for byte, also what this
registry does not know, and nothing is asked for that image-spec says is never pushed."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

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

LAYER = "application/vnd.oci.image.layer.v1.tar"


def index_of(*manifests: dict[str, Any], **more: Any) -> bytes:
    value = {"schemaVersion": 2, "mediaType": INDEX, "manifests": list(manifests), **more}
    return json.dumps(value).encode()


def accepted(client: httpx.Client, repo: str, raw: bytes, media_type: str = MANIFEST) -> None:
    """The manifest can be pushed by digest and by tag, and comes back as it went."""
    for reference in (sha256(raw), "tag"):
        answer = put_manifest(client, repo, raw, reference, media_type)
        assert answer.status_code == 201, answer.text
        assert answer.headers["docker-content-digest"] == sha256(raw)
        got = client.get(f"/v2/{repo}/manifests/{reference}")
        assert (got.content, got.headers["content-type"]) == (raw, media_type)


def test_no_layers(client: httpx.Client, repo: str) -> None:
    push_blob(client, repo, b"{}")
    accepted(client, repo, manifest_of([]))


@pytest.mark.parametrize("suffix", ["", "+gzip", "+zstd"])
def test_layers_of_every_compression(client: httpx.Client, repo: str, suffix: str) -> None:
    push_blob(client, repo, b"{}")
    push_blob(client, repo, b"layer")
    accepted(client, repo, manifest_of([], layers=[descriptor(b"layer", LAYER + suffix)]))


def test_artifact_with_the_empty_descriptor(client: httpx.Client, repo: str) -> None:
    """image-spec, "Guidelines for Artifact Usage": config and layer are the empty JSON document."""
    push_blob(client, repo, b"{}")
    accepted(client, repo, manifest_of([], artifactType="application/x.y", layers=[descriptor(b"{}", EMPTY)]))


def test_data_in_descriptors(client: httpx.Client, repo: str) -> None:
    """image-spec, "Embedded Content"."""
    push_blob(client, repo, b"{}")
    push_blob(client, repo, b"layer")
    config = {**descriptor(b"{}", EMPTY), "data": base64.b64encode(b"{}").decode()}
    layer = {**descriptor(b"layer", LAYER), "data": base64.b64encode(b"layer").decode()}
    accepted(client, repo, manifest_of([], config=config, layers=[layer]))


def test_fields_nobody_knows(client: httpx.Client, repo: str) -> None:
    push_blob(client, repo, b"{}")
    push_blob(client, repo, b"layer")
    layer = descriptor(b"layer", LAYER, **{"x-field": {"deep": [1, None]}})
    accepted(client, repo, manifest_of([], layers=[layer], **{"org.example.custom": {"a": 1.5}}))
    image = push_image(client, repo)
    accepted(client, repo, index_of(descriptor(image, MANIFEST, **{"x-field": True}), custom=[{}]), INDEX)


@pytest.mark.parametrize("suffix", ["", "+gzip", "+zstd"])
def test_layers_that_are_never_pushed(client: httpx.Client, repo: str, suffix: str) -> None:
    """image-spec, "Non-Distributable Layers"."""
    push_blob(client, repo, b"{}")
    kind = f"application/vnd.oci.image.layer.nondistributable.v1.tar{suffix}"
    layer = descriptor(b"kept elsewhere", kind, urls=["https://store.example.com/layer"])
    accepted(client, repo, manifest_of([], layers=[layer]))


def test_empty_index(client: httpx.Client, repo: str) -> None:
    accepted(client, repo, index_of(), INDEX)


def test_index_of_indexes(client: httpx.Client, repo: str) -> None:
    """Each index and manifest before what refers to it; platforms are optional."""
    inner = []
    for number in range(2):
        platform = {"os": "linux", "architecture": ("amd64", "arm64")[number]}
        raw = push_image(client, repo, None, b"layer %d" % number)
        inner.append(index_of(descriptor(raw, MANIFEST, platform=platform)))
    outer = index_of(*(descriptor(raw, INDEX) for raw in inner))
    answer = put_manifest(client, repo, outer, "tag", INDEX)
    assert (answer.status_code, error_code(answer)) == (404, "MANIFEST_BLOB_UNKNOWN")
    for raw in inner:
        accepted(client, repo, raw, INDEX)
    accepted(client, repo, outer, INDEX)


def test_index_with_type_and_subject(client: httpx.Client, repo: str) -> None:
    """Its subject need not be there; it is listed with its own artifactType, not with those of its manifests."""
    image = push_image(client, repo, None, artifactType="application/x.part")
    subject = descriptor(b"never pushed", MANIFEST)
    raw = index_of(descriptor(image, MANIFEST), artifactType="application/x.whole", subject=subject)
    answer = put_manifest(client, repo, raw, None, INDEX)
    assert (answer.status_code, answer.headers["oci-subject"]) == (201, subject["digest"])
    listed = client.get(f"/v2/{repo}/referrers/{subject['digest']}").json()["manifests"]
    assert listed == [descriptor(raw, INDEX, artifactType="application/x.whole")]


def test_everything_by_sha512(client: httpx.Client, repo: str) -> None:
    """A whole image whose every digest is a sha512, and an index over it."""

    def by_sha512(data: bytes, kind: str) -> dict[str, Any]:
        return {"mediaType": kind, "digest": sha512(data), "size": len(data)}

    for data in (b"{}", b"layer"):
        push_blob(client, repo, data, sha512(data))
    raw = manifest_of([], config=by_sha512(b"{}", EMPTY), layers=[by_sha512(b"layer", LAYER)])
    assert put_manifest(client, repo, raw, sha512(raw)).status_code == 201
    index = index_of(by_sha512(raw, MANIFEST))
    answer = put_manifest(client, repo, index, sha512(index), INDEX, tag=["a", "b"])
    assert (answer.status_code, answer.headers["oci-tag"]) == (201, "a, b")
    for reference in (sha512(index), "a", "b"):
        head = client.head(f"/v2/{repo}/manifests/{reference}")
        assert head.headers["docker-content-digest"] == sha512(index)
        assert head.headers["content-length"] == str(len(index))


@pytest.mark.parametrize("digest", ["sha256:baddigeststring", "sha512:" + hashlib.sha256(b"").hexdigest(), "md5:00"])
def test_a_digest_that_is_none(client: httpx.Client, repo: str, digest: str) -> None:
    push_blob(client, repo, b"{}")
    answer = put_manifest(client, repo, manifest_of([]), digest)
    assert (answer.status_code, error_code(answer)) == (400, "DIGEST_INVALID")
    assert client.get(f"/v2/{repo}/manifests/{digest}").status_code == 400
