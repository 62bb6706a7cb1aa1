"""Tensors: names, types and bytes, against gguf's own name map and quantisers."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifact.digest import Digest
from artifact.progress import Quiet
from artifact.weights.gguf import read_header
from artifact.weights.precision import facts_of
from packager.convert import PRECISIONS, convert
from packager.convert.encoding import OutOfRange, encoded_length, recode, stored_dtype
from tests.checkpoints.shards import encode
from tests.checkpoints.tiny import LLAMA31_ROPE, write_tiny_llama
from tests.packager.convert.reference import weights_of

TYPES = {name: gguf.GGMLQuantizationType[name] for name in PRECISIONS}


def for_rotary_pairs(values: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's row order, row by row: element j of half i of a head becomes its row 2j + i."""
    size = values.shape[0] // heads
    result = np.empty_like(values)
    for head in range(heads):
        for half in range(2):
            for j in range(size // 2):
                result[head * size + 2 * j + half] = values[head * size + half * (size // 2) + j]
    return result


def expected_tensors(folder: Path, precision: str, layers: int, heads: int, kv_heads: int) -> dict[str, tuple]:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    expected = {}
    for name, (_, values) in weights_of(folder).items():
        if "q_proj" in name or "k_proj" in name:
            values = for_rotary_pairs(values, heads if "q_proj" in name else kv_heads)
        type_ = TYPES["F32"] if values.ndim == 1 else TYPES[precision]
        if precision == "Q8_0" and values.ndim > 1 and values.shape[1] % 32:
            type_ = TYPES["F16"]
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        expected[target] = (type_, values.shape, gguf.quants.quantize(np.ascontiguousarray(values), type_).tobytes())
    return expected


def read_back(path: Path) -> dict[str, tuple]:
    return {
        tensor.name: (tensor.tensor_type, tuple(int(n) for n in reversed(tensor.shape)), tensor.data.tobytes())
        for tensor in gguf.GGUFReader(path).tensors
    }


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("dtype", "tied", "shards", "hidden"), [("BF16", True, 1, 64), ("F16", False, 2, 64), ("F32", False, 3, 40)]
)
def test_every_tensor_has_the_bytes_of_an_independent_computation(tmp_path, precision, dtype, tied, shards, hidden):
    folder = write_tiny_llama(tmp_path / "model", dtype=dtype, tied=tied, shards=shards, hidden=hidden, layers=3)
    convert(folder, precision, tmp_path / "model.gguf", Quiet())
    assert read_back(tmp_path / "model.gguf") == expected_tensors(folder, precision, 3, 4, 2)


def test_more_chunks_than_one_per_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr("packager.convert.tensors._CHUNK", 600)
    folder = write_tiny_llama(tmp_path / "model", heads=8, kv_heads=4)
    for precision in PRECISIONS:
        convert(folder, precision, tmp_path / "model.gguf", Quiet())
        assert read_back(tmp_path / "model.gguf") == expected_tensors(folder, precision, 2, 8, 4)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_result_describes_the_file(tmp_path, precision):
    folder = write_tiny_llama(tmp_path / "model")
    target = tmp_path / "model.gguf"
    conversion = convert(folder, precision, target, Quiet())
    raw = target.read_bytes()
    assert (conversion.path, conversion.size, conversion.precision) == (target, len(raw), precision)
    assert conversion.digest == Digest.of(raw)
    facts = facts_of([read_header(target)])
    assert facts.precision == precision
    assert facts.parameters == sum(values.size for _, values in weights_of(folder).values())


def test_tied_output_is_left_out_even_if_it_is_stored(tmp_path):
    folder = write_tiny_llama(tmp_path / "model", tied=False)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"tie_word_embeddings": false', '"tie_word_embeddings": true'))
    convert(folder, "F16", tmp_path / "model.gguf", Quiet())
    assert "output.weight" not in read_back(tmp_path / "model.gguf")


def test_llama_31_factors(tmp_path):
    scaling = {**LLAMA31_ROPE, "original_max_position_embeddings": 8192}
    folder = write_tiny_llama(
        tmp_path / "model", rope_scaling=scaling, rope_theta=500000.0, heads=2, kv_heads=1, hidden=128
    )
    convert(folder, "F16", tmp_path / "model.gguf", Quiet())
    type_, shape, data = read_back(tmp_path / "model.gguf")["rope_freqs.weight"]
    assert (type_, shape) == (TYPES["F32"], (32,))
    wavelengths = 2 * math.pi * 500000 ** (np.arange(0, 64, 2) / 64)
    smooth = (8192 / wavelengths - 1) / 3
    between = 1 / ((1 - smooth) / 8 + smooth)
    expected = np.where(wavelengths < 8192 / 4, 1, np.where(wavelengths > 8192, 8, between))
    assert 1 < len(set(expected)) < 32
    np.testing.assert_allclose(np.frombuffer(data, "<f4"), expected, rtol=1e-5)


def recoded(elements: np.ndarray, source: str, target: str) -> np.ndarray:
    result = np.empty(encoded_length(target, elements.size), np.uint8)
    recode(elements, source, target, result)
    return result


FLOATS = st.one_of(st.just(0.0), st.floats(-6e4, 6e4, width=32).filter(lambda value: abs(value) > 1e-30))


@settings(deadline=None)
@given(st.lists(FLOATS, min_size=64, max_size=64), st.sampled_from(["F32", "F16", "BF16"]))
def test_recoding_is_ggufs(values, source):
    stored = np.frombuffer(encode(np.array(values, np.float32), source), stored_dtype(source))
    bits = stored.astype(np.uint32) << 16 if source == "BF16" else stored.astype(np.float32)
    floats = np.ascontiguousarray(bits).view(np.float32).reshape(1, -1)
    for target, type_ in TYPES.items():
        assert recoded(stored, source, target).tobytes() == gguf.quants.quantize(floats, type_).tobytes(), target


@pytest.mark.parametrize("source", ["F32", "F16", "BF16"])
def test_every_magnitude_is_recoded_as_gguf_does_it(source):
    """All of BF16 but what is so small that gguf divides by zero, all of F16, and F32 from far below F16's smallest
    number to its largest; more of them than are done at once."""
    if source == "F32":
        bits = np.random.default_rng(0).integers(0x2F000000, 0x477FF000, 3 * 2**16 + 32, dtype=np.uint32)
        bits[:8] = [0x477FEFFF, 0x38800000, 0x387FFFFF, 0x387FF000, 0x33000000, 0x33000001, 0x3F801000, 0x3F803000]
        stored = np.concatenate([bits, bits | np.uint32(1 << 31)]).view(np.float32)
    else:
        magnitudes = np.arange(*((0x400, 0x4780) if source == "BF16" else (0, 0x7C00)), dtype=np.uint16)
        stored = np.tile(np.concatenate([magnitudes, magnitudes | np.uint16(1 << 15)]), 4).view(stored_dtype(source))
    wide = (stored.astype(np.uint32) << 16).view(np.float32) if source == "BF16" else stored.astype(np.float32)
    for target, type_ in TYPES.items():
        assert recoded(stored, source, target).tobytes() == gguf.quants.quantize(wide, type_).tobytes(), target


@pytest.mark.parametrize("source", ["F32", "BF16"])
def test_what_a_type_cannot_hold_is_noticed_wherever_it_is(source):
    stored = np.zeros(3 * 2**16, np.float32)
    for place in (0, 2**17 - 1, 2**17, stored.size - 1):
        values = stored.copy()
        values[place] = 1e6
        held = values if source == "F32" else (values.view(np.uint32) >> 16).astype(np.uint16)
        with pytest.raises(OutOfRange):
            recoded(held, source, "F16")
        values[place] = np.nan
        held = values if source == "F32" else (values.view(np.uint32) >> 16).astype(np.uint16)
        with pytest.raises(OutOfRange):
            recoded(held, source, "Q8_0")
        assert np.isnan(recoded(held, source, "F16").view("<f2")[place])


def test_halves_are_rounded_away_from_zero_and_nothing_less_is():
    halves = np.arange(0.5, 15, dtype=np.float32)
    block = np.concatenate([[127], np.nextafter(halves, np.float32(0)), halves, [-0.5, -1.5]]).astype(np.float32)
    want = [127, *range(15), *range(1, 16), -1, -2]
    assert recoded(block[:32], "F32", "Q8_0")[2:].view(np.int8).tolist() == want[:32]


def test_a_block_too_small_for_its_scale_is_zero():
    values = np.full(32, 1e-40, np.float32)
    assert recoded(values, "F32", "Q8_0").tobytes() == bytes(34)


def test_not_a_number_stays_one_in_bf16():
    bits = np.array([0x7F800001, 0xFFFFFFFF, 0x7F800000, 0x7F7FFFFF], np.uint32)
    result = recoded(bits.view(np.float32), "F32", "BF16").view("<u2")
    assert list(result) == [0x7FC0, 0xFFFF, 0x7F80, 0x7F80]


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path):
    """Whatever the folder is called, how it is sharded, and which stray files lie in it."""
    digests = set()
    for shards, name in ((1, "a"), (3, "another name")):
        folder = write_tiny_llama(tmp_path / name, shards=shards)
        (folder / "notes.txt").write_text(name)
        digests.add(convert(folder, "Q8_0", tmp_path / f"{shards}.gguf", Quiet()).digest)
    assert len(digests) == 1


def test_the_same_bytes_on_any_number_of_processors(tmp_path, monkeypatch):
    folder = write_tiny_llama(tmp_path / "model")
    monkeypatch.setattr("packager.convert.tensors._CHUNK", 600)
    digests = set()
    for count in (1, 3, 64):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, count=count: set(range(count)))
        digests.add(convert(folder, "F16", tmp_path / "model.gguf", Quiet()).digest)
    assert len(digests) == 1


MEASURED = """
import re, sys
from pathlib import Path
from artifact.progress import Quiet
from packager.convert import convert
convert(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Quiet())
# Not ru_maxrss, which a child inherits from the process that forks it.
print(re.search(r"VmHWM:\\s*([0-9]+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.parametrize("precision", ["F32", "Q8_0"])
def test_memory_is_flat(smollm2, tmp_path, precision):
    """The real model has 269 MB of weights, 113 MB of them in one tensor as F32: none of that is ever held."""
    command = [sys.executable, "-c", MEASURED, str(smollm2), precision, str(tmp_path / "model.gguf")]
    peak = int(subprocess.run(command, capture_output=True, check=True).stdout) * 1024
    assert peak < 200 * 2**20


def test_progress_counts_every_byte(tmp_path):
    class Recorder(Quiet):
        total = done = 0
        finished = False

        def begin(self, name, total):
            self.total = total

        def advance(self, name, count):
            self.done += count

        def finish(self, name, note=""):
            self.finished = True

    recorder = Recorder()
    conversion = convert(write_tiny_llama(tmp_path / "model"), "F16", tmp_path / "model.gguf", recorder)
    assert recorder.finished
    assert recorder.done == recorder.total == conversion.size
