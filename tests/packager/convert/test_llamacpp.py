"""llama.cpp's own converter as a user's choice: when it is refused, and what it makes where it is there."""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import pytest

from artifact.errors import InvalidInput
from artifact.progress import Quiet
from packager.convert import convert
from packager.convert.llamacpp import VARIABLE, Converter, ConverterFailed, find_converter
from packager.production import LLAMA_CPP, Production, tools_of
from packager.source import open_path
from tests.checkpoints.families import write_tiny
from tests.packager.convert import oracle

needs_oracle = pytest.mark.skipif(bool(oracle.missing()), reason=oracle.missing())
PACK = ("--format", "gguf", "--precision", "F16", "--converter", "llama.cpp")


def environment(folder: Path, script: str) -> Path:
    """A folder laid out as the converter's environment is, with another program in its place."""
    source = folder / "vendor" / "llama.cpp"
    (source / "gguf-py" / "gguf").mkdir(parents=True)
    (source / "gguf-py" / "pyproject.toml").write_text('[project]\nname = "gguf"\nversion = "9.9"\n')
    (source / "convert_hf_to_gguf.py").write_text(script)
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(sys.executable)
    return folder


def test_it_is_never_taken_without_being_named(packager, tiny, monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, str(environment(tmp_path / "e", "raise SystemExit(1)")))
    packager.ok("pack", tiny, f"oci:{tmp_path}/out", *PACK[:4])


def test_where_it_is_has_to_be_said(packager, tiny, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    told = packager.fails(2, "pack", tiny, "tiny", *PACK)
    assert "--converter-path" in told and VARIABLE in told


def test_a_folder_without_it_is_refused(packager, tiny, tmp_path):
    (tmp_path / "e").mkdir()
    assert "no convert_hf_to_gguf.py" in packager.fails(2, "pack", tiny, "tiny", *PACK, "--converter-path", tmp_path)
    assert "is no folder" in packager.fails(2, "pack", tiny, "tiny", *PACK, "--converter-path", tmp_path / "nothing")


def test_a_folder_without_an_interpreter_is_refused(tmp_path):
    folder = environment(tmp_path / "e", "")
    (folder / "bin" / "python").unlink()
    with pytest.raises(InvalidInput, match="neither a Python interpreter"):
        find_converter(str(folder))


def test_an_unknown_converter_is_a_usage_error(packager, tiny):
    assert packager("pack", tiny, "tiny", *PACK[:4], "--converter", "other").status == 2


def test_gguf_is_not_converted(packager, tiny_gguf):
    told = packager.fails(2, "pack", tiny_gguf, "tiny", "--precision", "Q8_0", "--converter", "llama.cpp")
    assert "nothing for --converter llama.cpp" in told


def test_its_last_words_are_told(tmp_path):
    folder = environment(tmp_path / "e", "import sys\nsys.exit('Model Odd is not supported')")
    converter = find_converter(str(folder))
    with pytest.raises(ConverterFailed, match="cannot convert Odd: Model Odd is not supported"):
        converter.convert(tmp_path, "F16", "Odd", tmp_path / "out.gguf", Quiet())


def test_an_environment_without_torch_is_refused(tmp_path):
    converter = find_converter(str(environment(tmp_path / "e", "")))
    with pytest.raises(InvalidInput, match="has no torch"):
        converter.tools()


def test_it_sees_the_packed_files_and_an_empty_environment(packager, tiny, tmp_path, monkeypatch):
    """Python of the checkpoint, left out of the artifact, is not there for it to run."""
    monkeypatch.setenv("HF_TOKEN", "secret")
    (tiny / "modeling_odd.py").write_text("raise SystemExit")
    script = "import os, sys\nsys.exit(f'{sorted(os.listdir(sys.argv[1]))} {sorted(os.environ)}')"
    folder = environment(tmp_path / "e", script)
    told = packager.fails(
        1, "pack", tiny, "tiny", *PACK, "--converter-path", folder, "--file-filter", "!*.py"
    )  # fmt: skip
    assert "config.json" in told and "modeling_odd.py" not in told
    assert "HF_HUB_OFFLINE" in told and "HF_TOKEN" not in told


def test_its_source_is_named_by_its_digest(tmp_path):
    digests = set()
    for name, script in (("a", "1"), ("b", "1"), ("c", "2")):
        folder = environment(tmp_path / name, script) / "vendor" / "llama.cpp"
        digests.add(Converter(Path(sys.executable), folder)._digest())
    assert len(digests) == 2


@pytest.mark.oracle
@needs_oracle
@pytest.mark.timeout(900)
def test_it_converts(packager, tmp_path):
    """The same tensors as our own, of a family with SentencePiece: it refuses a BPE that it has not seen."""
    folder = write_tiny(tmp_path / "model", "gemma")
    production = Production(converter=LLAMA_CPP, converter_path=str(oracle.ENVIRONMENT))
    tools = tools_of(open_path(folder), "F16", production)
    assert tools["llama.cpp-converter"].startswith("sha256:") and tools["torch"] and tools["transformers"]
    options = (*PACK, "--converter-path", oracle.ENVIRONMENT)
    packager.ok("pack", folder, f"oci:{tmp_path}/out", *options)
    layers = sorted((tmp_path / "out" / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    theirs = {tensor.name: tensor.data.tobytes() for tensor in gguf.GGUFReader(layers[-1]).tensors}
    ours = gguf.GGUFReader(convert(folder, "F16", tmp_path / "own.gguf", Quiet()).path)
    assert theirs == {tensor.name: tensor.data.tobytes() for tensor in ours.tensors}
