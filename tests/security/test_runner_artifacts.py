"""What an artifact may not do to the machine that pulls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from artifact import mediatypes
from artifact.layout import LayoutRepository
from artifact.manifest import Manifest
from tests.runner.commands import call, error_line, json_of
from tests.runner.crafted import blob, file_layer, flip_byte, model_of, push_model, safetensors_bytes


def refused(tmp_path: Path, status: int) -> str:
    """Pull the crafted model; nothing of it may be left anywhere. Returns the reason."""
    store = tmp_path / "user" / "store"
    store.parent.mkdir()
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(store)}
    reason = error_line(call(store, "pull", f"oci:{tmp_path}/l:v1", status=status))
    assert not list(store.glob("blobs/*/*"))
    assert not list(store.glob("bundles/*/*"))
    assert json_of(call(store, "list", "--json")) == []
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(store)} == before
    return reason


@pytest.mark.parametrize(
    "path",
    [
        "../escape.json", "/etc/cron.d/x", "a/../../b.json", "a//b.json", "./a.json", "a\\b.json", "~/a.json",
        "-rf.json", "a\nb.json", "a\0b.json", "..", "a/", "e\u0301.json", "x" * 2000 + ".json",
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", [mediatypes.FILEPATH, mediatypes.TITLE])
def test_unsafe_file_paths_in_annotations(tmp_path, path, key):
    layout = LayoutRepository(tmp_path / "l")
    bad = blob(layout, b"{}", mediatypes.MODEL_WEIGHT_CONFIG, **{key.replace(".", "__"): path})
    push_model(tmp_path / "l", [file_layer(layout, "m.safetensors", safetensors_bytes()), bad])
    assert "unsafe file path" in refused(tmp_path, 1)


@pytest.mark.parametrize("paths", [("a.json", "a.json"), ("a.json", "A.JSON"), ("a", "a/b.json")])
def test_two_files_on_one_path(tmp_path, paths):
    layout = LayoutRepository(tmp_path / "l")
    layers = [file_layer(layout, path, str(at).encode()) for at, path in enumerate(paths)]
    push_model(tmp_path / "l", [file_layer(layout, "m.safetensors", safetensors_bytes()), *layers])
    assert "path" in refused(tmp_path, 1)


@pytest.mark.parametrize("name", ["modeling_x.py", "lib/x.so", "setup.sh", "X.PY", "x.pyc"])
def test_code_is_refused(tmp_path, name):
    """CVE-2026-5817."""
    model_of(tmp_path / "l", {name: b"import os"})
    assert "carries code" in refused(tmp_path, 3)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "x.pkl", "consolidated.00.pth", "a.CKPT"])
def test_pickles_are_refused_by_format(tmp_path, name):
    model_of(tmp_path / "l", {name: b"not even a pickle"})
    assert "can run code when loaded" in refused(tmp_path, 3)


def test_weights_that_are_named_otherwise_are_refused(tmp_path):
    layout = LayoutRepository(tmp_path / "l")
    hidden = file_layer(layout, "weights.data", b"x", mediatypes.MODEL_WEIGHT)
    push_model(tmp_path / "l", [file_layer(layout, "m.safetensors", safetensors_bytes()), hidden])
    assert "must be .safetensors or .gguf" in refused(tmp_path, 3)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", {"auto_map": {"AutoModel": "modeling.Model"}}),
        ("tokenizer_config.json", {"a": [{"auto_map": {}}]}),
        ("processor_config.json", {"nested": {"auto_map": {"AutoProcessor": "x.Y"}}}),
    ],
)
def test_auto_map_is_refused(tmp_path, name, content):
    """CVE-2026-5843."""
    model_of(tmp_path / "l", {name: json.dumps(content).encode()})
    assert "auto_map" in refused(tmp_path, 3)


def test_auto_map_behind_a_second_key_is_found(tmp_path):
    model_of(tmp_path / "l", {"config.json": b'{"auto_map": {"AutoModel": "m.M"}, "auto_map": null}'})
    assert "auto_map" in refused(tmp_path, 3)


def test_a_document_that_is_manifest_and_index_at_once(tmp_path):
    """CVE-2021-41190."""
    digest = model_of(tmp_path / "l", {})
    layout = LayoutRepository(tmp_path / "l")
    value = json.loads(layout.manifest(digest)[1]) | {"manifests": []}
    raw = json.dumps(value).encode()
    index_file = tmp_path / "l" / "index.json"
    descriptor = blob(layout, raw, mediatypes.IMAGE_MANIFEST, org__opencontainers__image__ref__name="v1")
    index = json.loads(index_file.read_bytes()) | {"manifests": [descriptor.to_json()]}
    index_file.write_text(json.dumps(index))
    assert "manifests" in refused(tmp_path, 1)


@pytest.mark.parametrize("flipped", [False, True])
def test_a_digest_that_appears_twice_is_still_verified(tmp_path, flipped):
    """Ollama #15504: config and layer are one blob."""
    layout = LayoutRepository(tmp_path / "l")
    content = b'{"config":{"format":"safetensors"},"descriptor":{"created":"2026-01-01T00:00:00Z"}}'
    config = blob(layout, content, mediatypes.DOCKER_MODEL_CONFIG_V02)
    again = blob(layout, content, mediatypes.DOCKER_MODEL_FILE, org__cncf__model__filepath="config.json")
    weights = file_layer(layout, "model.safetensors", safetensors_bytes(), mediatypes.DOCKER_SAFETENSORS)
    manifest = Manifest(config, [again, weights])
    layout.push_manifest(manifest.to_bytes(), manifest.media_type, "v1")
    if flipped:
        flip_byte(layout.blob_path(config.digest), 60)
        assert str(config.digest) in refused(tmp_path, 3)
        return
    store = tmp_path / "store"
    call(store, "pull", f"oci:{tmp_path}/l:v1")
    (bundle,) = (store / "bundles" / "sha256").iterdir()
    assert (bundle / "config.json").read_bytes() == content


def test_every_blob_is_verified(tmp_path):
    """Docker Model Runner #848."""
    digest = model_of(tmp_path / "l", {"a.json": b"{}", "b/c.json": b"[]"})
    layout = LayoutRepository(tmp_path / "l")
    for number, item in enumerate(Manifest.parse(layout.manifest(digest)[1]).blobs):
        path = layout.blob_path(item.digest)
        original = path.read_bytes()
        flip_byte(path)
        store = tmp_path / f"store{number}"
        assert str(item.digest) in error_line(call(store, "pull", f"oci:{tmp_path}/l:v1", status=3))
        assert not list(store.glob("blobs/*/*"))
        path.write_bytes(original)


def test_damage_in_the_store_is_found_before_an_engine_sees_it(tmp_path):
    digest = model_of(tmp_path / "l", {})
    store = tmp_path / "store"
    reference = f"oci:{tmp_path}/l:v1"
    call(store, "pull", reference)
    manifest = LayoutRepository(store).blob_path(digest)
    flip_byte(manifest, 30)
    assert str(digest) in error_line(call(store, "inspect", reference, status=3))


def test_a_reference_never_becomes_a_path(tmp_path):
    """CVE-2024-37032."""
    for text in ("a/b@sha256:../../etc/passwd", "a/b@sha256:" + "A" * 64, "../a:v1", "a/b:../c"):
        assert "bad reference" in error_line(call(tmp_path / "store", "pull", text, status=2))
