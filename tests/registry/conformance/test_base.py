"""Distribution-spec, "Determining Support" (end-1), and what holds for every endpoint."""

from __future__ import annotations

import httpx
import pytest

from tests.registry.pushing import error_code


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
