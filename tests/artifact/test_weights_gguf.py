"""GGUF headers: what the field's own writer writes is read back, and nothing else gets further than `Malformed`."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import gguf as peer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifact.errors import Malformed
from artifact.source import bytes_source
from artifact.weights import gguf
from artifact.weights.gguf import LongArray
from artifact.weights.tensor import WeightFile


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def header(
    *values: tuple[str, int, bytes],
    tensors: tuple[tuple[str, tuple[int, ...], int, int], ...] = (),
    version: int = 3,
    keys: int | None = None,
    data: int = 0,
) -> bytes:
    """A GGUF file by hand: values as (key, value type, bytes), tensors as (name, dimensions, type, offset)."""
    out = bytearray(b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values) if keys is None else keys))
    for key, type_, raw in values:
        out += text(key) + struct.pack("<I", type_) + raw
    for name, dimensions, type_, offset in tensors:
        out += text(name) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, type_, offset)
    return bytes(out) + bytes(-len(out) % 32) + bytes(data)


def read(raw: bytes) -> WeightFile:
    return gguf.read_source(bytes_source(raw), len(raw), "model.gguf")


def test_every_tensor_type_of_the_gguf_package_is_known_with_its_block_size() -> None:
    """Newer ones than the package's are known from ggml-common.h."""
    expected = {int(type_): (type_.name, *peer.GGML_QUANT_SIZES[type_]) for type_ in peer.GGMLQuantizationType}
    assert {42: ("Q2_0", 64, 18)} | expected == gguf.TENSOR_TYPES


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "written.gguf"
    writer = peer.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_array("tokenizer.ggml.tokens", [f"token{i}" for i in range(1000)])
    writer.add_array("tokenizer.ggml.scores", [float(i) for i in range(1000)])
    writer.add_array("general.tags", ["text", "llm"])
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_float32("llama.rope.freq_base", 10000.0)
    writer.add_tensor("a.weight", np.arange(64 * 3, dtype=np.float32).reshape(3, 64))
    quantised = peer.quants.quantize(np.ones((2, 256), dtype=np.float32), peer.GGMLQuantizationType.Q8_0)
    writer.add_tensor("b.weight", quantised, raw_dtype=peer.GGMLQuantizationType.Q8_0)
    writer.add_tensor("c.bias", np.zeros(5, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_reads_what_the_gguf_package_writes(written: Path) -> None:
    file = gguf.read_header(written)
    theirs = peer.GGUFReader(written)
    assert file.format == "gguf"
    assert file.size == written.stat().st_size
    assert file.metadata["general.architecture"] == "llama"
    assert file.metadata["llama.context_length"] == 128
    assert file.metadata["tokenizer.ggml.add_bos_token"] is True
    assert file.metadata["general.tags"] == ("text", "llm")
    assert file.metadata["tokenizer.ggml.tokens"] == LongArray("string", 1000)
    assert file.metadata["tokenizer.ggml.scores"] == LongArray("float32", 1000)
    assert [(t.name, t.dtype, t.shape, t.offset, t.length) for t in file.tensors] == [
        (t.name, t.tensor_type.name, tuple(int(n) for n in reversed(t.shape)), t.data_offset, t.n_bytes)
        for t in theirs.tensors
    ]


def test_one_array_can_be_read_in_full(written: Path) -> None:
    assert gguf.read_array(written, "tokenizer.ggml.tokens") == tuple(f"token{i}" for i in range(1000))
    assert gguf.read_array(written, "tokenizer.ggml.scores") == tuple(float(i) for i in range(1000))
    with pytest.raises(KeyError):
        gguf.read_array(written, "tokenizer.ggml.merges")
    with pytest.raises(KeyError):
        gguf.read_array(written, "general.name")


@given(
    values=st.dictionaries(
        st.from_regex(r"[a-z]{1,10}\.[a-z_]{1,10}", fullmatch=True).filter(lambda key: not key.startswith("general.")),
        st.one_of(
            st.text(st.characters(blacklist_categories=["Cs"])), st.booleans(), st.integers(-(2**31), 2**31 - 1),
            st.lists(st.text(st.characters(blacklist_categories=["Cs"])), min_size=1, max_size=300),
        ),
        max_size=8,
    ),
    shapes=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), max_size=5),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, values: dict, shapes: list[list[int]]) -> None:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    writer = peer.GGUFWriter(path, "llama")
    for key, value in values.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_int32(key, value)
        elif isinstance(value, str):
            writer.add_key_value(key, value, peer.GGUFValueType.STRING)
        else:
            writer.add_array(key, value)
    for number, shape in enumerate(shapes):
        writer.add_tensor(f"t{number}", np.zeros(shape, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = gguf.read_header(path)
    for key, value in values.items():
        if isinstance(value, list):
            assert gguf.read_array(path, key) == tuple(value)
            assert file.metadata[key] == (tuple(value) if len(value) <= gguf.KEPT else LongArray("string", len(value)))
        else:
            assert file.metadata[key] == value
    assert {t.name: t.shape for t in file.tensors} == {f"t{n}": tuple(shape) for n, shape in enumerate(shapes)}


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_malformed_or_read(raw: bytes) -> None:
    for candidate in (raw, b"GGUF\x03\0\0\0" + raw):
        try:
            file = read(candidate)
        except Malformed:
            continue
        assert file.size == len(candidate)


@given(st.data())
@settings(max_examples=300)
def test_a_damaged_header_is_malformed_or_read(data: st.DataObject) -> None:
    raw = bytearray(
        header(
            ("general.architecture", 8, text("llama")),
            ("tokens", 9, struct.pack("<IQ", 8, 400) + text("x") * 400),
            ("scores", 9, struct.pack("<IQ", 6, 400) + bytes(1600)),
            tensors=(("a", (32, 2), 8, 0), ("b", (4,), 0, 96)),
            data=128,
        )
    )
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(4, len(raw) - 1))] = data.draw(st.integers(0, 255))
    candidate = bytes(raw[: data.draw(st.sampled_from([len(raw), len(raw) - 1, len(raw) // 2]))])
    try:
        file = read(candidate)
    except Malformed as error:
        assert "model.gguf" in str(error) and "\n" not in str(error)
    else:
        assert all(t.offset + t.length <= len(candidate) for t in file.tensors)


HUGE = 2**50
BAD = {
    "not gguf": b"GGML" + bytes(40),
    "empty": b"",
    "version 1": header(version=1),
    "big endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(8),
    "huge tensor count": b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0) + bytes(8),
    "huge key count": header(keys=HUGE),
    "more keys than there are": header(keys=3),
    "array of 2^50 elements": header(("x", 9, struct.pack("<IQ", 0, HUGE))),
    "array of 2^64-1 uint64": header(("x", 9, struct.pack("<IQ", 10, 2**64 - 1))),
    "array of 2^50 strings": header(("x", 9, struct.pack("<IQ", 8, HUGE))),
    "array of strings behind the end": header(("x", 9, struct.pack("<IQ", 8, 300) + text("y"))),
    "array with a string of 2^64-1 bytes": header(("x", 9, struct.pack("<IQQ", 8, 300, 2**64 - 1))),
    "nested array": header(("x", 9, struct.pack("<IQIQ", 9, 1, 9, 1))),
    "string of 2^63 bytes": header(("x", 8, struct.pack("<Q", 2**63))),
    "key of 2^40 bytes": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**40),
    "string that is not UTF-8": header(("x", 8, struct.pack("<Q", 1) + b"\xff")),
    "control characters in a key": header(("\x1b[2J", 4, bytes(4))),
    "key twice": header(("x", 4, bytes(4)), ("x", 4, bytes(4))),
    "unknown value type": header(("x", 13, bytes(4))),
    "boolean of 7": header(("x", 7, b"\x07")),
    "alignment zero": header(("general.alignment", 4, bytes(4))),
    "alignment 12": header(("general.alignment", 4, struct.pack("<I", 12))),
    "alignment as text": header(("general.alignment", 8, text("32"))),
    "tensor twice": header(tensors=(("a", (8,), 0, 0), ("a", (8,), 0, 32)), data=64),
    "unknown tensor type": header(tensors=(("a", (8,), 4, 0),), data=32),
    "five dimensions": header(tensors=(("a", (1, 1, 1, 1, 1), 0, 0),), data=32),
    "2^32 dimensions": b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text("a") + struct.pack("<I", 2**32 - 1) + bytes(32),
    "shape overflows": header(tensors=(("a", (2**32, 2**32, 2**32, 2**32), 0, 0),), data=32),
    "size overflows to fit": header(tensors=(("a", (2**62,), 0, 0),), data=32),
    "zero hides an overflow": header(tensors=(("a", (0, 2**64 - 1), 0, 0),), data=0),
    "behind the end": header(tensors=(("a", (16,), 0, 0),), data=32),
    "offset behind the end": header(tensors=(("a", (8,), 0, 2**63),), data=32),
    "unaligned": header(tensors=(("a", (8,), 0, 4),), data=64),
    "overlap": header(tensors=(("a", (16,), 0, 0), ("b", (8,), 0, 32)), data=64),
    "gap": header(tensors=(("a", (8,), 0, 32),), data=64),
    "bytes of no tensor": header(tensors=(("a", (8,), 0, 0),), data=64),
    "rows that are no whole blocks": header(tensors=(("a", (16, 2), 8, 0),), data=64),
}  # fmt: skip


@pytest.mark.parametrize("raw", BAD.values(), ids=BAD.keys())
@pytest.mark.timeout(10)
def test_a_lying_header_is_refused(raw: bytes) -> None:
    with pytest.raises(Malformed, match=r"^model\.gguf: "):
        read(raw)


def test_metadata_cannot_add_up_to_more_than_the_reader_keeps() -> None:
    one = text("x" * gguf.MAX_STRING)
    with pytest.raises(Malformed, match="larger than this reader keeps"):
        read(header(*((f"k{number}", 8, one) for number in range(gguf.MAX_KEPT // gguf.MAX_STRING + 1))))


def test_many_small_values_cannot_add_up_to_more_than_the_reader_keeps() -> None:
    """A string of one letter takes a hundred times its bytes, and a number ten times."""
    strings = struct.pack("<IQ", 8, gguf.KEPT) + text("x") * gguf.KEPT
    numbers = struct.pack("<IQ", 0, gguf.KEPT) + bytes(gguf.KEPT)
    for elements in (strings, numbers):
        raw = header(*((f"k{number}", 9, elements) for number in range(2500)))
        assert len(raw) < gguf.MAX_KEPT / 4
        with pytest.raises(Malformed, match="larger than this reader keeps"):
            read(raw)


def test_the_largest_genuine_headers_are_read(tmp_path: Path) -> None:
    """A vocabulary larger than any known, and as many tensors as there may be."""
    tokens, merges = 300_000, 600_000
    path = tmp_path / "model.gguf"
    path.write_bytes(
        header(
            ("tokens", 9, struct.pack("<IQ", 8, tokens) + b"".join(text(f"token{n}") for n in range(tokens))),
            ("scores", 9, struct.pack("<IQ", 6, tokens) + bytes(4 * tokens)),
            ("merges", 9, struct.pack("<IQ", 8, merges) + b"".join(text(f"to{n} ken{n}") for n in range(merges))),
            tensors=tuple((f"blk.{n}.ffn_gate_exps.weight", (0,), 0, 0) for n in range(gguf.MAX_TENSORS)),
        )
    )
    assert len(gguf.read_header(path).tensors) == gguf.MAX_TENSORS
    for key, count in (("tokens", tokens), ("scores", tokens), ("merges", merges)):
        assert len(gguf.read_array(path, key)) == count


def test_a_file_cut_while_it_is_read_is_malformed() -> None:
    raw = header(("x", 8, text("y" * 100)))
    with pytest.raises(Malformed):
        gguf.read_source(bytes_source(raw[:60]), len(raw), "model.gguf")


MEASURE = """
import sys, time
from pathlib import Path
from artifact.weights import gguf

def peak():  # in KiB; not ru_maxrss, which a child inherits from the process that forks it
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

before = peak()
start = time.perf_counter()
file = gguf.read_header(Path(sys.argv[1]))
seconds = time.perf_counter() - start
print(len(file.tensors), file.metadata["tokenizer.ggml.tokens"].count, peak(), peak() - before, f"{seconds:.3f}")
"""


def test_a_46_gb_file_with_a_large_vocabulary_is_read_in_little_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vocabulary, merges, layers = 151_936, 151_387, 80
    tokens = b"".join(text(f"tok{number:x}") for number in range(vocabulary))
    pairs = b"".join(text(f"t{number:x} k{number:x}") for number in range(merges))
    element_bytes = 8 * 1024 * 18_000 * 4  # one F32 tensor of 590 MB a layer
    raw = header(
        ("general.architecture", 8, text("qwen3")),
        ("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, vocabulary) + tokens),
        ("tokenizer.ggml.token_type", 9, struct.pack("<IQ", 5, vocabulary) + bytes(4 * vocabulary)),
        ("tokenizer.ggml.merges", 9, struct.pack("<IQ", 8, merges) + pairs),
        tensors=tuple((f"blk.{n}.weight", (8 * 1024, 18_000), 0, n * element_bytes) for n in range(layers)),
    )
    path = tmp_path / "large.gguf"
    path.write_bytes(raw)
    with path.open("r+b") as stream:
        stream.truncate(len(raw) + layers * element_bytes)
    assert path.stat().st_size > 46e9
    done = subprocess.run([sys.executable, "-c", MEASURE, path], capture_output=True, text=True, check=True)
    tensors, kept, peak, grown, seconds = done.stdout.split()
    with capsys.disabled():
        print(f"\n46 GB GGUF header: {seconds} s, peak {int(peak) // 1024} MiB, of it the header {int(grown) // 1024}")
    assert (int(tensors), int(kept)) == (layers, vocabulary)
    assert int(peak) < 30 * 1024
