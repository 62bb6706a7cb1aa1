"""Provenance: what is in it, that it is SLSA's, and that it can be read back."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict, ParseError
from hypothesis import given
from hypothesis import strategies as st
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from jsonschema import Draft202012Validator, ValidationError

from artifact.digest import Digest
from artifact.errors import Malformed
from artifact.manifest import canonical_json
from supplychain.provenance import LOCAL, Build, Provenance, SourceFile

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DIGEST = Digest.of(b"weights")
LOCAL_PACK = Provenance(
    build=Build.PACK,
    source=LOCAL,
    format="safetensors",
    precision="BF16",
    layout="modelpack",
    created="1970-01-01T00:00:00Z",
    files=(SourceFile("model.safetensors", DIGEST),),
    tools={"stowage": "0.1.0"},
)
FULL = replace(
    LOCAL_PACK,
    build=Build.QUANTIZE,
    source="hf://acme/model",
    source_url="https://huggingface.co/acme/model",
    revision=COMMIT,
    format="gguf",
    precision="Q4_K_M",
    imatrix="imatrix.gguf",
    created="2026-01-02T03:04:05Z",
    finished="2026-01-02T03:04:05Z",
    file_filter=("*.json", "!b*"),
    allowed=("python-code", "auto-map"),
    files=(SourceFile("model 1.safetensors", DIGEST), SourceFile("imatrix.gguf", Digest.of(b"imatrix"))),
    tools={"stowage": "0.1.0", "numpy": "2.0"},
    builder="https://ci.example/packager",
    builder_version={"stowage": "0.1.0"},
)

_DESCRIPTOR = {
    "type": "object",
    "additionalProperties": False,
    "anyOf": [{"required": ["uri"]}, {"required": ["digest"]}, {"required": ["content"]}],
    "properties": {
        "uri": {"type": "string", "format": "uri"},
        "digest": {"type": "object", "additionalProperties": {"type": "string", "pattern": "^[0-9a-f]+$"}},
        "name": {"type": "string"},
        "downloadLocation": {"type": "string", "format": "uri"},
        "mediaType": {"type": "string"},
        "content": {"type": "string"},
        "annotations": {"type": "object"},
    },
}
_TIME = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"}
SLSA = Draft202012Validator(
    {
        "type": "object",
        "required": ["buildDefinition", "runDetails"],
        "additionalProperties": False,
        "properties": {
            "buildDefinition": {
                "type": "object",
                "required": ["buildType", "externalParameters"],
                "additionalProperties": False,
                "properties": {
                    "buildType": {"type": "string", "pattern": "^https://"},
                    "externalParameters": {"type": "object"},
                    "internalParameters": {"type": "object"},
                    "resolvedDependencies": {"type": "array", "items": _DESCRIPTOR},
                },
            },
            "runDetails": {
                "type": "object",
                "required": ["builder"],
                "additionalProperties": False,
                "properties": {
                    "builder": {
                        "type": "object",
                        "required": ["id"],
                        "additionalProperties": False,
                        "properties": {
                            "id": {"type": "string", "pattern": "^https://"},
                            "builderDependencies": {"type": "array", "items": _DESCRIPTOR},
                            "version": {"type": "object", "additionalProperties": {"type": "string"}},
                        },
                    },
                    "metadata": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {"invocationId": {"type": "string"}, "startedOn": _TIME, "finishedOn": _TIME},
                    },
                    "byproducts": {"type": "array", "items": _DESCRIPTOR},
                },
            },
        },
    }
)
"""The fields of slsa.dev/spec/v1.0/provenance, and no others."""


def official(predicate: dict[str, Any]) -> None:
    """Read with in-toto's own definition of the predicate, which refuses fields it does not know."""
    ParseDict(predicate, provenance_pb2.Provenance())


@pytest.mark.parametrize("provenance", [LOCAL_PACK, FULL])
def test_it_is_slsa_provenance(provenance: Provenance) -> None:
    predicate = json.loads(canonical_json(provenance.to_predicate()))
    SLSA.validate(predicate)
    official(predicate)


def test_the_validators_here_refuse_what_is_not() -> None:
    for path, value in ((("buildDefinition", "x"), 1), (("runDetails", "builder", "x"), 1), (("runDetails", "x"), 1)):
        predicate = json.loads(canonical_json(FULL.to_predicate()))
        inner = predicate
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        with pytest.raises(ValidationError):
            SLSA.validate(predicate)
        with pytest.raises(ParseError):
            official(predicate)


