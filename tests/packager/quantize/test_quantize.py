"""What llama.cpp's quantiser makes, asked in its own Python: every type, the same bytes every time, and a model that
still answers as before."""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import numpy as np
import pytest

from artifact.digest import Digest
from artifact.errors import InvalidInput
from artifact.progress import Quiet
from packager.convert import convert
from packager.quantize import process
from packager.quantize.imatrix import Activations, read_imatrix, write_imatrix
from packager.quantize.process import WorkerFailed
from packager.quantize.quantize import quantize
from packager.quantize.recipes import RECIPES, recipe_of
from tests.checkpoints.tiny import write_tiny_llama
from tests.packager.convert.parity import prompt

pytestmark = [pytest.mark.engine, pytest.mark.timeout(3600)]

WITH_MATRIX = ["IQ1_S", "IQ2_XXS", "Q2_K_S", "Q4_K_M"]


@pytest.fixture(scope="module")
def matrix(wide_gguf, tmp_path_factory):
    """A matrix as even as can be: every column counts, some more."""
    entries = {
        tensor.name: Activations(np.linspace(1, 2, int(tensor.shape[0]), dtype=np.float32).reshape(1, -1),
                                 np.array([4.0], np.float32))
        for tensor in gguf.GGUFReader(wide_gguf).tensors
        if tensor.name.startswith("blk.") and len(tensor.shape) > 1
    }  # fmt: skip
    path = tmp_path_factory.mktemp("matrix") / "imatrix.gguf"
    write_imatrix(path, entries, 1, 16, "made up")
    return read_imatrix(path)


def test_every_type_is_made_or_wants_a_matrix_as_we_say(quantizer, wide_gguf, tmp_path, monkeypatch):
    """Not asked by us first, llama.cpp itself refuses those that need one."""
    monkeypatch.setattr("packager.quantize.quantize.check_imatrix", lambda recipe, given: None)
    refused, called = set(), {}
    for name, recipe in RECIPES.items():
        try:
            result = quantize(quantizer, wide_gguf, recipe, tmp_path / "q.gguf", Quiet())
        except WorkerFailed as error:
            assert "imatrix" in str(error)
            refused.add(name)
            continue
        called[name] = result.facts.precision
        assert result.weights.metadata["general.file_type"] == recipe.number
        assert result.tools["llama-cpp-python"] and result.tools["llama.cpp-libraries"].startswith("sha256:")
    assert refused == {name for name, recipe in RECIPES.items() if recipe.needs_imatrix}
    # MXFP4 is for experts: of a model that has none it makes Q8_0.
    assert {name: label for name, label in called.items() if label != name} == {"MXFP4": "Q8_0"}


@pytest.mark.parametrize("name", WITH_MATRIX)
def test_a_type_with_a_matrix(quantizer, wide_gguf, matrix, tmp_path, name):
    result = quantize(quantizer, wide_gguf, recipe_of(name), tmp_path / "q.gguf", Quiet(), imatrix=matrix)
    assert result.facts.shares[0][0].startswith(name[:4].removesuffix("_")), result.facts
    assert result.weights.metadata["quantize.imatrix.file"] == str(matrix.digest)
    assert result.weights.metadata["quantize.imatrix.entries_count"] == len(matrix.entries)
    assert result.weights.metadata["quantize.imatrix.chunks_count"] == 1


def test_a_matrix_makes_a_difference(quantizer, wide_gguf, matrix, tmp_path):
    digests = set()
    for imatrix in (None, matrix):
        quantize(quantizer, wide_gguf, recipe_of("Q4_0"), tmp_path / "q.gguf", Quiet(), imatrix=imatrix)
        digests.add(Digest.of(tensor_data(tmp_path / "q.gguf")))
    assert len(digests) == 2


def tensor_data(path: Path) -> bytes:
    return b"".join(tensor.data.tobytes() for tensor in gguf.GGUFReader(path).tensors)


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.needs_imatrix])
def test_without_a_matrix_where_one_is_needed_nothing_starts(tmp_path, name):
    with pytest.raises(InvalidInput, match="packager imatrix"):
        quantize(tmp_path / "no python", tmp_path / "no file", RECIPES[name], tmp_path / "q.gguf", Quiet())


@pytest.mark.parametrize("name", ["Q4_K_M", "Q6_K", "IQ4_XS", "Q5_0"])
def test_the_same_bytes_with_any_number_of_threads(quantizer, wide_gguf, tmp_path, monkeypatch, name):
    digests = set()
    for count in (1, 2, 4):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, count=count: set(range(count)))
        quantize(quantizer, wide_gguf, recipe_of(name), tmp_path / "q.gguf", Quiet())
        digests.add(Digest.of((tmp_path / "q.gguf").read_bytes()))
    assert len(digests) == 1


