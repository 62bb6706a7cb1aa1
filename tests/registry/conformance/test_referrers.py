"""Distribution-spec, "Listing Referrers", "Pushing Manifests with Subject" (end-12)."""

from __future__ import annotations

import json

import httpx
import pytest

from tests.registry.pushing import (
    EMPTY,
    INDEX,
    MANIFEST,
    descriptor,
    manifest_of,
    push_blob,
    put_manifest,
    sha256,
    sha512,
)

SUBJECT = descriptor(b"a manifest that is pushed later, or never", MANIFEST)


def referrers(client: httpx.Client, repo: str, digest: str = SUBJECT["digest"], **query: str) -> httpx.Response:
    answer = client.get(f"/v2/{repo}/referrers/{digest}", params=query)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == INDEX
    assert answer.json()["schemaVersion"] == 2
    assert answer.json()["mediaType"] == INDEX
    return answer


def test_nobody_refers(client: httpx.Client, repo: str) -> None:
    """200 and an empty index, in an unknown repository too."""
    assert referrers(client, repo).json()["manifests"] == []


@pytest.mark.parametrize("digest", ["sha256:1", "latest", "md5:00"])
def test_bad_digest(client: httpx.Client, repo: str, digest: str) -> None:
    assert client.get(f"/v2/{repo}/referrers/{digest}").status_code == 400


def test_listed_with_type_and_annotations(client: httpx.Client, repo: str) -> None:
    """The subject need not exist; artifactType falls back to the config's media type."""
    push_blob(client, repo, b"{}")
    typed = manifest_of([], subject=SUBJECT, artifactType="application/x.sbom", annotations={"k": "v"})
    plain = manifest_of([], subject=SUBJECT)
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [], "subject": SUBJECT}
    for raw, kind in ((typed, MANIFEST), (plain, MANIFEST), (json.dumps(index).encode(), INDEX)):
        answer = put_manifest(client, repo, raw, media_type=kind)
        assert answer.status_code == 201
        assert answer.headers["oci-subject"] == SUBJECT["digest"]
    listed = {item["digest"]: item for item in referrers(client, repo).json()["manifests"]}
    assert listed == {
        sha256(typed): descriptor(typed, MANIFEST, artifactType="application/x.sbom", annotations={"k": "v"}),
        sha256(plain): descriptor(plain, MANIFEST, artifactType=EMPTY),
        sha256(json.dumps(index).encode()): descriptor(json.dumps(index).encode(), INDEX),
    }


def test_filter(client: httpx.Client, repo: str) -> None:
    """end-12b: OCI-Filters-Applied."""
    push_blob(client, repo, b"{}")
    for kind in ("application/x.one", "application/x.two+json"):
        put_manifest(client, repo, manifest_of([], subject=SUBJECT, artifactType=kind))
    answer = referrers(client, repo, artifactType="application/x.two+json")
    assert [item["artifactType"] for item in answer.json()["manifests"]] == ["application/x.two+json"]
    assert answer.headers["oci-filters-applied"] == "artifactType"
    none = referrers(client, repo, artifactType="application/x.three")
    assert (none.json()["manifests"], none.headers["oci-filters-applied"]) == ([], "artifactType")
    assert "oci-filters-applied" not in referrers(client, repo).headers


def test_repositories_apart(client: httpx.Client, repo: str) -> None:
    push_blob(client, repo, b"{}")
    put_manifest(client, repo, manifest_of([], subject=SUBJECT))
    assert referrers(client, f"{repo}/nested").json()["manifests"] == []


def test_deleted_referrers_disappear(client: httpx.Client, repo: str) -> None:
    push_blob(client, repo, b"{}")
    raw = manifest_of([], subject=SUBJECT)
    put_manifest(client, repo, raw, "sig")
    assert client.delete(f"/v2/{repo}/manifests/{sha256(raw)}").status_code == 202
    assert referrers(client, repo).json()["manifests"] == []


def test_fallback_tag_is_merged(client: httpx.Client, repo: str) -> None:
    """ "Enabling the Referrers API": what is listed under the fallback tag, exists and has the subject, is included."""
    push_blob(client, repo, b"{}")
    listed = manifest_of([], subject=SUBJECT, artifactType="application/x.old")
    stranger = manifest_of([], artifactType="application/x.no-subject")
    for raw in (listed, stranger):
        put_manifest(client, repo, raw)
    index = {
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [descriptor(raw, MANIFEST) for raw in (listed, stranger)],
    }
    tag = SUBJECT["digest"].replace(":", "-")
    assert put_manifest(client, repo, json.dumps(index).encode(), tag, INDEX).status_code == 201
    assert [item["digest"] for item in referrers(client, repo).json()["manifests"]] == [sha256(listed)]


