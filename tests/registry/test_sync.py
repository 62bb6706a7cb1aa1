"""`registry sync` where a user stands: what is copied, what is left alone, and what it says."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from artifact.digest import Digest
from artifact.layout import LayoutRepository
from artifact.remote import RemoteRepository
from registry.cli import app
from tests.registry.pushing import INDEX, descriptor, manifest_of, push_blob, push_image, put_manifest, sha256
from tests.registry.secured import PASSWORDS, configure, docker_config
from tests.registry.servers import RunningRegistry, StartRegistry
from tests.registry.syncing import sync

MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@pytest.fixture(scope="module")
def source(session_registries: StartRegistry, tmp_path_factory: pytest.TempPathFactory) -> RunningRegistry:
    return session_registries(tmp_path_factory.mktemp("sync-source"))


@pytest.fixture(scope="module")
def target(session_registries: StartRegistry, tmp_path_factory: pytest.TempPathFactory) -> RunningRegistry:
    return session_registries(tmp_path_factory.mktemp("sync-target"))


@pytest.fixture
def at(source: RunningRegistry) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=source.url, timeout=60) as client:
        yield client


@pytest.fixture
def group() -> str:
    return f"g{secrets.token_hex(4)}"


def refer(client: httpx.Client, repo: str, subject: bytes, text: str, kind: str = "application/x.note") -> str:
    push_blob(client, repo, b"{}")
    push_blob(client, repo, text.encode())
    about = {"mediaType": MANIFEST, "digest": sha256(subject), "size": len(subject)}
    raw = manifest_of([text.encode()], artifactType=kind, subject=about)
    assert put_manifest(client, repo, raw).status_code == 201
    return sha256(raw)


def test_repositories_tags_and_referrers_arrive_with_their_digests(
    at: httpx.Client, source: RunningRegistry, target: RunningRegistry, group: str
) -> None:
    one = push_image(at, f"{group}/one", "v1", b"first")
    push_image(at, f"{group}/one", "same", b"first")
    two = push_image(at, f"{group}/deep/two", "v2", b"second")
    note = refer(at, f"{group}/one", one, "a note")
    about_note = refer(at, f"{group}/one", at.get(f"/v2/{group}/one/manifests/{note}").content, "about the note")
    report = sync(source.host, target.host, "--include", f"{group}/**")
    assert (report["copied"], report["referrers"], report["failures"]) == (3, 2, 0)
    there = RemoteRepository(target.host, f"{group}/one")
    assert there.tags() == ["same", "v1"]
    assert there.manifest("v1")[1] == one
    assert [str(item.digest) for item in there.referrers(Digest.of(one))] == [note]
    assert [str(item.digest) for item in there.referrers(Digest.parse(note))] == [about_note]
    assert RemoteRepository(target.host, f"{group}/deep/two").manifest("v2")[1] == two


def test_what_is_there_is_not_sent_again_and_a_new_referrer_is(
    at: httpx.Client, source: RunningRegistry, target: RunningRegistry, group: str
) -> None:
    raw = push_image(at, f"{group}/m", "v1", secrets.token_bytes(5000))
    assert sync(f"{source.host}/{group}/**", target.host)["blobs"] == 2
    again = sync(f"{source.host}/{group}/**", target.host)
    assert (again["copied"], again["unchanged"], again["blobs"], again["referrers"]) == (0, 1, 0, 0)
    refer(at, f"{group}/m", raw, "signed later")
    later = sync(f"{source.host}/{group}/**", target.host)
    assert (later["copied"], later["unchanged"], later["referrers"]) == (0, 1, 1)


def test_one_repository_under_another_name_and_several_below_one(
    at: httpx.Client, source: RunningRegistry, target: RunningRegistry, group: str
) -> None:
    push_image(at, f"{group}/m", "v1", b"x")
    sync(f"{source.host}/{group}/m", f"{target.host}/{group}/renamed")
    assert RemoteRepository(target.host, f"{group}/renamed").tags() == ["v1"]
    sync(source.host, f"{target.host}/mirror", "--include", f"{group}/*")
    assert RemoteRepository(target.host, f"mirror/{group}/m").tags() == ["v1"]


def test_a_blob_that_two_repositories_share_is_sent_once(
    at: httpx.Client, source: RunningRegistry, target: RunningRegistry, group: str
) -> None:
    weights = secrets.token_bytes(100_000)
    for name in ("a", "b", "c"):
        push_image(at, f"{group}/{name}", "v1", weights)
    report = sync(source.host, target.host, "--include", f"{group}/*")
    assert report["copied"] == 3
    assert report["bytes"] <= len(weights) + len(b"{}")


def test_an_index_goes_with_its_members_and_their_referrers(
    at: httpx.Client, source: RunningRegistry, target: RunningRegistry, group: str
) -> None:
    repo = f"{group}/multi"
    member = push_image(at, repo, None, b"member")
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor(member, MANIFEST)]}).encode()
    assert put_manifest(at, repo, index, "all", INDEX).status_code == 201
    note = refer(at, repo, member, "about a member")
    assert sync(f"{source.host}/{repo}", target.host)["referrers"] == 1
    there = RemoteRepository(target.host, repo)
    assert there.manifest("all")[1] == index
    assert [str(item.digest) for item in there.referrers(Digest.of(member))] == [note]


def test_what_an_index_lists_over_and_over_is_asked_for_once(
    at: httpx.Client, source: RunningRegistry, target: RunningRegistry, group: str
) -> None:
    repo = f"{group}/over"
    raw, kind = push_image(at, repo, None, b"over and over"), MANIFEST
    leaf = sha256(raw)
    for _ in range(3):
        entries = [descriptor(raw, kind)] * 6
        raw, kind = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode(), INDEX
        assert put_manifest(at, repo, raw, "all", INDEX).status_code == 201
    note = refer(at, repo, raw, "about all")
    assert sync(f"{source.host}/{repo}", target.host)["referrers"] == 1
    assert [str(item.digest) for item in RemoteRepository(target.host, repo).referrers(Digest.of(raw))] == [note]
    asked = [line for line in source.log.read_text().splitlines() if f'"/v2/{repo}/manifests/{leaf}"' in line]
    assert len([line for line in asked if " GET " in line]) <= 2


def test_nothing_is_deleted_unless_asked_and_then_only_what_the_source_has_not(
    at: httpx.Client, source: RunningRegistry, target: RunningRegistry, group: str
) -> None:
    repo = f"{group}/m"
    push_image(at, repo, "old", b"old")
    push_image(at, repo, "new", b"new")
    sync(f"{source.host}/{repo}", target.host)
    assert at.delete(f"/v2/{repo}/manifests/old").status_code == 202
    assert sync(f"{source.host}/{repo}", target.host)["deleted"] == 0
    there = RemoteRepository(target.host, repo)
    assert there.tags() == ["new", "old"]
    assert sync(f"{source.host}/{repo}", target.host, "--delete", "--dry-run")["repositories"][0]["deleted"] == ["old"]
    assert there.tags() == ["new", "old"]
    assert sync(f"{source.host}/{repo}", target.host, "--delete")["deleted"] == 1
    assert there.tags() == ["new"]


def test_delete_leaves_the_tags_that_list_signatures(
    at: httpx.Client, source: RunningRegistry, target: RunningRegistry, group: str
) -> None:
    repo = f"{group}/m"
    raw = push_image(at, repo, "v1", b"signed")
    refer(at, repo, raw, "a signature")
    sync(f"{source.host}/{repo}", target.host, "--signature-tags")
    listing = sha256(raw).replace(":", "-")
    there = RemoteRepository(target.host, repo)
    assert there.tags() == [listing, "v1"]
    assert sync(f"{source.host}/{repo}", target.host, "--delete")["deleted"] == 0
    assert there.tags() == [listing, "v1"]


def test_a_dry_run_sends_nothing_and_says_what_it_would(
    at: httpx.Client, source: RunningRegistry, target: RunningRegistry, group: str
) -> None:
    repo = f"{group}/m"
    raw = push_image(at, repo, "v1", b"12345")
    refer(at, repo, raw, "note")
    report = sync(f"{source.host}/{repo}", target.host, "--dry-run")
    assert (report["dry_run"], report["copied"], report["referrers"]) == (True, 1, 1)
    assert report["bytes"] >= 5 + len(b"{}")
    assert httpx.get(f"{target.url}/v2/{repo}/tags/list").status_code == 404


def test_layouts_both_ways(
    at: httpx.Client, source: RunningRegistry, target: RunningRegistry, group: str, tmp_path: Path
) -> None:
    raw = push_image(at, f"{group}/a", "v1", b"a")
    push_image(at, f"{group}/b", "v1", b"b")
    note = refer(at, f"{group}/a", raw, "note")
    layout = f"oci:{tmp_path}/many"
    sync(source.host, layout, "--include", f"{group}/*")
    assert LayoutRepository(tmp_path / "many", f"{group}/a").tags() == ["v1"]
    sync(layout, f"{target.host}/from-layout")
    there = RemoteRepository(target.host, f"from-layout/{group}/a")
    assert there.manifest("v1")[1] == raw
    assert [str(item.digest) for item in there.referrers(Digest.of(raw))] == [note]
    sync(f"{source.host}/{group}/a", f"oci:{tmp_path}/one")
    assert LayoutRepository(tmp_path / "one").tags() == ["v1"]
    sync(f"oci:{tmp_path}/one", f"{target.host}/{group}/named")
    assert RemoteRepository(target.host, f"{group}/named").manifest("v1")[1] == raw


def test_one_failure_does_not_stop_the_rest(
    at: httpx.Client, source: RunningRegistry, registry_server: StartRegistry, group: str, tmp_path: Path
) -> None:
    repo = f"{group}/m"
    first = push_image(at, repo, "fixed", b"one")
    config = tmp_path / "registry.toml"
    config.write_text('[immutable]\ntags = ["**:fixed"]\n')
    target = registry_server(tmp_path / "storage", "--config", str(config))
    sync(f"{source.host}/{repo}", target.host)
    push_image(at, repo, "fixed", b"two")
    push_image(at, repo, "free", b"three")
    report = sync(f"{source.host}/{repo}", target.host, status=1)
    assert report["repositories"][0]["copied"] == ["free"]
    (failure,) = report["repositories"][0]["failures"]
    assert "immutable" in failure["message"] and failure["what"].endswith(":fixed")
    assert RemoteRepository(target.host, repo).manifest("fixed")[1] == first


def test_a_registry_with_logins(
    at: httpx.Client, source: RunningRegistry, registry_server: StartRegistry, group: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    push_image(at, f"team/{group}", "v1", b"x")
    secured = registry_server(tmp_path / "storage", "--config", str(configure(tmp_path)))
    monkeypatch.setenv("DOCKER_CONFIG", str(docker_config(tmp_path / "docker", secured.host, "bob")))
    sync(f"{source.host}/team/{group}", secured.host)
    answer = httpx.get(f"{secured.url}/v2/team/{group}/tags/list", auth=("bob", PASSWORDS["bob"]))
    assert answer.json()["tags"] == ["v1"]
    monkeypatch.setenv("DOCKER_CONFIG", str(docker_config(tmp_path / "other", secured.host, "reader")))
    push_image(at, f"team/{group}", "v2", b"y")
    report = sync(f"{source.host}/team/{group}", secured.host, status=1)
    assert "lacks that right" in report["repositories"][0]["failures"][0]["message"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nohost/name", "localhost:1"), "is no place"),
        (("localhost:1/UPPER", "localhost:2"), "not a repository name"),
        (("localhost:1/a", "localhost:1"), "onto itself"),
        (("localhost:1/a", "localhost:2/x/*"), "no pattern"),
        (("oci:", "localhost:2"), "oci:PATH"),
    ],
)
def test_places_that_are_none(arguments: tuple[str, str], said: str) -> None:
    done = CliRunner().invoke(app, ["sync", *arguments])
    assert said in str(done.exception)
    assert getattr(done.exception, "exit_code", None) == 2


def test_a_source_that_is_away_is_one_line(tmp_path: Path) -> None:
    report = sync("127.0.0.1:1/a/b", f"oci:{tmp_path}/layout", status=1)
    assert "cannot reach 127.0.0.1:1" in report["repositories"][0]["failures"][0]["message"]
