"""Manifests and indexes: canonical when written, strict where a decision rests on them."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.errors import InvalidInput, Malformed, StowageError
from artifact.manifest import MAX_BYTES, Index, Manifest, load_json

CONFIG = Descriptor.of(b"{}", mediatypes.MODEL_CONFIG)
LAYER = Descriptor.of(b"weights", mediatypes.MODEL_WEIGHT, {"b": "2", "a": "1"})
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=20,
)
manifest_keys = st.sampled_from(
    ["schemaVersion", "mediaType", "config", "layers", "manifests", "subject", "annotations", "artifactType"]
)


def test_written_manifest_reads_back_and_is_canonical() -> None:
    manifest = Manifest(CONFIG, (LAYER,), mediatypes.MODEL_MANIFEST, subject=LAYER, annotations={"z": "1", "a": "é"})
    raw = manifest.to_bytes()
    assert Manifest.parse(raw, mediatypes.IMAGE_MANIFEST) == manifest
    reordered = Manifest(CONFIG, (LAYER,), mediatypes.MODEL_MANIFEST, subject=LAYER, annotations={"a": "é", "z": "1"})
    assert reordered.to_bytes() == raw
    assert b": " not in raw and raw.index(b'"a":"1"') < raw.index(b'"b":"2"')


def test_index_round_trip() -> None:
    index = Index((LAYER, CONFIG), annotations={"k": "v"})
    assert Index.parse(index.to_bytes()) == index


@given(st.dictionaries(manifest_keys, json_values))
def test_arbitrary_documents_are_read_or_refused(value: dict[str, Any]) -> None:
    raw = json.dumps({"schemaVersion": 2, **value}).encode()
    for kind in (Manifest, Index):
        try:
            kind.parse(raw)
        except (Malformed, InvalidInput) as error:
            assert str(error)


@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_refused_cleanly(raw: bytes) -> None:
    try:
        Manifest.parse(raw)
    except StowageError:
        return
    raise AssertionError("random bytes are no manifest")


def changed(**fields: Any) -> bytes:
    value = json.loads(Manifest(CONFIG, (LAYER,)).to_bytes())
    value.update(fields)
    return json.dumps({key: item for key, item in value.items() if item is not ...}).encode()


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (changed(manifests=[]), "index"),
        (changed(schemaVersion=1), "schemaVersion"),
        (changed(mediaType=mediatypes.IMAGE_INDEX), "differs"),
        (changed(layers=...), "layers"),
        (changed(layers={}), "layers"),
        (changed(config=None), "descriptor"),
        (changed(annotations={"a": 1}), "annotations"),
        (changed(subject=[]), "descriptor"),
        (b'{"schemaVersion":2,"schemaVersion":2}', "twice"),
        (b'{"schemaVersion":NaN}', "NaN"),
        (b"[" * 100_000, "JSON"),
        (b"\xff", "JSON"),
        (changed(artifactType="\ud800"), "surrogates"),
        (changed(annotations={"\udfff": "a"}), "surrogates"),
        (changed(layers=[LAYER.to_json(), {**LAYER.to_json(), "size": 8}]), "two sizes: 7 and 8"),
        (changed(layers=[{**CONFIG.to_json(), "size": 3}]), "two sizes: 2 and 3"),
        (b"[]", "object"),
    ],
)
def test_refusals_say_why(raw: bytes, complaint: str) -> None:
    with pytest.raises(Malformed, match=complaint):
        Manifest.parse(raw, mediatypes.IMAGE_MANIFEST)


def test_escapes_of_whole_characters_are_read() -> None:
    raw = changed(artifactType="\N{GRINNING FACE} \\ud800")
    assert b"\\ud83d" in raw and Manifest.parse(raw).artifact_type == "\N{GRINNING FACE} \\ud800"


def test_a_document_that_reads_as_both_kinds_is_neither() -> None:
    """CVE-2021-41190."""
    both = changed(manifests=[], mediaType=...)
    with pytest.raises(Malformed):
        Manifest.parse(both)
    with pytest.raises(Malformed):
        Index.parse(both)


def test_size_is_bounded() -> None:
    with pytest.raises(Malformed, match="larger"):
        load_json(b" " * (MAX_BYTES + 1), "manifest")


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"mediaType": "a/b", "digest": "sha256:zz", "size": 1},
        {"mediaType": "a/b", "digest": str(CONFIG.digest), "size": -1},
        {"mediaType": "a/b", "digest": str(CONFIG.digest), "size": 2**63},
        {"mediaType": "a/b", "digest": str(CONFIG.digest), "size": 1.5},
        {"mediaType": "a/b", "digest": str(CONFIG.digest), "size": True},
        {"mediaType": "no slash", "digest": str(CONFIG.digest), "size": 1},
        {"mediaType": "a/b\r\nX: y", "digest": str(CONFIG.digest), "size": 1},
        {"mediaType": "a/b", "digest": str(CONFIG.digest), "size": 1, "artifactType": 3},
        "text",
    ],
)
def test_broken_descriptors_are_refused(value: Any) -> None:
    with pytest.raises(Malformed):
        Descriptor.from_json(value)


def test_blobs_names_each_digest_once() -> None:
    same = Descriptor(mediatypes.MODEL_DOC, CONFIG.digest, CONFIG.size)
    assert [item.digest for item in Manifest(CONFIG, (same, LAYER)).blobs] == [CONFIG.digest, LAYER.digest]
