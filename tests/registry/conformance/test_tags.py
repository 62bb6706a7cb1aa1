"""Distribution-spec, "Listing Tags" (end-8), and the catalogue that clients of older versions use."""

from __future__ import annotations

import secrets

import httpx
import pytest

from tests.registry.pushing import error_code, manifest_of, push_blob, push_image, put_manifest, sha256

TAGS = ["0", "10", "9", "A", "B-1", "Z", "_", "a", "b", "latest", "v1", "v1.0"]


@pytest.fixture
def tagged(client: httpx.Client, repo: str) -> str:
    push_blob(client, repo, b"{}")
    raw = manifest_of([])
    assert put_manifest(client, repo, raw, sha256(raw), tag=list(reversed(TAGS))).status_code == 201
    return repo


def test_in_order(client: httpx.Client, tagged: str) -> None:
    """end-8a."""
    answer = client.get(f"/v2/{tagged}/tags/list")
    assert answer.json() == {"name": tagged, "tags": TAGS}
    assert "link" not in answer.headers


@pytest.mark.parametrize("count", [1, 5, len(TAGS), 100])
def test_pages(client: httpx.Client, tagged: str, count: int) -> None:
    """end-8b: following Link gives each tag once."""
    path, seen = f"/v2/{tagged}/tags/list?n={count}", []
    while True:
        answer = client.get(path)
        assert len(answer.json()["tags"]) <= count
        seen += answer.json()["tags"]
        if "link" not in answer.headers:
            break
        assert answer.links["next"]["url"]
        path = answer.links["next"]["url"]
    assert seen == TAGS


def test_last(client: httpx.Client, tagged: str) -> None:
    assert client.get(f"/v2/{tagged}/tags/list?last=b").json()["tags"] == ["latest", "v1", "v1.0"]
    assert client.get(f"/v2/{tagged}/tags/list?last=c&n=1").json()["tags"] == ["latest"]


def test_none_asked_for(client: httpx.Client, tagged: str) -> None:
    """end-8b: n=0 gives an empty list and no Link."""
    answer = client.get(f"/v2/{tagged}/tags/list?n=0")
    assert answer.json()["tags"] == []
    assert "link" not in answer.headers


@pytest.mark.parametrize("query", ["n=-1", "n=x", "n=1.5", "n=%D9%A1", "last=a/b", "last=../.."])
def test_bad_queries(client: httpx.Client, tagged: str, query: str) -> None:
    assert client.get(f"/v2/{tagged}/tags/list?{query}").status_code == 400


def test_unknown_repository(client: httpx.Client, repo: str) -> None:
    answer = client.get(f"/v2/{repo}/tags/list")
    assert (answer.status_code, error_code(answer)) == (404, "NAME_UNKNOWN")


def test_repository_without_tags(client: httpx.Client, repo: str) -> None:
    push_image(client, repo, tag=None)
    assert client.get(f"/v2/{repo}/tags/list").json() == {"name": repo, "tags": []}


def test_catalog(client: httpx.Client) -> None:
    """Every repository once, nested ones too, over pages."""
    root = secrets.token_hex(6)
    names = {f"{root}", f"{root}/a", f"{root}/a/b", f"{root}/a-b", f"{root}/a/0", f"{root}/zz"}
    for name in names:
        push_blob(client, name, b"{}")
    for count in (1, 3, 1000):
        path, seen = f"/v2/_catalog?n={count}", []
        while path:
            answer = client.get(path)
            assert answer.status_code == 200
            seen += answer.json()["repositories"]
            path = answer.links["next"]["url"] if "link" in answer.headers else ""
        assert len(seen) == len(set(seen))
        assert {name for name in seen if name.startswith(root)} == names
    assert client.get("/v2/_catalog?n=0").json() == {"repositories": []}
