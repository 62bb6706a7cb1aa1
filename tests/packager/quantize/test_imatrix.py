"""Importance matrices: read from both kinds of file, refused if broken, and computed as anybody would compute them."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from artifact.errors import Malformed, NotFound
from packager.quantize.imatrix import Activations, read_imatrix, write_imatrix
from tests.checkpoints.tiny import write_tiny_llama
from tests.packager.convert.reference import next_token

ENTRIES = {
    "blk.0.ffn_up.weight": Activations(np.array([[4.0, 8.0]], np.float32), np.array([4.0], np.float32)),
    "blk.0.experts.weight": Activations(
        np.array([[1.0, 3.0], [0.0, 0.0], [10.0, 5.0]], np.float32), np.array([1.0, 0.0, 5.0], np.float32)
    ),
}
MEANS = {"blk.0.ffn_up.weight": [1, 2], "blk.0.experts.weight": [1, 3, 1, 1, 2, 1]}


def legacy(entries: dict[str, tuple[int, list[float]]], tail: bytes = b"") -> bytes:
    """The older format (llama.cpp, common/imatrix-loader.cpp): values are multiplied by the number of calls."""
    out = struct.pack("<i", len(entries))
    for name, (calls, values) in entries.items():
        out += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, len(values))
        out += struct.pack(f"<{len(values)}f", *values)
    return out + tail


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "imatrix.gguf"
    write_imatrix(path, ENTRIES, 7, 512, "text.txt")
    found = read_imatrix(path)
    assert {name: values.tolist() for name, values in found.entries.items()} == MEANS
    assert (found.chunks, found.dataset) == (7, "text.txt")


def test_it_is_gguf_as_llama_cpp_writes_it(tmp_path):
    """By another reader: names, types and shapes of tools/imatrix."""
    write_imatrix(tmp_path / "imatrix.gguf", ENTRIES, 7, 512, "text.txt")
    reader = gguf.GGUFReader(tmp_path / "imatrix.gguf")
    fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert {key: field.contents() for key, field in fields.items()} == {
        "general.type": "imatrix", "imatrix.datasets": ["text.txt"], "imatrix.chunk_count": 7,
        "imatrix.chunk_size": 512,
    }  # fmt: skip
    assert [(tensor.name, list(map(int, tensor.shape))) for tensor in reader.tensors] == [
        ("blk.0.experts.weight.in_sum2", [2, 3]), ("blk.0.experts.weight.counts", [1, 3]),
        ("blk.0.ffn_up.weight.in_sum2", [2, 1]), ("blk.0.ffn_up.weight.counts", [1, 1]),
    ]  # fmt: skip


def test_the_older_file(tmp_path):
    path = tmp_path / "imatrix.dat"
    path.write_bytes(legacy({"a": (4, [4, 8]), "b": (0, [1, 2])}, struct.pack("<ii", 9, 4) + b"text"))
    found = read_imatrix(path)
    assert {name: values.tolist() for name, values in found.entries.items()} == {"a": [1, 2], "b": [1, 2]}
    assert (found.chunks, found.dataset) == (9, "text")
    path.write_bytes(legacy({"a": (1, [1])}))
    assert read_imatrix(path).chunks == 0


BROKEN = {
    "empty": (b"", "cut off"),
    "no entries": (struct.pack("<i", 0), "0 entries"),
    "too many entries": (struct.pack("<i", 1 << 30), "entries"),
    "a name without end": (struct.pack("<ii", 1, 1 << 20), "bytes in a name"),
    "fewer values than said": (legacy({"a": (1, [1, 2])})[:-4], "cut off"),
    "more values than there are bytes": (struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, 1 << 30), "values"),
    "not a number": (legacy({"a": (1, [float("nan")])}), "not all finite"),
    "negative": (legacy({"a": (1, [-1])}), "not all finite and positive"),
    "more behind the end": (legacy({"a": (1, [1])}, struct.pack("<ii", 1, 1) + b"textx"), "too many"),
    "text": (b"{}" * 100, "importance matrix"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused(tmp_path, name):
    raw, reason = BROKEN[name]
    (tmp_path / "imatrix.dat").write_bytes(raw)
    with pytest.raises(Malformed, match=reason):
        read_imatrix(tmp_path / "imatrix.dat")


def test_no_file(tmp_path):
    with pytest.raises(NotFound, match="no such file"):
        read_imatrix(tmp_path / "nothing")


def test_another_gguf_file_is_refused(tiny_gguf):
    with pytest.raises(Malformed, match=r"general\.type is not imatrix"):
        read_imatrix(tiny_gguf)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_refused_or_harmless(tmp_path, data):
    path = tmp_path / "imatrix"
    if data.draw(st.booleans()):
        write_imatrix(path, ENTRIES, 7, 512, "text.txt")
        raw = bytearray(path.read_bytes())
    else:
        raw = bytearray(legacy({"a": (4, [4, 8]), "b": (1, [1, 2])}, struct.pack("<ii", 9, 4) + b"text"))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    try:
        found = read_imatrix(path)
    except Malformed:
        return
    assert all(np.isfinite(values).all() for values in found.entries.values())


@pytest.mark.engine
@pytest.mark.timeout(3600)
def test_what_is_computed_is_what_goes_into_the_matrices(packager, pinned, tmp_path):
    """Against a forward pass in numpy: the sum of the squares of each column, over whole pieces of the text."""
    folder = write_tiny_llama(tmp_path / "model", dtype="F32", layers=2)
    text = "The capital of France is Paris; it's known. Models packed 2024 times, e.g. naïve 東京 ones.\n" * 3
    (tmp_path / "text.txt").write_text(text)
    size, target = 24, tmp_path / "imatrix.gguf"
    command = ("imatrix", folder, "--text", tmp_path / "text.txt", "-o", target, "--chunk-size", str(size))
    assert packager.ok(*command) == str(target)

    tokens = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    chunks = len(tokens) // size
    sums: dict[str, np.ndarray] = {}

    def watch(name: str, inputs: np.ndarray) -> None:
        assert len(inputs) == size
        sums[name] = sums.get(name, 0) + (inputs**2).sum(axis=0)

    for number in range(chunks):
        next_token(folder, tokens[number * size : (number + 1) * size], watch)
    reader = gguf.GGUFReader(target)
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    assert chunks > 2 and reader.fields["imatrix.chunk_count"].contents() == chunks
    assert reader.fields["imatrix.datasets"].contents()[0].startswith("text.txt@sha256:")
    assert found.keys() == {name + ending for name in sums for ending in (".in_sum2", ".counts")}
    for name, expected in sums.items():
        assert found[f"{name}.counts"].tolist() == [[chunks * size]]
        np.testing.assert_allclose(found[f"{name}.in_sum2"][0], expected, rtol=2e-3)


@pytest.mark.engine
@pytest.mark.timeout(3600)
def test_experts_are_counted_apart(packager, pinned, tmp_path):
    from tests.checkpoints.families import write_tiny

    folder = write_tiny(tmp_path / "model", "qwen3-moe")
    (tmp_path / "text.txt").write_text("the capital of france " * 40)
    packager.ok("imatrix", folder, "--text", tmp_path / "text.txt", "-o", tmp_path / "i.gguf", "--chunk-size", "32")
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "i.gguf").tensors}
    routed, dense = tensors["blk.0.ffn_up_exps.weight.counts"], tensors["blk.0.attn_q.weight.counts"]
    used = 2  # num_experts_per_tok
    assert len(routed) > 2 and routed.sum() == used * dense.sum()
    unused = (routed == 0)[:, 0]
    assert not tensors["blk.0.ffn_up_exps.weight.in_sum2"][unused].any()


@pytest.mark.engine
@pytest.mark.timeout(3600)
def test_what_cannot_be_computed_is_said(packager, pinned, tmp_path, tiny_gguf):
    text = tmp_path / "text.txt"
    text.write_text("short")
    target = tmp_path / "imatrix.gguf"
    assert "no such file" in packager.fails(1, "imatrix", tiny_gguf, "--text", tmp_path / "none", "-o", target)
    assert "only" in packager.fails(1, "imatrix", tiny_gguf, "--text", text, "-o", target)
    assert not target.exists()
    assert [path.name for path in tmp_path.iterdir() if "imatrix" in path.name] == []


def test_the_text_is_asked_for(packager, tiny_gguf, tmp_path: Path):
    assert packager("imatrix", tiny_gguf, "-o", tmp_path / "o").status == 2


@pytest.mark.engine
@pytest.mark.timeout(3600)
def test_a_reference_gives_what_its_file_gives(packager, pinned, tiny_gguf, tmp_path):
    (tmp_path / "text.txt").write_text("the capital of france " * 20)
    packager.ok("pack", tiny_gguf, f"oci:{tmp_path}/out:v1")
    for source, target in ((tiny_gguf, "a"), (f"oci:{tmp_path}/out:v1", "b")):
        command = ("--text", tmp_path / "text.txt", "-o", tmp_path / target, "--chunk-size", "32", "--chunks", "2")
        packager.ok("imatrix", source, *command)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
