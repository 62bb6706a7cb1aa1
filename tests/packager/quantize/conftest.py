"""A model wide enough for every type, and a Python that can quantise it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from artifact.progress import Quiet
from packager.convert import convert
from packager.quantize.interpreter import VARIABLE, interpreter_at
from tests.checkpoints.tiny import write_tiny_llama
from tests.packager.convert.conftest import llama  # noqa: F401


@pytest.fixture(scope="session")
def quantizer(request: pytest.FixtureRequest) -> Path:
    """An interpreter that has llama-cpp-python: a stated one, else the engine that the tests install."""
    stated = os.environ.get(VARIABLE)
    return interpreter_at(Path(stated), VARIABLE) if stated else request.getfixturevalue("llama_cpp_python")


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose rows are multiples of 256 values, so that nothing falls back."""
    folder = tmp_path_factory.mktemp("wide") / "model"
    sizes = {"hidden": 256, "intermediate": 256, "layers": 1, "vocab": 420}
    return write_tiny_llama(folder, tokenizer="llama-bpe", tied=False, **sizes)


@pytest.fixture(scope="session")
def wide_gguf(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as GGUF, without loss. Shared: not to be written to."""
    return convert(wide, "BF16", tmp_path_factory.mktemp("gguf") / "wide-BF16.gguf", Quiet()).path


@pytest.fixture
def pinned(quantizer: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The quantiser, named as a user names it once for all."""
    monkeypatch.setenv(VARIABLE, str(quantizer))
    return quantizer
