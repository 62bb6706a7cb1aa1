"""Distribution-spec, "Mounting a blob from another repository" (end-11)."""

from __future__ import annotations

import httpx
import pytest

from tests.registry.pushing import push_blob, sha256, sha512


@pytest.mark.parametrize("stated", [True, False])
def test_mount(client: httpx.Client, repo: str, stated: bool) -> None:
    """201 with Location; ``from`` may be left out."""
    data = repo.encode()
    digest = push_blob(client, f"{repo}/origin", data)
    query = {"mount": digest, "from": f"{repo}/origin"} if stated else {"mount": digest}
    answer = client.post(f"/v2/{repo}/blobs/uploads/", params=query)
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/v2/{repo}/blobs/{digest}"
    assert client.get(answer.headers["location"]).content == data


@pytest.mark.parametrize("origin", ["nowhere/at-all", "Bad//name", "../x"])
def test_mount_that_cannot_be_begins_an_upload(client: httpx.Client, repo: str, origin: str) -> None:
    data = repo.encode()
    digest = push_blob(client, f"{repo}/origin", data)
    answer = client.post(f"/v2/{repo}/blobs/uploads/", params={"mount": digest, "from": origin})
    assert answer.status_code == 202
    assert client.head(f"/v2/{repo}/blobs/{digest}").status_code == 404
    assert client.put(answer.headers["location"], params={"digest": digest}, content=data).status_code == 201


def test_mount_of_a_bad_or_absent_digest(client: httpx.Client, repo: str) -> None:
    assert client.post(f"/v2/{repo}/blobs/uploads/", params={"mount": "sha256:1"}).status_code == 400
    assert client.post(f"/v2/{repo}/blobs/uploads/", params={"mount": sha256(repo.encode())}).status_code == 202


def test_sha512(client: httpx.Client, repo: str) -> None:
    data = repo.encode()
    digest = push_blob(client, f"{repo}/origin", data, sha512(data))
    answer = client.post(f"/v2/{repo}/blobs/uploads/", params={"mount": digest, "from": f"{repo}/origin"})
    assert answer.status_code == 201
    assert client.get(answer.headers["location"]).content == data
    assert client.head(f"/v2/{repo}/blobs/{sha256(data)}").status_code == 404
