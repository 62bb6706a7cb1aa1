"""Digests of a conversion's sources, made of what the converter reads, in whatever order that is."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from artifact.digest import Digest
from artifact.errors import DigestMismatch, Malformed
from artifact.progress import Quiet
from artifact.source import Source
from artifact.weights.gguf import read_header
from packager.checkpoint import PackFile
from packager.convert import Plan, plan_conversion
from packager.convert.split import plan_copy, split
from packager.files import Kind
from packager.source import open_path
from packager.witness import InFolder, SourceDigests
from tests.checkpoints.families import write_tiny


class Counted:
    """A file's content, with what was read of it by itself."""

    def __init__(self, path: Path) -> None:
        self.path, self.size, self.digest = path, path.stat().st_size, None
        self.ranges: list[tuple[int, int]] = []

    @property
    def source(self) -> Source:
        @contextmanager
        def open_at(offset: int):
            with self.path.open("rb", buffering=0) as stream:
                stream.seek(offset)
                yield stream
                self.ranges.append((offset, stream.tell()))

        return open_at


def watched(folder: Path, precision: str, shown: bool = True) -> tuple[Plan, SourceDigests, list[Counted]]:
    contents, files = [], []
    for path in sorted(folder.glob("*.safetensors")):
        contents.append(Counted(path))
        files.append(PackFile(path.name, Kind.WEIGHT, contents[-1]))  # type: ignore[arg-type]
    files.append(next(file for file in open_path(folder).files if file.path == "config.json"))
    digests = SourceDigests(files, Quiet(), shown=shown)
    return replace(plan_conversion(folder, precision), witness=InFolder(folder, digests)), digests, contents


def take(plan: Plan, offsets: Sequence[int] = (0,)) -> None:
    buffer = memoryview(bytearray(100_000))
    for offset in offsets:
        with plan.source(offset) as reader:
            while reader.readinto(buffer):
                pass


@pytest.mark.parametrize("family", ["llama", "qwen3-moe", "mixtral", "gpt2", "bert", "phi3"])
def test_the_digests_are_those_of_the_files(tmp_path: Path, family: str, monkeypatch) -> None:
    monkeypatch.setattr("packager.convert.tensors._CHUNK", 700)
    folder = write_tiny(tmp_path / "model", family)
    plan, digests, contents = watched(folder, "Q8_0")
    with digests:
        take(plan)
        found = digests.digests()
    assert found == {path: Digest.of((folder / path).read_bytes()) for path in found}
    assert "config.json" in found and len(found) == len(contents) + 1
    for content in contents:  # what it read by itself: nothing twice
        assert all(end <= start for (_, end), (start, _) in zip(content.ranges, content.ranges[1:], strict=False))
    if family in ("llama", "gpt2", "phi3"):  # one tensor becomes one: the header, and no tensor
        assert sum(end - start for content in contents for start, end in content.ranges) < 10_000


def test_a_gguf_file_that_is_cut_is_hashed_over_all_its_parts(tiny_gguf: Path) -> None:
    content = Counted(tiny_gguf)
    file = PackFile(tiny_gguf.name, Kind.WEIGHT, content)  # type: ignore[arg-type]
    with SourceDigests([file], Quiet(), shown=True) as digests:
        parts = split(replace(plan_copy(tiny_gguf), witness=InFolder(tiny_gguf.parent, digests)), 50_000)
        assert len(parts) > 2
        for part in parts:
            take(part)
        assert digests.digests() == {tiny_gguf.name: Digest.of(tiny_gguf.read_bytes())}
    header = min(tensor.offset for tensor in read_header(tiny_gguf).tensors)
    assert sum(end - start for start, end in content.ranges) < header + 1000


def test_reads_that_are_repeated_or_never_come(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "model", "llama")
    want = {path.name: Digest.of(path.read_bytes()) for path in folder.glob("*.safetensors")}
    for offsets in ((0, 5000, 0), (50_000,), ()):
        plan, digests, _ = watched(folder, "F16")
        with digests:
            take(plan, offsets)
            assert digests.digests().items() >= want.items(), offsets
    _, digests, _ = watched(folder, "F16", shown=False)
    with digests:
        assert digests.digests().items() >= want.items()


def test_a_file_that_is_cut_short_and_one_that_is_not_what_the_hub_said(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "model", "llama")
    path = next(folder.glob("*.safetensors"))
    file = PackFile(path.name, Kind.WEIGHT, Counted(path), expected=Digest.of(b"other"))  # type: ignore[arg-type]
    with SourceDigests([file], Quiet(), shown=True) as digests, pytest.raises(DigestMismatch):
        digests.digests()
    file = PackFile(path.name, Kind.WEIGHT, Counted(path))  # type: ignore[arg-type]
    path.write_bytes(path.read_bytes()[:-1])
    with SourceDigests([file], Quiet(), shown=True) as digests, pytest.raises(Malformed):
        digests.digests()
