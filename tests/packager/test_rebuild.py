"""`packager verify --rebuild`: the provenance is enough to get the same digest, and what is not the same is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.packager.conftest import Packager

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
    result = packager("verify", line, "--rebuild", "--source", tiny)
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
    assert "say --rebuild" in packager.fails(2, "verify", line)
    unsigned = packager.ok("pack", tiny, f"oci:{tmp_path}/unsigned")
    assert "has no provenance" in packager.fails(1, "verify", unsigned, "--rebuild", "--source", tiny)


def test_nothing_is_stored(packager, signed, tiny: Path, tmp_path: Path) -> None:
    line = signed(tiny, *CONVERT)
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    packager.ok("verify", line, "--rebuild", "--source", tiny)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before
