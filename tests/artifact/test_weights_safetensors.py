"""Safetensors headers: what the field's own writer writes is read back; lies, bombs and holes are `Malformed`."""

from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from artifact.errors import Malformed
from artifact.source import bytes_source
from artifact.weights import safetensors
from artifact.weights.tensor import WeightFile


def file_of(header: object, data: int = 0) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(data)


def entry(begin: int, end: int, dtype: str = "F32", shape: list | None = None) -> dict:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


def read(raw: bytes) -> WeightFile:
    return safetensors.read_source(bytes_source(raw), len(raw), "model.safetensors")


DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I8": np.int8, "BOOL": np.bool_}


@given(
    tensors=st.dictionaries(
        st.from_regex(r"[a-z]{1,8}(\.[0-9a-z]{1,4}){0,2}", fullmatch=True),
        st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=4)),
        max_size=8,
    ),
    metadata=st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), st.text(st.characters(codec="utf-8"))),
)
@settings(max_examples=60, deadline=None)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, tensors: dict, metadata: dict[str, str]) -> None:
    path = tmp_path_factory.mktemp("safetensors") / "model.safetensors"
    save_file(
        {name: np.zeros(shape, DTYPES[dtype]) for name, (dtype, shape) in tensors.items()}, path, metadata or None
    )
    file = safetensors.read_header(path)
    assert file.metadata == metadata
    assert {t.name: (t.dtype, list(t.shape)) for t in file.tensors} == tensors
    assert file.size == path.stat().st_size
    assert [t.offset for t in file.tensors] == sorted(t.offset for t in file.tensors)


def test_offsets_are_from_the_start_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": np.arange(6, dtype=np.float32), "b": np.full((2, 2), 7, dtype=np.int16)}, path)
    raw = path.read_bytes()
    by_name = {t.name: t for t in safetensors.read_header(path).tensors}
    a, b = by_name["a"], by_name["b"]
    assert raw[a.offset : a.offset + a.length] == np.arange(6, dtype=np.float32).tobytes()
    assert raw[b.offset : b.offset + b.length] == np.full((2, 2), 7, dtype=np.int16).tobytes()


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_malformed_or_read(raw: bytes) -> None:
    for candidate in (raw, file_of(raw), file_of(b"{" + raw)):
        try:
            file = read(candidate)
        except Malformed:
            continue
        assert file.size == len(candidate)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "F4", "X"]) | JSON,
        "shape": st.lists(st.integers(-1, 9), max_size=2) | JSON,
        "data_offsets": st.lists(st.integers(0, 40), min_size=2, max_size=2) | JSON,
    }
)


@given(st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), ENTRY | JSON), st.integers(0, 40))
@settings(max_examples=300)
def test_whatever_is_accepted_the_safetensors_package_accepts_too(header: dict, data: int) -> None:
    raw = file_of(json.dumps(header).encode(), data)
    try:
        file = read(raw)
    except Malformed as error:
        assert "\n" not in str(error)
        return
    assert sum(t.length for t in file.tensors) == data
    if not {t.dtype for t in file.tensors} & {"F4"}:
        try:
            assert set(load(raw)) == {t.name for t in file.tensors}
        except SafetensorError as error:  # pragma: no cover - shows the case
            pytest.fail(f"accepted here, refused there: {error}")


