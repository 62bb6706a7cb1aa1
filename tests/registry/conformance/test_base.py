"""Distribution-spec, "Determining Support" (end-1), and what holds for every endpoint."""

from __future__ import annotations

import httpx
import pytest

from tests.registry.pushing import begin, error_code, push_image, sha256


@pytest.mark.parametrize("path", ["/v2/", "/v2"])
def test_support_is_told(client: httpx.Client, path: str) -> None:
    """end-1: 200."""
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.headers["docker-distribution-api-version"] == "registry/2.0"


def test_health_and_readiness(client: httpx.Client) -> None:
    assert client.get("/healthz").status_code == 200
    assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize("path", ["/v2/nothing", "/v2/a/b/c", "/v2//blobs/x", "/other"])
def test_unknown_paths_are_not_found(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 404


@pytest.mark.parametrize("name", ["Upper", "a//b", "-a", "a/", "a..b", "a b", "_x", "a/_tags", "x" * 256])
def test_bad_names_are_refused(client: httpx.Client, name: str) -> None:
    """ "Pulling manifests": the grammar of names; error code NAME_INVALID."""
    answer = client.get(f"/v2/{name}/tags/list")
    assert answer.status_code == 400
    assert error_code(answer) == "NAME_INVALID"


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "tags/list"), ("POST", "manifests/v1"), ("PUT", "blobs/uploads/"), ("DELETE", "referrers/sha256:0")],
)
def test_wrong_methods_say_which_are_right(client: httpx.Client, repo: str, method: str, path: str) -> None:
    answer = client.request(method, f"/v2/{repo}/{path}")
    assert answer.status_code == 405
    assert error_code(answer) == "UNSUPPORTED"
    assert answer.headers["allow"]


def test_head_says_what_get_says(client: httpx.Client, repo: str) -> None:
    """ "API": where the specification says nothing, HTTP does (RFC 9110, section 9.1): HEAD wherever there is GET, with
    the same status and headers and no body."""
    raw = push_image(client, repo)
    upload = begin(client, repo)
    for path in (
        "/v2/",
        "/v2/_catalog?n=1",
        f"/v2/{repo}/tags/list",
        f"/v2/{repo}/tags/list?n=x",
        f"/v2/{repo}/referrers/{sha256(raw)}?artifactType=a/b",
        f"/v2/{repo}/manifests/v1",
        f"/v2/{repo}/blobs/{sha256(b'layer')}",
        f"/v2/{repo}/blobs/{sha256(b'absent')}",
        upload,
    ):
        got, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (got.status_code, b"")
        for answer in (got, head):
            for name in ("date", "x-request-id"):
                answer.headers.pop(name, None)
        assert head.headers == got.headers
