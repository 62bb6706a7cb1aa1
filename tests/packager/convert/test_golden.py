"""Every family against llama.cpp's own converter: tensors byte for byte, and what it says about them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import gguf
import pytest

from artifact.progress import Quiet
from packager.convert import PRECISIONS, convert
from packager.convert.families import FAMILIES
from tests.checkpoints.families import TINY
from tests.packager.convert import oracle
from tests.packager.convert.checkpoints import CHECKPOINTS, write

LEFT_OUT = {f"tokenizer.ggml.{role}_token_id" for role in ("prefix", "suffix", "middle", "fsep", "eot")}
"""CodeGemma's tokens, which llama.cpp's converter writes into every Gemma."""

NO_SEPARATOR = "tokenizer.ggml.add_sep_token"
"""Whether there is one between two texts: by default there is none."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    return {name: write(root / name, name) for name in CHECKPOINTS}


def converted(folder: Path, precision: str, tmp_path: Path) -> gguf.GGUFReader:
    return gguf.GGUFReader(convert(folder, precision, tmp_path / "model.gguf", Quiet()).path)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tensors_of(reader: gguf.GGUFReader) -> dict[str, list[Any]]:
    return {
        tensor.name: [tensor.tensor_type.name, [int(n) for n in reversed(tensor.shape)], digest(tensor.data.tobytes())]
        for tensor in reader.tensors
    }


def test_every_family_has_a_recorded_answer():
    assert {model for family in FAMILIES for model in family.models} - {tiny.model for tiny in TINY.values()} == {
        "BertForMaskedLM",  # BertModel with a head, which is left out
        "StableLMEpochForCausalLM",  # the older name
    }
    assert {path.stem for path in oracle.GOLDEN.glob("*.json")} == set(CHECKPOINTS)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_tensors_are_those_of_the_other_converter(tiny, tmp_path, name, precision):
    found = tensors_of(converted(tiny[name], precision, tmp_path))
    assert found == oracle.golden(name)["tensors"][precision]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_metadata_is_that_of_the_other_converter(tiny, tmp_path, name):
    """It may say less: values that are defaults of the format."""
    fields = converted(tiny[name], "F32", tmp_path).fields
    for key, expected in oracle.golden(name)["metadata"].items():
        if (key in LEFT_OUT and name.startswith("gemma")) or (key == NO_SEPARATOR and expected is False):
            continue
        assert key in fields, key
        value = fields[key].contents()
        if isinstance(expected, str) and len(expected) == 64:
            value = digest(json.dumps(value).encode())
        assert value == expected, key


@pytest.mark.oracle
@pytest.mark.skipif(bool(oracle.missing()), reason=oracle.missing())
def test_the_oracle_still_says_so():
    for name, answer in oracle.answers().items():
        recorded = oracle.golden(name)
        assert answer["tensors"] == recorded["tensors"], name
        assert answer["metadata"] == recorded["metadata"], name
        for length, values in recorded["answers"].items():
            assert answer["answers"][length] == pytest.approx(values, abs=1e-5), name
