"""Distribution-spec, "Error Codes": each code of the table is reachable, with the status the specification ties to it.

UNAUTHORIZED and DENIED need access control, TOOMANYREQUESTS a rate limit: `tests/registry/access` and
`tests/registry/test_operation.py` have them.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.http.errors import error_response
from tests.registry.pushing import begin, error_code, manifest_of, push_blob, put_manifest, sha256

ABSENT = sha256(b"nowhere")
Ask = Callable[[httpx.Client, str], httpx.Response]


def _too_large(client: httpx.Client, repo: str) -> httpx.Response:
    return put_manifest(client, repo, b"x" * (4 * 1024 * 1024 + 1), "v1")


def _out_of_order(client: httpx.Client, repo: str) -> httpx.Response:
    return client.patch(begin(client, repo), content=b"x", headers={"Content-Range": "5-5"})


CODES: dict[str, tuple[int, Ask]] = {
    "BLOB_UNKNOWN": (404, lambda client, repo: client.get(f"/v2/{repo}/blobs/{ABSENT}")),
    "BLOB_UPLOAD_INVALID": (416, _out_of_order),
    "BLOB_UPLOAD_UNKNOWN": (404, lambda client, repo: client.get(f"/v2/{repo}/blobs/uploads/{'0' * 8}")),
    "DIGEST_INVALID": (400, lambda client, repo: client.get(f"/v2/{repo}/blobs/sha256:0")),
    "MANIFEST_BLOB_UNKNOWN": (404, lambda client, repo: put_manifest(client, repo, manifest_of([b"absent"]), "v1")),
    "MANIFEST_INVALID": (400, lambda client, repo: put_manifest(client, repo, b"{}", "v1")),
    "MANIFEST_UNKNOWN": (404, lambda client, repo: client.get(f"/v2/{repo}/manifests/{ABSENT}")),
    "NAME_INVALID": (400, lambda client, repo: client.get("/v2/UPPER/tags/list")),
    "NAME_UNKNOWN": (404, lambda client, repo: client.get(f"/v2/{repo}/tags/list")),
    "SIZE_INVALID": (413, _too_large),
    "UNSUPPORTED": (405, lambda client, repo: client.delete(f"/v2/{repo}/tags/list")),
}


@pytest.mark.parametrize("code", CODES)
def test_code(client: httpx.Client, repo: str, code: str) -> None:
    status, ask = CODES[code]
    answer = ask(client, repo)
    assert (answer.status_code, error_code(answer)) == (status, code)
    assert answer.headers["content-type"] == "application/json"


@given(st.text(st.characters(exclude_categories=())), st.integers(400, 599))
def test_an_error_document_holds_any_text(text: str, status: int) -> None:
    """Half a character, which no encoding of Unicode can write, included."""
    answer = error_response(status, "UNKNOWN", text)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    assert json.loads(answer.body) == {"errors": [{"code": "UNKNOWN", "message": text}]}


def test_warning(client: httpx.Client, repo: str) -> None:
    """ "Warnings": a client that keeps a fallback tag is told that it need not; others are told nothing."""
    push_blob(client, repo, b"{}")
    index = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}'
    kind = "application/vnd.oci.image.index.v1+json"
    told = put_manifest(client, repo, index, f"sha256-{'0' * 64}", kind)
    assert told.status_code == 201
    assert told.headers["warning"].startswith('299 - "')
    for tag, raw, media_type in (("v1", index, kind), (f"sha256-{'0' * 64}.sig", index, kind)):
        assert "warning" not in put_manifest(client, repo, raw, tag, media_type).headers