def test_a_referrer_that_a_fallback_tag_lists_over_and_over_is_read_once(client: httpx.Client, repo: str) -> None:
    """Each of the 15 000 readings would take tens of milliseconds."""
    push_blob(client, repo, b"{}")
    large = manifest_of([], subject=SUBJECT, annotations={f"a{number}": "" for number in range(50_000)})
    assert put_manifest(client, repo, large).status_code == 201
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor(large, MANIFEST)] * 15_000}
    tag = SUBJECT["digest"].replace(":", "-")
    assert put_manifest(client, repo, json.dumps(index).encode(), tag, INDEX).status_code == 201
    assert [item["digest"] for item in referrers(client, repo).json()["manifests"]] == [sha256(large)]


def test_sha512_subject_and_referrer(client: httpx.Client, repo: str) -> None:
    """Each in either algorithm; deleting one takes it off the list."""
    push_blob(client, repo, b"{}")
    subject = {**SUBJECT, "digest": sha512(b"subject")}
    raw = manifest_of([], subject=subject)
    for digest in (sha256(raw), sha512(raw)):
        answer = put_manifest(client, repo, raw, digest)
        assert (answer.status_code, answer.headers["oci-subject"]) == (201, subject["digest"])
    listed = referrers(client, repo, subject["digest"]).json()["manifests"]
    assert {item["digest"] for item in listed} == {sha256(raw), sha512(raw)}
    assert client.delete(f"/v2/{repo}/manifests/{sha512(raw)}").status_code == 202
    assert [item["digest"] for item in referrers(client, repo, subject["digest"]).json()["manifests"]] == [sha256(raw)]


@pytest.mark.parametrize("query", [{}, {"artifactType": "application/x.large"}])
def test_more_than_one_index_holds(client: httpx.Client, repo: str, query: dict[str, str]) -> None:
    """Link where the descriptors do not fit into one manifest of 4 MiB; following it gives each once, those of the
    fallback tag too, and the filter stays."""
    push_blob(client, repo, b"{}")
    pushed = []
    for number in range(5):
        annotations = {"number": str(number), "large": "x" * 1_500_000}
        raw = manifest_of([], subject=SUBJECT, artifactType="application/x.large", annotations=annotations)
        assert put_manifest(client, repo, raw).status_code == 201
        pushed.append(raw)
    fallback = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor(raw, MANIFEST) for raw in pushed[:2]]}
    put_manifest(client, repo, json.dumps(fallback).encode(), SUBJECT["digest"].replace(":", "-"), INDEX)
    put_manifest(client, repo, manifest_of([], subject=SUBJECT, artifactType="application/x.small"))
    answer, pages = referrers(client, repo, **query), []
    while True:
        assert len(answer.content) <= 4 * 1024 * 1024
        assert answer.headers.get("oci-filters-applied") == ("artifactType" if query else None)
        pages.append([item["digest"] for item in answer.json()["manifests"]])
        if "link" not in answer.headers:
            break
        answer = client.get(answer.links["next"]["url"])
    assert len(pages) == 3
    found = [digest for page in pages for digest in page]
    assert len(found) == len(set(found)) == (5 if query else 6)
    assert set(found) >= {sha256(raw) for raw in pushed}


@pytest.mark.parametrize("last", ["x", "sha256:1", ""])
def test_bad_last(client: httpx.Client, repo: str, last: str) -> None:
    assert client.get(f"/v2/{repo}/referrers/{SUBJECT['digest']}", params={"last": last}).status_code == 400


def test_fallback_tag_of_a_sha512_subject(client: httpx.Client, repo: str) -> None:
    """ "Referrers Tag Schema": the hexadecimal part is cut to 64 characters."""
    push_blob(client, repo, b"{}")
    subject = {**SUBJECT, "digest": sha512(b"subject")}
    raw = manifest_of([], subject=subject)
    put_manifest(client, repo, raw)
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor(raw, MANIFEST)]}
    tag = subject["digest"].replace(":", "-")[: len("sha512-") + 64]
    put_manifest(client, repo, json.dumps(index).encode(), tag, INDEX)
    assert client.delete(f"/v2/{repo}/manifests/{sha256(raw)}").status_code == 202
    assert referrers(client, repo, subject["digest"]).json()["manifests"] == []
    put_manifest(client, repo, raw, sha512(raw))
    index["manifests"] = [{**descriptor(raw, MANIFEST), "digest": sha512(raw)}]
    put_manifest(client, repo, json.dumps(index).encode(), tag, INDEX)
    assert [item["digest"] for item in referrers(client, repo, subject["digest"]).json()["manifests"]] == [sha512(raw)]
