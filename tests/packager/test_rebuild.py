"""`packager verify --rebuild`: the provenance is enough to get the same digest, and what is not the same is named."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from packager.convert.llamacpp import VARIABLE
from tests.packager.conftest import Packager

CONVERTER = """
import shutil, sys
from pathlib import Path
if "-c" in sys.argv:
    print("torch 1.0"); print("transformers 1.0"); sys.exit()
Path({ran!r}).touch()
shutil.copy({result!r}, sys.argv[sys.argv.index("--outfile") + 1])
"""
CONVERT = ("--format", "gguf", "--precision", "F16")


@pytest.fixture
def signed(packager: Packager, tmp_path: Path):
    """Packs with a signature into a layout, and returns the reference."""
    packager.ok("keygen", tmp_path / "release")

    def pack(source: Path, *options: str) -> str:
        return packager.ok("pack", source, f"oci:{tmp_path}/out", "--sign", tmp_path / "release.key", *options)

    return pack


@pytest.mark.parametrize(
    "options",
    [
        (), CONVERT, (*CONVERT, "--ollama"), ("--layout", "docker", "--created", "2026-01-02T03:04:05Z"),
        ("--file-filter", "!README.md", "--allow", "python-code"),
    ],
    ids=["as it is", "converted", "with ollama", "docker", "filtered"],
)  # fmt: skip
def test_a_folder_gives_the_same_digest_again(packager, signed, tiny: Path, options: tuple[str, ...]) -> None:
    (tiny / "modeling.py").write_text("1") if "python-code" in options else None
    line = signed(tiny, *options)
    allowed = ("--allow", "python-code") if "python-code" in options else ()
    result = packager("verify", line, "--rebuild", "--source", tiny, *allowed)
    assert (result.status, result.last) == (0, line), result.stderr
    assert "reproduced" in result.stderr


def test_a_gguf_file_gives_the_same_digest_again(packager, signed, tiny_gguf: Path) -> None:
    line = signed(tiny_gguf)
    assert packager.ok("verify", line, "--rebuild", "--source", tiny_gguf) == line


@pytest.mark.parametrize("options", [(), CONVERT], ids=["as it is", "converted"])
def test_the_file_that_differs_is_named(packager, signed, tiny: Path, options: tuple[str, ...]) -> None:
    line = signed(tiny, *options)
    shard = tiny / "model-00002-of-00002.safetensors"
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)
    message = packager.fails(3, "verify", line, "--rebuild", "--source", tiny)
    made = "Tiny-F16.gguf" if options else shard.name
    assert f"{made} is sha256:" in message and f"the source has other bytes: {shard.name}" in message
    result = packager("verify", line, "--rebuild", "--source", tiny, "--json")
    told = json.loads(result.stdout)
    assert result.status == 3 and told["reproduced"] is False and told["sources"] == [shard.name]


def test_what_is_missing_or_new_is_named(packager, signed, tiny: Path) -> None:
    line = signed(tiny)
    (tiny / "README.md").rename(tiny / "NOTICE.md")
    message = packager.fails(3, "verify", line, "--rebuild", "--source", tiny)
    assert "NOTICE.md was not there" in message and "README.md is not made any more" in message


def test_what_cannot_be_rebuilt(packager, signed, tiny: Path, tmp_path: Path) -> None:
    line = signed(tiny)
    assert "--source" in packager.fails(2, "verify", line, "--rebuild")
    assert "the source is empty" in packager.fails(2, "verify", line, "--rebuild", "--source", "")
    assert "say --rebuild" in packager.fails(2, "verify", line)
    unsigned = packager.ok("pack", tiny, f"oci:{tmp_path}/unsigned")
    assert "has no provenance" in packager.fails(1, "verify", unsigned, "--rebuild", "--source", tiny)


def test_nothing_is_stored(packager, signed, tiny: Path, tmp_path: Path) -> None:
    line = signed(tiny, *CONVERT)
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    packager.ok("verify", line, "--rebuild", "--source", tiny)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before


@pytest.fixture
def other_converter(tmp_path: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment laid out as that of llama.cpp's converter, set for all commands; the file says that it ran."""
    ran, folder = tmp_path / "ran", tmp_path / "converter"
    (folder / "gguf-py").mkdir(parents=True)
    (folder / "gguf-py" / "pyproject.toml").write_text('version = "9.9"')
    (folder / "bin").mkdir()
    (folder / "convert_hf_to_gguf.py").write_text("")
    script = CONVERTER.format(ran=str(ran), result=str(tiny_gguf))
    # Answers for the interpreter too: which torch there is, where there is none.
    interpreter = folder / "bin" / "python"
    interpreter.write_text(f'#!/bin/sh\nexec {sys.executable} {folder}/run.py "$@"\n')
    (folder / "run.py").write_text(script)
    interpreter.chmod(0o755)
    monkeypatch.setenv(VARIABLE, str(folder))
    return ran


LLAMA_CPP = ("--converter", "llama.cpp")


def test_another_converter_runs_only_if_it_is_named_again(packager, signed, tiny: Path, other_converter: Path) -> None:
    """Anyone can sign a provenance: it does not start a program that loads a checkpoint's own code."""
    (tiny / "tokenization_odd.py").write_text("1")
    line = signed(tiny, *CONVERT, *LLAMA_CPP, "--allow", "python-code")
    other_converter.unlink()
    verify = ("verify", line, "--rebuild", "--source", tiny)
    assert "say --converter llama.cpp" in packager.fails(2, *verify)
    assert "say --converter llama.cpp" in packager.fails(2, *verify, "--allow", "python-code")
    assert "say --allow python-code" in packager.fails(2, *verify, *LLAMA_CPP)
    assert not other_converter.exists()
    assert packager.ok(*verify, *LLAMA_CPP, "--allow", "python-code") == line
    assert other_converter.exists()


def test_another_converter_does_not_see_another_source(packager, signed, tiny: Path, other_converter: Path) -> None:
    line = signed(tiny, *CONVERT, *LLAMA_CPP)
    other_converter.unlink()
    (tiny / "README.md").write_text("---\nlicense: mit\n---\n# Other\n")
    (other_converter.parent / "converter" / "convert_hf_to_gguf.py").write_text("another")
    message = packager.fails(3, "verify", line, "--rebuild", "--source", tiny, *LLAMA_CPP)
    assert "the source has other bytes: README.md" in message
    assert "it was made with other programs: llama.cpp-converter sha256:" in message
    assert not other_converter.exists()


def test_a_converter_that_did_not_make_it_is_not_taken(packager, signed, tiny: Path) -> None:
    line = signed(tiny, *CONVERT)
    message = packager.fails(2, "verify", line, "--rebuild", "--source", tiny, *LLAMA_CPP)
    assert "names no other converter" in message