@pytest.mark.parametrize("name", ["Q4_K_M", "IQ3_S"])
def test_the_same_bytes_whatever_the_c_library_makes_of_the_processor(
    quantizer, wide_gguf, tmp_path, monkeypatch, name
):
    """glibc chooses its mathematics by the processor; masked, it takes what any x86-64 has."""
    digests, environment = set(), process.environment
    for masked in ("", "glibc.cpu.hwcaps=-AVX2,-FMA,-AVX512F,-AVX,-SSE4_2"):
        monkeypatch.setattr(process, "environment", lambda scratch, m=masked: environment(scratch) | {
            "GLIBC_TUNABLES": m})  # fmt: skip
        quantize(quantizer, wide_gguf, recipe_of(name), tmp_path / "q.gguf", Quiet())
        digests.add(Digest.of((tmp_path / "q.gguf").read_bytes()))
    assert len(digests) == 1


def test_the_bytes_do_not_depend_on_where_the_source_lies(quantizer, wide, tmp_path):
    digests = set()
    for place in ("a", "another place"):
        (tmp_path / place).mkdir()
        source = convert(wide, "F16", tmp_path / place / f"{place}.gguf", Quiet()).path
        quantize(quantizer, source, recipe_of("Q4_K_M"), tmp_path / place / "q.gguf", Quiet())
        digests.add(Digest.of((tmp_path / place / "q.gguf").read_bytes()))
    assert len(digests) == 1


def test_the_values_are_near_those_before(quantizer, wide, wide_gguf, tmp_path):
    """By another program's reading of the blocks."""
    quantize(quantizer, wide_gguf, recipe_of("Q4_K_M"), tmp_path / "q.gguf", Quiet())
    exact = convert(wide, "F32", tmp_path / "f32.gguf", Quiet()).path
    before = {tensor.name: tensor.data for tensor in gguf.GGUFReader(exact).tensors}
    seen = set()
    for tensor in gguf.GGUFReader(tmp_path / "q.gguf").tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
        difference = np.sqrt(
            ((values - before[tensor.name]) ** 2).sum() / (before[tensor.name].astype("f8") ** 2).sum()
        )
        assert difference < {"Q4_K": 0.08, "Q6_K": 0.02, "F32": 1e-9}[tensor.tensor_type.name], tensor.name
        seen.add(tensor.tensor_type.name)
    assert seen == {"Q4_K", "Q6_K", "F32"}


def test_the_model_answers_as_before(quantizer, wide, wide_gguf, tmp_path, llama):
    quantize(quantizer, wide_gguf, recipe_of("Q6_K"), tmp_path / "q.gguf", Quiet())
    with llama(wide_gguf) as exact, llama(tmp_path / "q.gguf") as quantized:
        expected, found = (server.next_token(prompt(48), 400) for server in (exact, quantized))
    divergence = sum(math.exp(value) * (value - found[token]) for token, value in expected.items() if token in found)
    assert abs(divergence) < 0.02


def test_what_does_not_fit_is_called_by_its_name(quantizer, tmp_path):
    folder = write_tiny_llama(tmp_path / "narrow")
    source = convert(folder, "F16", tmp_path / "f16.gguf", Quiet()).path
    result = quantize(quantizer, source, recipe_of("Q4_K_M"), tmp_path / "q.gguf", Quiet())
    assert result.facts.precision == "Q5_0"
    assert "asked for Q4_K_M" in result.warning and "Q5_0" in result.warning and "256" in result.warning


def test_llama_cpps_own_words_reach_the_user(quantizer, wide_gguf, tmp_path):
    quantize(quantizer, wide_gguf, recipe_of("Q4_0"), tmp_path / "q4.gguf", Quiet())
    with pytest.raises(WorkerFailed, match="requantizing"):
        quantize(quantizer, tmp_path / "q4.gguf", recipe_of("Q5_K_M"), tmp_path / "q.gguf", Quiet())
    quantize(quantizer, tmp_path / "q4.gguf", recipe_of("Q5_K_M"), tmp_path / "q.gguf", Quiet(), requantize=True)


def test_progress_counts_the_source(quantizer, wide_gguf, tmp_path):
    class Recorder(Quiet):
        total = done = 0

        def begin(self, name, total):
            self.total = total

        def advance(self, name, count):
            assert count >= 0
            self.done += count

    recorder = Recorder()
    quantize(quantizer, wide_gguf, recipe_of("Q4_0"), tmp_path / "q.gguf", recorder)
    assert 0 < recorder.done <= recorder.total