def test_what_it_says() -> None:
    predicate = FULL.to_predicate()
    assert predicate["buildDefinition"] == {
        "buildType": "https://stowage.dev/buildtypes/quantize/v1",
        "externalParameters": {
            "source": "hf://acme/model",
            "sourceURL": "https://huggingface.co/acme/model",
            "revision": COMMIT,
            "format": "gguf",
            "precision": "Q4_K_M",
            "imatrix": "imatrix.gguf",
            "layout": "modelpack",
            "fileFilter": ["*.json", "!b*"],
            "created": "2026-01-02T03:04:05Z",
            "allowedFindings": ["auto-map", "python-code"],
        },
        "internalParameters": {"tools": {"numpy": "2.0", "stowage": "0.1.0"}},
        "resolvedDependencies": [
            {"uri": "https://huggingface.co/acme/model", "digest": {"gitCommit": COMMIT}},
            {
                "name": "model 1.safetensors",
                "digest": {"sha256": DIGEST.hex},
                "uri": f"https://huggingface.co/acme/model/resolve/{COMMIT}/model%201.safetensors",
            },
            {
                "name": "imatrix.gguf",
                "digest": {"sha256": Digest.of(b"imatrix").hex},
                "uri": f"https://huggingface.co/acme/model/resolve/{COMMIT}/imatrix.gguf",
            },
        ],
    }
    assert predicate["runDetails"] == {
        "builder": {"id": "https://ci.example/packager", "version": {"stowage": "0.1.0"}},
        "metadata": {"finishedOn": "2026-01-02T03:04:05Z"},
    }


def test_without_a_stated_time_there_is_no_clock_in_it() -> None:
    assert "metadata" not in LOCAL_PACK.to_predicate()["runDetails"]


def test_nothing_allowed_is_said_as_such() -> None:
    assert LOCAL_PACK.to_predicate()["buildDefinition"]["externalParameters"]["allowedFindings"] == []


@pytest.mark.parametrize("provenance", [LOCAL_PACK, FULL])
def test_it_can_be_read_back(provenance: Provenance) -> None:
    predicate = json.loads(canonical_json(provenance.to_predicate()))
    assert Provenance.parse(predicate) == replace(provenance, allowed=tuple(sorted(provenance.allowed)))
    assert Provenance.parse(predicate).to_predicate() == predicate


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("buildDefinition", "buildType", "https://actions.github.io/buildtypes/workflow/v1"), "build type"),
        (("buildDefinition", "buildType", None), "build type"),
        (("buildDefinition", "resolvedDependencies", {}), "resolvedDependencies"),
        (("buildDefinition", "resolvedDependencies", [7]), "digest"),
        (("buildDefinition", "resolvedDependencies", [{"name": "x"}]), "sha256"),
        (("buildDefinition", "resolvedDependencies", [{"name": "x", "digest": {"sha256": "../x"}}]), "sha256"),
        (("buildDefinition", "resolvedDependencies", [{"digest": {"sha256": "0" * 64}}]), "name"),
        (("buildDefinition", "externalParameters", []), "externalParameters"),
        (("buildDefinition", "externalParameters", {}), "source"),
        (("runDetails", "builder", {}), "id"),
        (("runDetails", "builder", {"id": 7}), "id"),
        (("runDetails", "builder", {"id": "https://x", "version": {"a": 1}}), "version"),
        (("buildDefinition", "internalParameters", {"tools": {"a": 1}}), "tools"),
    ],
)
def test_what_cannot_be_repeated_is_said_so(change: tuple[str, str, Any], message: str) -> None:
    predicate = json.loads(canonical_json(FULL.to_predicate()))
    outer, inner, value = change
    predicate[outer][inner] = value
    with pytest.raises(Malformed, match=message):
        Provenance.parse(predicate)


@pytest.mark.parametrize("key", ["format", "precision", "layout", "created", "source", "revision", "fileFilter"])
def test_a_parameter_of_another_type(key: str) -> None:
    predicate = json.loads(canonical_json(FULL.to_predicate()))
    predicate["buildDefinition"]["externalParameters"][key] = {"x": 1}
    with pytest.raises(Malformed, match=key):
        Provenance.parse(predicate)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(JSON, st.sampled_from(["buildDefinition", "runDetails"]), st.booleans())
def test_arbitrary_predicates(value: Any, key: str, whole: bool) -> None:
    predicate = json.loads(canonical_json(FULL.to_predicate()))
    if isinstance(predicate[key], dict) and isinstance(value, dict) and not whole:
        predicate[key].update(value)
    else:
        predicate[key] = value
    try:
        Provenance.parse(predicate)
    except Malformed as error:
        str(error).encode()
