"""Distribution-spec, "Deleting tags", "Deleting Manifests", "Deleting Blobs" (end-9, end-10)."""

from __future__ import annotations

import httpx

from tests.registry.pushing import push_blob, push_image, put_manifest, sha256


def test_tag(client: httpx.Client, repo: str) -> None:
    """end-9: 202; the manifest stays."""
    raw = push_image(client, repo, "v1")
    assert client.delete(f"/v2/{repo}/manifests/v1").status_code == 202
    assert client.get(f"/v2/{repo}/manifests/v1").status_code == 404
    assert client.get(f"/v2/{repo}/manifests/{sha256(raw)}").status_code == 200
    assert client.get(f"/v2/{repo}/tags/list").json()["tags"] == []
    assert client.delete(f"/v2/{repo}/manifests/v1").status_code == 404


def test_manifest_and_its_tags(client: httpx.Client, repo: str) -> None:
    """end-9: 202; its tags go with it, other tags stay."""
    raw = push_image(client, repo, "v1")
    put_manifest(client, repo, raw, tag=["v2"])
    push_image(client, repo, "other", b"other")
    assert client.delete(f"/v2/{repo}/manifests/{sha256(raw)}").status_code == 202
    for reference in ("v1", "v2", sha256(raw)):
        assert client.get(f"/v2/{repo}/manifests/{reference}").status_code == 404
    assert client.get(f"/v2/{repo}/tags/list").json()["tags"] == ["other"]
    assert put_manifest(client, repo, raw, "v1").status_code == 201


def test_blob(client: httpx.Client, repo: str) -> None:
    """end-10: 202; gone here, kept where another repository has it."""
    data = repo.encode()
    digest = push_blob(client, repo, data)
    push_blob(client, f"{repo}/other", data)
    assert client.delete(f"/v2/{repo}/blobs/{digest}").status_code == 202
    assert client.get(f"/v2/{repo}/blobs/{digest}").status_code == 404
    assert client.delete(f"/v2/{repo}/blobs/{digest}").status_code == 404
    assert client.get(f"/v2/{repo}/other/blobs/{digest}").content == data
    push_blob(client, repo, data)
    assert client.get(f"/v2/{repo}/blobs/{digest}").content == data
