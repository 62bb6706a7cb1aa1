"""A tag may not claim what a model artifact says it is not; other artifacts are none of admission's business."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.registry.pushing import (
    INDEX,
    MANIFEST,
    descriptor,
    error_code,
    push_blob,
    push_image,
    put_manifest,
    sha256,
)

WEIGHTS = b"not really weights"
MODEL = "application/vnd.cncf.model.manifest.v1+json"
CONFIG = "application/vnd.cncf.model.config.v1+json"


def push_model(
    client: httpx.Client,
    repo: str,
    tag: str,
    config: dict[str, Any],
    annotations: dict[str, str],
    diff_ids: list[str] | None = None,
) -> httpx.Response:
    """A ModelPack artifact of one weight file."""
    modelfs = {"type": "layers", "diffIds": [sha256(WEIGHTS)] if diff_ids is None else diff_ids}
    raw_config = json.dumps({"descriptor": {}, "config": config, "modelfs": modelfs}).encode()
    for blob in (WEIGHTS, raw_config):
        push_blob(client, repo, blob)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": MODEL,
        "config": {"mediaType": CONFIG, "digest": sha256(raw_config), "size": len(raw_config)},
        "layers": [
            {"mediaType": "application/vnd.cncf.model.weight.v1.raw", "digest": sha256(WEIGHTS), "size": len(WEIGHTS)}
        ],
        "annotations": annotations,
    }
    return put_manifest(client, repo, json.dumps(manifest).encode(), tag)


BF16 = {"format": "safetensors", "precision": "bfloat16", "paramSize": "4B"}
Q4 = {"format": "gguf", "quantization": "Q4_K_M", "paramSize": "4B"}
FOUR = {"dev.stowage.parameters": "4000000000"}


@pytest.mark.parametrize(
    ("tag", "config", "annotations"),
    [
        ("4B-BF16-safetensors", BF16, {"dev.stowage.precision": "BF16", "dev.stowage.format": "safetensors", **FOUR}),
        ("4B-BF16-safetensors", BF16, {}),
        ("4B-Q4_K_M", Q4, FOUR),
        ("latest", Q4, FOUR),
        ("v1.2", BF16, {}),
        ("4B-Q4_K_M", {"format": "onnx"}, {}),
    ],
)
def test_admitted(
    client: httpx.Client, repo: str, tag: str, config: dict[str, Any], annotations: dict[str, str]
) -> None:
    answer = push_model(client, repo, tag, config, annotations)
    assert answer.status_code == 201, answer.text


@pytest.mark.parametrize(
    ("tag", "config", "annotations", "said"),
    [
        ("4B-Q4_K_M", BF16, {}, "Q4_K_M"),
        ("4B-BF16", BF16, {}, "gguf"),
        ("4B-Q8_0", Q4, {}, "Q8_0"),
        ("4B-F16-safetensors", BF16, {"dev.stowage.precision": "BF16"}, "F16"),
        ("7B-Q4_K_M", Q4, FOUR, "7B"),
        ("latest", BF16, {"dev.stowage.precision": "F16"}, "dev.stowage.precision"),
        ("latest", Q4, {"dev.stowage.format": "safetensors"}, "dev.stowage.format"),
        ("latest", {"format": "onnx"}, {"dev.stowage.precision": "F16"}, "format"),
    ],
)
def test_refused(
    client: httpx.Client, repo: str, tag: str, config: dict[str, Any], annotations: dict[str, str], said: str
) -> None:
    """400 MANIFEST_INVALID with the reason; neither tag nor manifest is stored."""
    answer = push_model(client, repo, tag, config, annotations)
    assert (answer.status_code, error_code(answer)) == (400, "MANIFEST_INVALID")
    assert said in answer.json()["errors"][0]["message"]
    assert client.get(f"/v2/{repo}/tags/list").json()["tags"] == []


def test_layers_that_are_not_the_configs(client: httpx.Client, repo: str) -> None:
    answer = push_model(client, repo, "latest", Q4, {"dev.stowage.precision": "Q4_K_M"}, [sha256(b"other")])
    assert (answer.status_code, error_code(answer)) == (400, "MANIFEST_INVALID")


@pytest.mark.parametrize("artifact_type", [MODEL, None])
def test_what_only_its_layers_and_annotations_call_a_model(
    client: httpx.Client, repo: str, artifact_type: str | None
) -> None:
    """A config of another type makes it no less a model."""
    for blob in (WEIGHTS, b"{}"):
        push_blob(client, repo, blob)
    layer = {"mediaType": "application/vnd.docker.ai.gguf.v3", "digest": sha256(WEIGHTS), "size": len(WEIGHTS)}
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": artifact_type or "application/x",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": sha256(b"{}"), "size": 2},
        "layers": [layer],
        "annotations": {"dev.stowage.precision": "F16", "dev.stowage.format": "gguf"},
    }
    raw = json.dumps(manifest).encode()
    answer = put_manifest(client, repo, raw, "4B-Q4_K_M")
    assert (answer.status_code, error_code(answer)) == (400, "MANIFEST_INVALID")
    assert put_manifest(client, repo, raw, "4B-F16").status_code == 201


def test_no_index_behind_a_precision_tag(client: httpx.Client, repo: str) -> None:
    """An index states no precision: its tag would be believed unchecked. One of images may have any tag."""
    assert push_model(client, repo, "latest", Q4, FOUR).status_code == 201
    model = client.get(f"/v2/{repo}/manifests/latest").content
    image = push_image(client, repo, "image")
    of_model, of_image = (
        json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor(raw, MANIFEST)]}).encode()
        for raw in (model, image)
    )
    answer = put_manifest(client, repo, of_model, "4B-Q4_K_M", INDEX)
    assert (answer.status_code, error_code(answer)) == (400, "MANIFEST_INVALID")
    assert put_manifest(client, repo, of_model, "list", INDEX).status_code == 201
    nested = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor(of_model, INDEX)]}).encode()
    assert put_manifest(client, repo, nested, "4B-Q4_K_M", INDEX).status_code == 400
    assert put_manifest(client, repo, of_image, "4B-Q4_K_M", INDEX).status_code == 201


def test_what_an_index_lists_over_and_over_is_read_once(client: httpx.Client, repo: str) -> None:
    """Three levels of 150 entries would be millions of reads. Nor are levels without end followed."""
    raw, kind = push_image(client, repo, None), MANIFEST
    for level in range(8):
        entries = [descriptor(raw, kind)] * (150 if level < 3 else 1)
        raw, kind = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode(), INDEX
        assert put_manifest(client, repo, raw, "list", INDEX).status_code == 201
        answer = put_manifest(client, repo, raw, "4B-Q4_K_M", INDEX)
        assert answer.status_code == (201 if level < 6 else 400), (level, answer.text)
    assert error_code(answer) == "MANIFEST_INVALID"


def test_tags_beside_a_digest_are_judged_too(client: httpx.Client, repo: str) -> None:
    pushed = push_model(client, repo, "latest", Q4, FOUR)
    raw = client.get(f"/v2/{repo}/manifests/latest").content
    assert pushed.status_code == 201
    answer = put_manifest(client, repo, raw, sha256(raw), tag=["fine", "4B-F16"])
    assert (answer.status_code, error_code(answer)) == (400, "MANIFEST_INVALID")
    assert client.get(f"/v2/{repo}/tags/list").json()["tags"] == ["latest"]
