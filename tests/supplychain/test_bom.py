"""The bill of materials: CycloneDX to CycloneDX's own validator, complete, and the same every time."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.manifest import Manifest, canonical_json
from artifact.modelconfig import ModelConfig
from supplychain.bom import SPDX_IDS, Training, bill_of_materials

SUBJECT = Digest.of(b"manifest")
FILES = {"model.gguf": b"weights", "config.json": b"{}", "README.md": b"# Model"}
CONFIG = ModelConfig(
    format="gguf",
    precision="Q4_K_M",
    parameters=4_000_000_000,
    architecture="qwen3",
    name="Qwen3 4B",
    context_length=40960,
    licenses=("Apache-2.0", "LicenseRef-acme"),
    source_url="https://huggingface.co/Qwen/Qwen3-4B",
    revision="0123456789abcdef0123456789abcdef01234567",
)
TRAINING = Training("text-generation", ("HuggingFaceTB/smollm-corpus", "a name with spaces"))


def manifest(files: dict[str, bytes] = FILES) -> Manifest:
    layers = [
        Descriptor.of(content, mediatypes.MODEL_WEIGHT, {mediatypes.FILEPATH: path}) for path, content in files.items()
    ]
    return Manifest(Descriptor.of(b"{}", mediatypes.MODEL_CONFIG), layers)


def bill(
    config: ModelConfig = CONFIG, training: Training = TRAINING, subject: Digest = SUBJECT, **more: Any
) -> dict[str, Any]:
    raw = canonical_json(bill_of_materials(subject, manifest(), config, training, **more))
    validate(raw)
    value = json.loads(raw)
    assert isinstance(value, dict)
    return value


def validate(raw: bytes) -> None:
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(raw.decode())
    assert error is None, error


def test_the_validator_here_refuses_what_is_not() -> None:
    value = bill()
    value["metadata"]["component"]["modelCard"]["invented"] = 1
    with pytest.raises(AssertionError):
        validate(canonical_json(value))


def test_the_model() -> None:
    value = bill()
    assert (value["bomFormat"], value["specVersion"], value["version"]) == ("CycloneDX", "1.6", 1)
    component = value["metadata"]["component"]
    assert component["type"] == "machine-learning-model"
    assert (component["name"], component["version"]) == ("Qwen3 4B", CONFIG.revision)
    assert component["hashes"] == [{"alg": "SHA-256", "content": SUBJECT.hex}]
    assert component["licenses"] == [{"license": {"id": "Apache-2.0"}}, {"license": {"name": "LicenseRef-acme"}}]
    assert component["externalReferences"] == [{"type": "distribution", "url": CONFIG.source_url}]
    assert component["modelCard"]["modelParameters"] == {
        "task": "text-generation",
        "modelArchitecture": "qwen3",
        "datasets": [
            {"type": "dataset", "name": "HuggingFaceTB/smollm-corpus"},
            {"type": "dataset", "name": "a name with spaces"},
        ],
        "inputs": [{"format": "text"}],
        "outputs": [{"format": "text"}],
    }
    assert component["modelCard"]["properties"] == [
        {"name": "dev.stowage.format", "value": "gguf"},
        {"name": "dev.stowage.precision", "value": "Q4_K_M"},
        {"name": "dev.stowage.quantization", "value": "Q4_K_M"},
    ]
    assert component["properties"] == [
        {"name": "dev.stowage.parameters", "value": "4000000000"},
        {"name": "dev.stowage.context-length", "value": "40960"},
    ]


def test_every_file_with_its_hash() -> None:
    value = bill()
    assert {item["name"]: item["hashes"] for item in value["components"]} == {
        path: [{"alg": "SHA-256", "content": Digest.of(content).hex}] for path, content in FILES.items()
    }
    assert {item["type"] for item in value["components"]} == {"file"}
    assert [item["properties"][0]["value"] for item in value["components"]] == ["7", "2", "7"]
    references = [item["bom-ref"] for item in value["components"]]
    assert len(set(references)) == len(FILES)
    assert value["dependencies"][0] == {"ref": "model", "dependsOn": references}


def test_a_float_precision_is_no_quantisation() -> None:
    for precision in ("F32", "F16", "BF16", "F64"):
        names = [
            item["name"]
            for item in bill(replace(CONFIG, precision=precision))["metadata"]["component"]["modelCard"]["properties"]
        ]
        assert names == ["dev.stowage.format", "dev.stowage.precision"]


def test_the_same_every_time_and_no_clock() -> None:
    assert bill() == bill()
    assert "timestamp" not in bill()["metadata"]
    assert bill(timestamp="2026-01-02T03:04:05Z")["metadata"]["timestamp"] == "2026-01-02T03:04:05Z"


def test_the_serial_number_follows_from_the_artifact_and_what_is_said_of_it() -> None:
    bills = [
        bill(),
        bill(subject=Digest.of(b"other")),
        bill(replace(CONFIG, name="x")),
        bill(timestamp="2026-01-02T03:04:05Z"),
    ]
    serials = [value["serialNumber"] for value in bills]
    assert len(set(serials)) == len(serials)
    assert uuid.UUID(serials[0].removeprefix("urn:uuid:")).version == 5


NASTY = ["", "x" * 5000, "\u202e\x1b[31m", "urn:cdx:x", "'\"<>&", "日本語"]


@pytest.mark.parametrize("text", NASTY)
def test_nothing_a_checkpoint_says_makes_it_invalid(text: str) -> None:
    config = replace(
        CONFIG,
        name=text,
        architecture=text,
        licenses=tuple(filter(None, (text, "Apache 2.0"))),
        source_url=text,
        revision=text,
        precision=text or "F16",
    )
    training = Training(text, (text,))
    value = bill_of_materials(SUBJECT, manifest({text or "x": b"1", f"{text}.json": b"2"}), config, training)
    validate(canonical_json(value))


def test_a_bare_artifact() -> None:
    value = bill_of_materials(SUBJECT, manifest({}), ModelConfig("gguf", "F16"))
    validate(canonical_json(value))
    assert value["metadata"]["component"]["name"] == "model"


def test_every_identifier_is_one_the_schema_lists() -> None:
    ids: Sequence[str] = sorted(SPDX_IDS)
    assert [
        item["license"] for item in bill(replace(CONFIG, licenses=tuple(ids)))["metadata"]["component"]["licenses"]
    ] == [{"id": name} for name in ids]


def test_a_sha512_artifact() -> None:
    component = bill(subject=Digest("sha512", "ab" * 64))["metadata"]["component"]
    assert component["hashes"] == [{"alg": "SHA-512", "content": "ab" * 64}]
