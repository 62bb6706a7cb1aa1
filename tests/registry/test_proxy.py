"""The pull-through cache in front of a registry of ours, with logins."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from registry.cli import app
from tests.registry.proxying import eventually, is_stored, proxied
from tests.registry.pushing import (
    INDEX,
    MANIFEST,
    error_code,
    manifest_of,
    push_image,
    put_manifest,
    sha256,
)
from tests.registry.secured import AUTH, PASSWORDS, RULES, TOKEN, configure
from tests.registry.servers import RunningRegistry, StartRegistry

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def upstream(session_registries: StartRegistry, tmp_path_factory: pytest.TempPathFactory) -> RunningRegistry:
    """The original, with logins and tokens; not to be killed."""
    folder = tmp_path_factory.mktemp("proxy-upstream")
    return session_registries(folder / "storage", "--config", str(configure(folder, AUTH + TOKEN + RULES)))


@pytest.fixture(scope="module")
def cache(
    upstream: RunningRegistry, session_registries: StartRegistry, tmp_path_factory: pytest.TempPathFactory
) -> RunningRegistry:
    """The cache in front of it, which asks for a tag each time."""
    folder = tmp_path_factory.mktemp("proxy-cache")
    return session_registries(folder / "storage", "--config", str(proxied(folder, upstream)))


@pytest.fixture
def at(upstream: RunningRegistry) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=upstream.url, auth=("alice", PASSWORDS["alice"]), timeout=60) as client:
        yield client


@pytest.fixture
def through(cache: RunningRegistry) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=cache.url, timeout=60) as client:
        yield client


def test_a_model_comes_through(at: httpx.Client, through: httpx.Client, cache: RunningRegistry, repo: str) -> None:
    layer = secrets.token_bytes(3 * MIB + 17)
    raw = push_image(at, repo, "v1", layer)
    head = through.head(f"/v2/up/{repo}/manifests/v1")
    assert head.headers["docker-content-digest"] == sha256(raw)
    answer = through.get(f"/v2/up/{repo}/manifests/v1")
    assert (answer.content, answer.headers["content-type"]) == (raw, MANIFEST)
    assert through.get(f"/v2/up/{repo}/manifests/{sha256(raw)}").content == raw
    head = through.head(f"/v2/up/{repo}/blobs/{sha256(layer)}")
    assert (head.status_code, int(head.headers["content-length"])) == (200, len(layer))
    assert not is_stored(cache, f"up/{repo}", sha256(layer))
    blob = through.get(f"/v2/up/{repo}/blobs/{sha256(layer)}")
    assert blob.content == layer and blob.headers["docker-content-digest"] == sha256(layer)
    assert is_stored(cache, f"up/{repo}", sha256(layer))
    assert through.get(f"/v2/up/{repo}/blobs/{sha256(b'{}')}").content == b"{}"
    assert through.get(f"/v2/up/{repo}/blobs/{sha256(b'absent')}").status_code == 404
    assert through.get(f"/v2/up/{repo}/manifests/absent").status_code == 404
    assert error_code(through.get(f"/v2/up/{repo}/manifests/{sha256(b'absent')}")) == "MANIFEST_UNKNOWN"
    for none in ("-tag", "t" * 200, "a+b"):
        answer = through.get(f"/v2/up/{repo}/manifests/{none}")
        assert (answer.status_code, error_code(answer)) == (404, "MANIFEST_UNKNOWN"), none


def test_lists_and_referrers_are_those_of_the_original(at: httpx.Client, through: httpx.Client, repo: str) -> None:
    raw = push_image(at, repo, "v1")
    push_image(at, repo, "v2", b"two")
    assert through.get(f"/v2/up/{repo}/tags/list").json() == {"name": f"up/{repo}", "tags": ["v1", "v2"]}
    page = through.get(f"/v2/up/{repo}/tags/list?n=1")
    assert page.json()["tags"] == ["v1"]
    link = page.headers["link"].partition(">")[0].strip("<")
    assert through.get(link).json()["tags"] == ["v2"]
    about = {"mediaType": MANIFEST, "digest": sha256(raw), "size": len(raw)}
    notes = [
        push_image(at, repo, None, text, subject=about, artifactType=f"x/{text.decode()}") for text in (b"a", b"b")
    ]
    answer = through.get(f"/v2/up/{repo}/referrers/{sha256(raw)}")
    assert answer.headers["content-type"] == INDEX
    assert {item["digest"] for item in answer.json()["manifests"]} == set(map(sha256, notes))
    one = through.get(f"/v2/up/{repo}/referrers/{sha256(raw)}?artifactType=x/a")
    assert [item["digest"] for item in one.json()["manifests"]] == [sha256(notes[0])]
    assert through.get(f"/v2/up/{repo}/referrers/{sha256(b'nothing')}").json()["manifests"] == []
    assert through.get("/v2/up/never/was/tags/list").status_code == 404


def test_a_tag_is_asked_for_again_when_its_time_is_over(
    at: httpx.Client,
    through: httpx.Client,
    upstream: RunningRegistry,
    registry_server: StartRegistry,
    repo: str,
    tmp_path: Path,
) -> None:
    patient = registry_server(tmp_path / "patient", "--config", str(proxied(tmp_path, upstream, ttl="1h")))
    old = push_image(at, repo, "latest", b"old")
    for url in (patient.url, str(through.base_url)):
        assert httpx.get(f"{url}/v2/up/{repo}/manifests/latest").content == old
    new = push_image(at, repo, "latest", b"new")
    path = f"/v2/up/{repo}/manifests/latest"
    eventually(lambda: through.get(path).content == new)
    assert httpx.get(f"{patient.url}{path}").content == old
    assert at.delete(f"/v2/{repo}/manifests/latest").status_code == 202
    eventually(lambda: through.get(path).status_code == 404)


def test_what_is_held_is_served_while_the_original_is_away(
    registry_server: StartRegistry, repo: str, tmp_path: Path
) -> None:
    (tmp_path / "up").mkdir()
    first = registry_server(tmp_path / "up/storage")
    with httpx.Client(base_url=first.url) as client:
        raw = push_image(client, repo, "v1", b"held")
        push_image(client, repo, "v2", b"not held")
        about = {"mediaType": MANIFEST, "digest": sha256(raw), "size": len(raw)}
        note = push_image(client, repo, None, b"a note", subject=about)
    cache = registry_server(tmp_path / "storage", "--config", str(proxied(tmp_path, first)))
    with httpx.Client(base_url=cache.url, timeout=60) as through:
        assert through.get(f"/v2/up/{repo}/manifests/v1").content == raw
        assert through.get(f"/v2/up/{repo}/manifests/v1.sig").status_code == 404
        through.get(f"/v2/up/{repo}/blobs/{sha256(b'held')}")
        through.get(f"/v2/up/{repo}/manifests/{sha256(note)}")
        first.kill()
        stale = eventually(lambda: (a := through.get(f"/v2/up/{repo}/manifests/v1")).headers.get("warning") and a)
        assert stale.content == raw and stale.headers["warning"].startswith("110 ")
        assert through.get(f"/v2/up/{repo}/blobs/{sha256(b'held')}").content == b"held"
        assert through.get(f"/v2/up/{repo}/manifests/{sha256(raw)}").content == raw
        tags = through.get(f"/v2/up/{repo}/tags/list")
        assert tags.json()["tags"] == ["v1"] and tags.headers["warning"].startswith("110 ")
        referrers = through.get(f"/v2/up/{repo}/referrers/{sha256(raw)}")
        assert [item["digest"] for item in referrers.json()["manifests"]] == [sha256(note)]
        assert referrers.headers["warning"].startswith("110 ")
        # What it had not when it was there, it has not now; of the rest nothing is known.
        assert through.get(f"/v2/up/{repo}/manifests/v1.sig").status_code == 404
        for path in ("manifests/v2", f"blobs/{sha256(b'not held')}", f"manifests/{sha256(b'other')}"):
            away = through.get(f"/v2/up/{repo}/{path}")
            assert (away.status_code, error_code(away)) == (503, "UNAVAILABLE"), path
    assert "is served as it was" in cache.log.read_text()


def test_stale_tags_may_be_refused(registry_server: StartRegistry, repo: str, tmp_path: Path) -> None:
    first = registry_server(tmp_path / "up")
    with httpx.Client(base_url=first.url) as client:
        raw = push_image(client, repo, "v1")
    config = proxied(tmp_path, first, more="serve-stale = false")
    cache = registry_server(tmp_path / "storage", "--config", str(config))
    with httpx.Client(base_url=cache.url, timeout=60) as through:
        assert through.get(f"/v2/up/{repo}/manifests/v1").content == raw
        first.kill()
        eventually(lambda: through.get(f"/v2/up/{repo}/manifests/v1").status_code == 503)
        assert through.get(f"/v2/up/{repo}/manifests/{sha256(raw)}").content == raw


def test_pushes_into_a_copy_are_refused(through: httpx.Client, upstream: RunningRegistry, repo: str) -> None:
    raw = manifest_of([b"x"])
    for answer in (
        through.post(f"/v2/up/{repo}/blobs/uploads/"),
        through.post(f"/v2/up/{repo}/blobs/uploads/", params={"digest": sha256(b"x")}, content=b"x"),
        put_manifest(through, f"up/{repo}", raw, "v1"),
    ):
        assert (answer.status_code, error_code(answer)) == (405, "UNSUPPORTED")
        assert "push there" in answer.json()["errors"][0]["message"]
    push_image(through, repo, "v1")  # what is not below the prefix is the registry's own
    push_image(through, "upper/x", "v1")


def test_containerd_names_the_registry_it_means(at: httpx.Client, through: httpx.Client, repo: str) -> None:
    raw = push_image(at, repo, "v1", b"by namespace")
    ns = {"ns": "models.example.org"}
    assert through.head(f"/v2/{repo}/manifests/v1", params=ns).headers["docker-content-digest"] == sha256(raw)
    assert through.get(f"/v2/{repo}/manifests/{sha256(raw)}", params=ns).content == raw
    assert through.get(f"/v2/{repo}/blobs/{sha256(b'by namespace')}", params=ns).content == b"by namespace"
    assert through.get(f"/v2/{repo}/manifests/v1").status_code == 404
    other = through.get(f"/v2/{repo}/manifests/v1", params={"ns": "elsewhere.example.org"})
    assert (other.status_code, error_code(other)) == (404, "NAME_UNKNOWN")


def test_a_blob_that_was_deleted_is_not_restored_through_another_repository(
    at: httpx.Client, through: httpx.Client, cache: RunningRegistry, repo: str
) -> None:
    """CVE-2026-35172. Other repositories have the bytes; neither they nor the cache bring them back."""
    content = secrets.token_bytes(2000)
    digest = sha256(content)
    push_image(at, repo, "v1", content)
    push_image(through, f"{repo}/own", "v1", content)
    assert through.get(f"/v2/up/{repo}/blobs/{digest}").content == content
    assert through.get(f"/v2/up/{repo}/other/blobs/{digest}").status_code == 404
    assert at.delete(f"/v2/{repo}/blobs/{digest}").status_code == 202
    assert through.delete(f"/v2/up/{repo}/blobs/{digest}").status_code == 202
    assert through.get(f"/v2/up/{repo}/blobs/{digest}").status_code == 404
    assert through.head(f"/v2/up/{repo}/blobs/{digest}").status_code == 404
    assert through.get(f"/v2/{repo}/own/blobs/{digest}").content == content
    assert through.delete(f"/v2/{repo}/own/blobs/{digest}").status_code == 202
    assert through.get(f"/v2/{repo}/own/blobs/{digest}").status_code == 404


def test_a_login_that_is_refused_is_said_without_it(
    upstream: RunningRegistry, registry_server: StartRegistry, repo: str, tmp_path: Path
) -> None:
    config = proxied(tmp_path, upstream)
    (tmp_path / "password").write_text("not-the-password")
    cache = registry_server(tmp_path / "storage", "--config", str(config))
    answer = httpx.get(f"{cache.url}/v2/up/{repo}/manifests/v1", timeout=60)
    assert answer.status_code == 502 and "refuses this registry's login" in answer.text
    assert "not-the-password" not in answer.text + cache.log.read_text()


def test_rights_hold_for_copies(
    at: httpx.Client, upstream: RunningRegistry, registry_server: StartRegistry, repo: str, tmp_path: Path
) -> None:
    push_image(at, repo, "v1")
    config = proxied(tmp_path, upstream)
    rules = AUTH + '[[access]]\nprincipals = ["bob"]\nrepositories = ["up/**"]\nrights = ["pull"]\n'
    config.write_text(config.read_text() + configure(tmp_path, rules).read_text())
    cache = registry_server(tmp_path / "storage", "--config", str(config))
    path = f"{cache.url}/v2/up/{repo}/manifests/v1"
    assert httpx.get(path, auth=("bob", PASSWORDS["bob"])).status_code == 200
    assert httpx.get(path).status_code == 401
    assert httpx.get(path, auth=("carol", PASSWORDS["carol"])).status_code == 403
    ns = {"ns": "models.example.org"}
    assert httpx.get(f"{cache.url}/v2/{repo}/manifests/v1", params=ns).status_code == 401


def test_fsck_and_the_collector_know_a_copy(
    at: httpx.Client, upstream: RunningRegistry, registry_server: StartRegistry, repo: str, tmp_path: Path
) -> None:
    push_image(at, repo, "v1")
    cache = registry_server(tmp_path / "storage", "--config", str(proxied(tmp_path, upstream)))
    httpx.get(f"{cache.url}/v2/up/{repo}/manifests/v1")
    done = CliRunner().invoke(app, ["fsck", "--storage", cache.storage, "--json"])
    assert json.loads(done.stdout)["findings"] == []
    for _ in range(2):
        done = CliRunner().invoke(app, ["gc", "--storage", cache.storage, "--grace", "0"])
        assert done.exit_code == 0, done.output
    assert httpx.get(f"{cache.url}/v2/up/{repo}/blobs/{sha256(b'layer')}").content == b"layer"
