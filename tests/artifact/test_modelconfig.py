"""The model config: ModelPack written, ModelPack and Docker's read, contradictions refused."""

import json
from dataclasses import replace
from typing import Any

import pytest

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.errors import Malformed
from artifact.manifest import Manifest
from artifact.modelconfig import ModelConfig

LAYER = Descriptor.of(b"weights", mediatypes.MODEL_WEIGHT)
MODEL = ModelConfig(
    format="gguf",
    precision="Q4_K_M",
    parameters=4_022_468_096,
    architecture="qwen3",
    name="qwen3-4b",
    family="qwen3",
    context_length=40960,
    licenses=("Apache-2.0",),
    source_url="https://example.org/qwen3",
    revision="abc",
    created="2026-01-01T00:00:00Z",
)


def manifest_for(model: ModelConfig, **annotations: str) -> tuple[Manifest, bytes]:
    raw = model.to_bytes([LAYER])
    config = Descriptor.of(raw, mediatypes.MODEL_CONFIG)
    return Manifest(config, (LAYER,), mediatypes.MODEL_MANIFEST, annotations=model.annotations() | annotations), raw


@pytest.mark.parametrize(
    "model",
    [
        MODEL,
        replace(MODEL, precision="F16"),
        replace(MODEL, format="safetensors", precision="BF16", context_length=None),
    ],
)
def test_what_is_written_reads_back(model: ModelConfig) -> None:
    assert ModelConfig.read(*manifest_for(model)) == model


def test_the_modelpack_fields_stand_where_the_schema_has_them() -> None:
    value = json.loads(MODEL.to_bytes([LAYER]))
    assert value["descriptor"]["createdAt"] == "2026-01-01T00:00:00Z"
    assert value["descriptor"]["licenses"] == ["Apache-2.0"]
    assert value["config"]["format"] == "gguf"
    assert value["config"]["paramSize"] == "4B"
    assert value["config"]["quantization"] == "Q4_K_M"
    assert value["modelfs"] == {"type": "layers", "diffIds": [str(LAYER.digest)]}
    assert set(value) == {"descriptor", "config", "modelfs"}
    half = json.loads(replace(MODEL, format="safetensors", precision="BF16").to_bytes([LAYER]))
    assert half["config"]["precision"] == "bfloat16" and "quantization" not in half["config"]


def test_an_annotation_that_contradicts_the_config_is_refused() -> None:
    with pytest.raises(Malformed, match="precision"):
        ModelConfig.read(*manifest_for(MODEL, **{mediatypes.PRECISION: "F16"}))
    with pytest.raises(Malformed, match="format"):
        ModelConfig.read(*manifest_for(MODEL, **{mediatypes.FORMAT: "safetensors"}))


def test_diff_ids_must_be_the_layers() -> None:
    manifest, raw = manifest_for(MODEL)
    other = Descriptor.of(b"other", mediatypes.MODEL_WEIGHT)
    with pytest.raises(Malformed, match="diffIds"):
        ModelConfig.read(replace(manifest, layers=(other,)), raw)


@pytest.mark.parametrize("version", [mediatypes.DOCKER_MODEL_CONFIG_V01, mediatypes.DOCKER_MODEL_CONFIG_V02])
def test_docker_configs_are_read(version: str) -> None:
    value = {
        "config": {"format": "gguf", "quantization": "Q4_K_M", "architecture": "llama", "context_size": 8192},
        "descriptor": {"created": "2026-01-01T00:00:00Z"},
        "rootfs": {"type": "rootfs", "diff_ids": [str(LAYER.digest)]},
    }
    raw = json.dumps(value).encode()
    model = ModelConfig.read(Manifest(Descriptor.of(raw, version), (LAYER,)), raw)
    assert (model.format, model.precision, model.architecture, model.context_length) == (
        "gguf",
        "Q4_K_M",
        "llama",
        8192,
    )


@pytest.mark.parametrize(
    "change",
    [{"config": []}, {"config": {"format": 1}}, {"config": {"format": "onnx"}}, {"descriptor": "x"}, {"modelfs": 3}],
)
def test_broken_configs_are_refused(change: dict[str, Any]) -> None:
    manifest, raw = manifest_for(MODEL)
    value = json.loads(raw) | change
    with pytest.raises(Malformed):
        ModelConfig.read(replace(manifest, annotations={}), json.dumps(value).encode())


def test_an_image_is_no_model() -> None:
    raw = b"{}"
    with pytest.raises(Malformed, match="not a model"):
        ModelConfig.read(Manifest(Descriptor.of(raw, mediatypes.IMAGE_CONFIG), ()), raw)