BAD = {
    "empty": b"",
    "short": b"\x02\0\0\0\0\0\0\0",
    "header longer than the file": struct.pack("<Q", 2**40) + b"{}",
    "header length of 2^64-1": struct.pack("<Q", 2**64 - 1) + b"{}",
    "header bomb": struct.pack("<Q", safetensors.MAX_HEADER + 1) + b"{" + b" " * safetensors.MAX_HEADER,
    "deep nesting": file_of(b'{"a":' + b"[" * 200_000),
    "header is a list": file_of([]),
    "not JSON": file_of(b"{nonsense}"),
    "not UTF-8": file_of(b'{"\xff":1}'),
    "a key twice": file_of(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        4,
    ),
    "a field twice": file_of(b'{"a":{"dtype":"U8","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', 4),
    "metadata twice": file_of(b'{"__metadata__":{"x":"1"},"__metadata__":{}}'),
    "metadata with numbers": file_of({"__metadata__": {"x": 1}}),
    "unknown field": file_of({"a": entry(0, 4) | {"url": "x"}}, 4),
    "missing field": file_of({"a": {"dtype": "F32", "shape": [1]}}, 4),
    "unknown type": file_of({"a": entry(0, 4, "F128")}, 4),
    "type is a list": file_of({"a": entry(0, 4) | {"dtype": ["F32"]}}, 4),
    "shape against offsets": file_of({"a": entry(0, 8, shape=[1])}, 8),
    "negative dimension": file_of({"a": entry(0, 4, shape=[-1, -1])}, 4),
    "fractional dimension": file_of({"a": entry(0, 4, shape=[1.0])}, 4),
    "boolean dimension": file_of({"a": entry(0, 4, shape=[True])}, 4),
    "shape overflows": file_of({"a": entry(0, 0, shape=[2**62, 2**62, 0])}),
    "integer of ten thousand digits": file_of(
        b'{"a":{"dtype":"F32","shape":[' + b"9" * 10_000 + b'],"data_offsets":[0,4]}}', 4
    ),
    "end before begin": file_of({"a": entry(4, 0, shape=[1])}, 4),
    "behind the end": file_of({"a": entry(0, 8)}, 4),
    "overlap": file_of({"a": entry(0, 8), "b": entry(4, 12)}, 12),
    "same bytes twice": file_of({"a": entry(0, 4), "b": entry(0, 4)}, 4),
    "gap": file_of({"a": entry(0, 4), "b": entry(8, 12)}, 12),
    "gap at the start": file_of({"a": entry(4, 8)}, 8),
    "bytes of no tensor": file_of({"a": entry(0, 4)}, 8),
    "control characters in a name": file_of({"\x1b[2J": entry(0, 4)}, 4),
    "lone surrogate in a name": file_of(b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', 4),
    "six-bit elements that are no whole bytes": file_of({"a": entry(0, 1, "F6_E2M3", [1])}, 1),
}


@pytest.mark.parametrize("raw", BAD.values(), ids=BAD.keys())
@pytest.mark.timeout(20)
def test_a_lying_header_is_refused(raw: bytes) -> None:
    with pytest.raises(Malformed, match=r"^model\.safetensors: "):
        read(raw)


FLOODS = {"lists": b"[],", "objects": b'{"a":1},', "numbers": b"1234,", "texts": b'"abcd",'}


@pytest.mark.parametrize("value", FLOODS.values(), ids=FLOODS.keys())
def test_a_flood_of_values_is_refused_before_it_is_in_memory(value: bytes) -> None:
    raw = file_of(b'{"a":[' + value * ((safetensors.MAX_HEADER - 100) // len(value)) + b"0]}")
    tracemalloc.start()
    with pytest.raises(Malformed, match="more values than any model has"):
        read(raw)
    assert tracemalloc.get_traced_memory()[1] < 3 * safetensors.MAX_HEADER
    tracemalloc.stop()


def test_the_largest_genuine_headers_are_read() -> None:
    """As many tensors as fit, each of four dimensions, and what a trainer writes into the metadata as JSON."""
    count = 80_000
    tensors = {f"model.layers.{n}.mlp.weight": entry(4 * n, 4 * n + 4, shape=[1, 1, 1, 1]) for n in range(count)}
    tags = json.dumps([{f"a tag, {n}": [n]} for n in range(50_000)])
    file = read(file_of({"__metadata__": {"ss_tag_frequency": tags}} | tensors, 4 * count))
    assert (len(file.tensors), file.metadata["ss_tag_frequency"]) == (count, tags)


def test_every_type_of_the_safetensors_package_is_known() -> None:
    for dtype, bits in safetensors.BITS.items():
        raw = file_of({"a": entry(0, bits, dtype, [8])}, bits)
        assert read(raw).tensors[0].length == bits
        try:
            load(raw)
        except (SafetensorError, KeyError, AttributeError, TypeError) as error:
            assert "InvalidHeaderDeserialization" not in str(error), dtype
