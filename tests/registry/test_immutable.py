"""Immutable tags: never moved to another digest, by anybody."""

from __future__ import annotations

import secrets
import threading
from pathlib import Path

import httpx
import pytest

from artifact.weights.precision import canonical_tag, is_precision_tag
from tests.registry.pushing import error_code, manifest_of, push_blob, push_image, put_manifest, sha256
from tests.registry.secured import AUTH, RULES, configure
from tests.registry.secured import client as logged_in
from tests.registry.servers import RunningRegistry, StartRegistry
from tests.registry.test_admission import FOUR, Q4, push_model

CONFIG = '[immutable]\ntags = ["team/releases/**:v*", "team/exact:stable"]\nexcept = ["scratch/**:*"]\n'


@pytest.fixture(scope="module")
def guarded(session_registries: StartRegistry, tmp_path_factory: pytest.TempPathFactory) -> RunningRegistry:
    folder = tmp_path_factory.mktemp("immutable")
    return session_registries(folder / "s", "--config", str(configure(folder, AUTH + CONFIG + RULES)))


@pytest.mark.parametrize(
    ("tag", "yes"),
    [("4B-Q4_K_M", True), ("1.7B-BF16-safetensors", True), ("135M-F16", True), ("latest", False), ("v1", False),
     ("4B", False), ("Q4_K_M", False), ("4B-latest", False), ("4B-Q4_K_M-old", False), ("4B-BF16-gguf", False)],
)  # fmt: skip
def test_precision_tags(tag: str, yes: bool) -> None:
    assert is_precision_tag(tag) is yes


@pytest.mark.parametrize("parameters", [1, 999, 134_515_008, 1_700_000_000, 4_000_000_000, 10**12])
@pytest.mark.parametrize(("format_", "precision"), [("gguf", "Q4_K_M"), ("gguf", "F16"), ("safetensors", "BF16")])
def test_every_canonical_tag_is_one(format_: str, precision: str, parameters: int) -> None:
    assert is_precision_tag(canonical_tag(format_, precision, parameters))


def test_precision_tags_are_immutable_by_default(client: httpx.Client, repo: str) -> None:
    """Without any configuration; the same digest again is fine, and an image may be tagged as it likes."""
    assert push_model(client, repo, "4B-Q4_K_M", Q4, FOUR).status_code == 201
    before = client.get(f"/v2/{repo}/manifests/4B-Q4_K_M").content
    assert push_model(client, repo, "4B-Q4_K_M", Q4, FOUR).status_code == 201
    other = {**FOUR, "changed": "yes"}
    answer = push_model(client, repo, "4B-Q4_K_M", Q4, other)
    assert (answer.status_code, error_code(answer)) == (403, "DENIED")
    assert "immutable" in answer.text
    assert sha256(before) in answer.text
    assert client.get(f"/v2/{repo}/manifests/4B-Q4_K_M").content == before
    assert push_model(client, repo, "latest", Q4, FOUR).status_code == 201
    assert push_model(client, repo, "latest", Q4, other).status_code == 201
    image = f"{repo}/image"
    push_image(client, image, "4B-Q4_K_M", b"one")
    push_image(client, image, "4B-Q4_K_M", b"two")


def test_a_model_cannot_be_covered_by_something_else(client: httpx.Client, repo: str) -> None:
    push_model(client, repo, "4B-Q4_K_M", Q4, FOUR)
    push_blob(client, repo, b"{}")
    push_blob(client, repo, b"layer")
    for reference, query in (("4B-Q4_K_M", {}), (sha256(manifest_of([b"layer"])), {"tag": "4B-Q4_K_M"})):
        assert put_manifest(client, repo, manifest_of([b"layer"]), reference, **query).status_code == 403


@pytest.mark.parametrize(
    ("repo", "tag", "moves"),
    [("team/releases/a", "v1", False), ("team/releases/a", "latest", True), ("team/other", "v1", True),
     ("team/exact", "stable", False), ("team/exact", "stable2", True), ("team/exact/below", "stable", True)],
)  # fmt: skip
def test_by_pattern(guarded: RunningRegistry, repo: str, tag: str, moves: bool) -> None:
    """For everybody, whatever their rights."""
    with logged_in(guarded.url, "alice") as alice:
        push_image(alice, repo, tag, b"one")
        push_blob(alice, repo, b"two")
        answer = put_manifest(alice, repo, manifest_of([b"two"]), tag)
        assert answer.status_code == (201 if moves else 403)


def test_exceptions(guarded: RunningRegistry) -> None:
    with logged_in(guarded.url, "alice") as alice:
        assert push_model(alice, "scratch/model", "4B-Q4_K_M", Q4, FOUR).status_code == 201
        assert push_model(alice, "scratch/model", "4B-Q4_K_M", Q4, {**FOUR, "a": "b"}).status_code == 201


def test_one_of_many_who_create_it_at_once(guarded: RunningRegistry) -> None:
    """The tag that stands is never moved by those who came second."""
    repo = f"team/releases/{secrets.token_hex(4)}"
    with logged_in(guarded.url, "alice") as alice:
        push_blob(alice, repo, b"{}")
        manifests = []
        for number in range(6):
            push_blob(alice, repo, b"%d" % number)
            manifests.append(manifest_of([b"%d" % number]))
        answers: list[tuple[int, bytes]] = []

        def push(raw: bytes) -> None:
            answers.append((put_manifest(alice, repo, raw, "v1").status_code, raw))

        threads = [threading.Thread(target=push, args=(raw,)) for raw in manifests]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(status for status, _ in answers) == [201, 403, 403, 403, 403, 403]
        winner = next(raw for status, raw in answers if status == 201)
        assert alice.get(f"/v2/{repo}/manifests/v1").content == winner


def test_kept(registry_server: StartRegistry, tmp_path: Path) -> None:
    """With keep, neither the tag is deleted nor the manifest under it."""
    config = configure(tmp_path, '[immutable]\ntags = ["**:v*"]\nkeep = true\n')
    server = registry_server(tmp_path / "s", "--config", str(config))
    with httpx.Client(base_url=server.url, timeout=30) as anyone:
        raw = push_image(anyone, "a/b", "v1")
        put_manifest(anyone, "a/b", raw, "other")
        for reference in ("v1", sha256(raw)):
            answer = anyone.delete(f"/v2/a/b/manifests/{reference}")
            assert (answer.status_code, error_code(answer)) == (403, "DENIED")
        assert anyone.delete("/v2/a/b/manifests/other").status_code == 202
        assert anyone.get("/v2/a/b/manifests/v1").content == raw
