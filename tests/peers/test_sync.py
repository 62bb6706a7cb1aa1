"""`registry sync` between ours and Debian's docker-registry, which has no referrers API, and beside `skopeo sync`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from artifact.descriptor import Descriptor
from artifact.progress import Quiet
from artifact.reference import referrers_tag
from artifact.remote import RemoteRepository
from artifact.source import bytes_source
from supplychain.evidence import signature_tag
from tests.peers.mirrored import Model
from tests.peers.programs import program
from tests.registry.pushing import EMPTY, MANIFEST, OCTETS, manifest_of
from tests.registry.servers import StartRegistry
from tests.registry.syncing import sync

pytestmark = pytest.mark.peer


@pytest.fixture
def empty(registry_server: StartRegistry, tmp_path: Path) -> str:
    """A registry of ours with nothing in it, as HOST:PORT."""
    return registry_server(tmp_path / "empty").host


def test_there_and_back_with_signatures(model: Model, docker_registry: str, empty: str) -> None:
    report = sync(model.server.host, docker_registry)
    assert report["failures"] == 0 and report["referrers"] >= 1
    there = RemoteRepository(docker_registry, model.name)
    listing = referrers_tag(model.descriptor.digest)
    assert {model.tag, f"{model.tag}-ollama", listing, signature_tag(model.descriptor.digest)} <= set(there.tags())
    index = json.loads(there.manifest(listing)[1])
    assert sorted(item["artifactType"] for item in index["manifests"]) == [
        "application/vnd.dev.sigstore.bundle.v0.3+json", "application/vnd.dev.stowage.tensor-index.v1+json",
    ]  # fmt: skip
    model.assert_trusted(there)
    again = sync(model.server.host, docker_registry)
    assert (again["copied"], again["blobs"], again["referrers"]) == (0, 0, 0)
    report = sync(docker_registry, empty)
    back = RemoteRepository(empty, model.name)
    model.assert_trusted(back)
    # Ours lists referrers by itself: the fallback tag has done its work.
    assert listing not in back.tags()
    assert len(back.referrers(model.descriptor.digest)) == len(model.repository.referrers(model.descriptor.digest))


def test_deleting_where_a_registry_deletes_manifests_only(model: Model, docker_registry: str, empty: str) -> None:
    sync(model.server.host, empty)
    ours, theirs = RemoteRepository(empty, model.name), RemoteRepository(docker_registry, model.name)
    descriptor, raw = ours.manifest(model.tag)
    ours.push_manifest(raw, descriptor.media_type, "also")
    sync(empty, docker_registry)
    ours.delete_tag(f"{model.tag}-ollama")
    ours.delete_tag("also")
    report = sync(empty, docker_registry, "--delete", status=1)
    assert report["repositories"][0]["deleted"] == [f"{model.tag}-ollama"]
    assert f"{model.tag}-ollama" not in theirs.tags()
    assert "points at the same manifest" in report["repositories"][0]["failures"][0]["message"]
    model.assert_trusted(theirs)


def test_skopeo_sync_drops_referrers_and_the_tags_carry_them(
    model: Model,
    docker_registry: str,
    empty: str,
    shell: Callable[..., str],
    registry_server: StartRegistry,
    tmp_path: Path,
) -> None:
    """skopeo follows tags: with the fallback tag it takes the listing and the signatures in it along."""
    sync(model.server.host, empty, "--signature-tags")
    # skopeo reads no manifest for Ollama: it knows Docker's own layer types only.
    RemoteRepository(empty, model.name).delete_tag(f"{model.tag}-ollama")
    last = registry_server(tmp_path / "last").host
    tls = ("--src-tls-verify=false", "--dest-tls-verify=false")
    skopeo = program("skopeo")
    team = model.name.rpartition("/")[0]
    for source, target in ((empty, docker_registry), (docker_registry, last)):
        shell(skopeo, "sync", "--all", *tls, "--src", "docker", "--dest", "docker", f"{source}/{model.name}",
              f"{target}/{team}")  # fmt: skip
        place = RemoteRepository(target, model.name)
        assert {model.tag, referrers_tag(model.descriptor.digest)} <= set(place.tags())
        if target == last:  # what is left is the bundle
            place.delete_tag(signature_tag(model.descriptor.digest))
        model.assert_trusted(place)
    assert len(RemoteRepository(last, model.name).referrers(model.descriptor.digest)) == 2  # signature, index


def test_a_tag_that_was_moved_at_the_source_is_moved(docker_registry: str, empty: str) -> None:
    theirs, ours = RemoteRepository(docker_registry, "team/x"), RemoteRepository(empty, "team/x")
    for content in (b"one", b"two"):
        for blob, media_type in ((b"{}", EMPTY), (content, OCTETS)):
            theirs.push_blob(Descriptor.of(blob, media_type), bytes_source(blob), Quiet())
        theirs.push_manifest(manifest_of([content]), MANIFEST, "latest")
        assert sync(docker_registry, empty)["copied"] == 1
        assert ours.manifest("latest")[1] == manifest_of([content])
