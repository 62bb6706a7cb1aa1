"""Documents with one value replaced by another: a clear error or a sound file, never anything else."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifact.errors import StowageError
from artifact.progress import Quiet
from artifact.weights.gguf import read_header
from packager.convert import convert
from packager.convert.tokenizer.sentencepiece_model import read_model
from tests.checkpoints.families import TINY, write_tiny
from tests.checkpoints.sentencepiece_model import encode_model, pieces_of
from tests.checkpoints.tiny import LLAMA31_ROPE, write_tiny_llama
from tests.packager.convert.sentencepiece import write_sentencepiece

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 400),
    st.sampled_from([2**31, 2**40, 10**30, -(10**30), 0.5, -1.0, 1e300, "", "BPE", "\ud800", "\0", "x" * 5000]),
    st.text(max_size=8),
    st.lists(st.one_of(st.none(), st.integers(0, 5), st.text(max_size=3)), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(0, 5), max_size=2),
)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The way to every value in a document; of long lists and maps only to the first few."""
    found = [path] if path else []
    if isinstance(value, dict):
        for key in list(value)[:40]:
            found += places(value[key], (*path, key))
    elif isinstance(value, list):
        for number in range(min(3, len(value))):
            found += places(value[number], (*path, number))
    return found


def replaced(document: Any, path: tuple, value: Any) -> Any:
    result = copy.deepcopy(document)
    inner = result
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return result


def write_byte_level(folder: Path) -> None:
    write_tiny_llama(folder, layers=1, tokenizer="llama-bpe", rope_scaling=LLAMA31_ROPE)


def write_with_sentencepiece(folder: Path) -> None:
    write_tiny_llama(folder, layers=1, vocab=380, shards=2)
    write_sentencepiece(folder, 380)


@pytest.mark.parametrize("write", [write_byte_level, write_with_sentencepiece])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_one_value_replaced(tmp_path, name, write):
    folder, target = tmp_path / "model", tmp_path / "model.gguf"
    write(folder)
    document = json.loads((folder / name).read_text())

    @settings(max_examples=100, deadline=None)
    @given(st.sampled_from(places(document)), VALUES)
    def check(path: tuple, value: Any) -> None:
        (folder / name).write_text(json.dumps(replaced(document, path, value)))
        target.unlink(missing_ok=True)
        try:
            convert(folder, "F16", target, Quiet())
        except StowageError as error:
            assert "\n" not in str(error)
            assert not target.exists()
        else:
            assert read_header(target).metadata["general.architecture"] == "llama"

    check()


@pytest.mark.parametrize("name", TINY)
def test_one_value_of_any_familys_config(tmp_path, name):
    folder, target = write_tiny(tmp_path / "model", name), tmp_path / "model.gguf"
    config = json.loads((folder / "config.json").read_text())

    @settings(max_examples=25, deadline=None)
    @given(st.sampled_from(places(config)), VALUES)
    def check(path: tuple, value: Any) -> None:
        (folder / "config.json").write_text(json.dumps(replaced(config, path, value)))
        target.unlink(missing_ok=True)
        try:
            convert(folder, "F16", target, Quiet())
        except StowageError as error:
            assert "\n" not in str(error)
            assert not target.exists()
        else:
            assert read_header(target).metadata["general.architecture"]

    check()


MODEL = encode_model(pieces_of(320))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(MODEL)), st.binary(max_size=12), st.integers(0, 40), st.booleans())
def test_a_broken_tokenizer_model(place, bytes_, cut, at_the_end):
    """Bytes put in at `place`, `cut` taken out: refused, or read as pieces that are text with a number."""
    place = max(0, len(MODEL) - 60 + place % 60) if at_the_end else place
    try:
        pieces, prefix = read_model(MODEL[:place] + bytes_ + MODEL[place + cut :], "tokenizer.model")
    except StowageError as error:
        assert "tokenizer.model" in str(error)
        assert "\n" not in str(error)
    else:
        assert all(isinstance(piece.text, str) and isinstance(piece.score, float) for piece in pieces)
        assert prefix in (True, False)
