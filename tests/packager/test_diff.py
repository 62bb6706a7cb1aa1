"""`packager diff`: what differs, and what of it would have to move."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest

from artifact.digest import Digest
from artifact.weights.safetensors import read_header
from packager.tensors import Weights, read_tensors
from tests.checkpoints.tiny import write_tiny_llama

FIRST = "model-00001-of-00002.safetensors"
SECOND = "model-00002-of-00002.safetensors"


def difference(packager, *args: str | Path) -> dict:
    result = packager("diff", *args, "--json")
    assert result.status == 0, result.stderr
    return json.loads(result.stdout)


def changes(group: dict) -> dict[str, str]:
    return {line["name"]: line["change"] for line in group["lines"]}


@pytest.fixture
def changed(tiny: Path, tmp_path: Path) -> tuple[Path, int]:
    """A copy in which one tensor and the model card differ, and the length of that tensor."""
    copy = Path(shutil.copytree(tiny, tmp_path / "changed"))
    header = read_header(copy / SECOND)
    tensor = max(header.tensors, key=lambda item: item.length)
    assert tensor.name == "model.layers.1.mlp.up_proj.weight" or tensor.length > 8000
    with (copy / SECOND).open("r+b") as stream:
        stream.seek(tensor.offset)
        stream.write(b"\x01\x02\x03\x04")
    (copy / "README.md").write_text("---\nlicense: mit\n---\n# Other\n")
    return copy, tensor.length


def test_nothing_differs_from_itself(packager, tiny: Path, tiny_gguf: Path, tmp_path: Path) -> None:
    packager.ok("pack", tiny, f"oci:{tmp_path}/out")
    found = difference(packager, tiny, f"oci:{tmp_path}/out:95K-BF16-safetensors")
    # The template stands in the tokenizer's configuration, and in the artifact as a file of its own, on both sides.
    assert (found["same"], found["deltaBytes"]) == (True, 0)
    assert found["tensors"]["same"] == 20 and found["tensors"]["lines"] == []
    result = packager("diff", tiny_gguf, tiny_gguf)
    assert result.status == 0 and "no difference" in result.stdout


def test_one_tensor_differs(packager, tiny: Path, changed: tuple[Path, int], tmp_path: Path) -> None:
    folder, _ = changed
    found = difference(packager, tiny, folder)
    assert found["same"] is False
    assert changes(found["files"]) == {SECOND: "changed", "README.md": "changed"}
    assert found["metadata"]["changed"] == 2 and changes(found["metadata"]) == {"name": "changed", "licence": "changed"}
    assert found["tensors"]["changed"] == 1 and found["tensors"]["same"] == 19
    tensors = sum(tensor.length for tensor in read_header(folder / SECOND).tensors)  # so small that they are one chunk
    assert found["deltaBytes"] == tensors + (folder / "README.md").stat().st_size
    shown = packager("diff", tiny, folder).stdout
    assert "tensors: 19 same, 1 changed" in shown and f"would move {found['deltaBytes']:,} of" in shown


def test_a_tensor_that_only_moved_to_another_file_is_the_same(packager, tiny: Path, tmp_path: Path) -> None:
    other = write_tiny_llama(tmp_path / "other", shards=3)
    found = difference(packager, tiny, other)
    assert found["tensors"] == {"same": 20, "changed": 0, "added": 0, "removed": 0, "lines": []}


LARGE = {"hidden": 768, "intermediate": 2048, "heads": 8, "kv_heads": 4, "layers": 2}
"""Sizes that make most tensors larger than what is joined into one chunk."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("large") / "model", shards=2, **LARGE)


def test_large_tensors_that_moved_are_not_moved_again(packager, large: Path, tmp_path: Path) -> None:
    other = write_tiny_llama(tmp_path / "other", shards=3, **LARGE)
    found = difference(packager, large, other)
    assert found["tensors"]["same"] == 20 and found["tensors"]["lines"] == []
    small = sum(
        tensor.length for path in other.glob("*.safetensors") for tensor in read_header(path).tensors
        if tensor.length < 2**20
    )  # fmt: skip
    assert found["deltaBytes"] < small + 20_000 < found["bytes"] / 5


def test_of_indexed_artifacts_no_weights_are_read(
    packager, large: Path, tmp_path: Path, registry_server, opened: list[tuple[str, int]]
) -> None:
    host = registry_server(tmp_path / "storage").host
    copy = Path(shutil.copytree(large, tmp_path / "copy"))
    tensor = max(read_header(copy / SECOND).tensors, key=lambda item: item.length)
    with (copy / SECOND).open("r+b") as stream:
        stream.seek(tensor.offset + 5)
        stream.write(b"\x01")
    lines = [packager.ok("pack", folder, f"{host}/acme/{folder.name}", "--push") for folder in (large, copy)]
    opened.clear()
    found = difference(packager, *lines)
    assert changes(found["tensors"]) == {tensor.name: "changed"}
    assert found["deltaBytes"] == tensor.length
    assert {offset for _, offset in opened} <= {0}  # headers and configurations
    assert difference(packager, lines[0], copy)["deltaBytes"] == difference(packager, large, copy)["deltaBytes"]


def test_an_artifact_without_an_index_is_compared_by_its_bytes(
    packager, tiny: Path, changed: tuple[Path, int], tmp_path: Path, monkeypatch
) -> None:
    line = packager.ok("pack", tiny, f"oci:{tmp_path}/out")
    indexed = difference(packager, line, changed[0])
    monkeypatch.setattr("packager.packed.read_index", lambda *_: None)
    found = difference(packager, line, changed[0])
    assert (found["tensors"], found["files"]) == (indexed["tensors"], indexed["files"])
    header = (changed[0] / SECOND).stat().st_size - sum(
        item.length for item in read_header(changed[0] / SECOND).tensors
    )
    assert found["deltaBytes"] == changed[1] + header + (changed[0] / "README.md").stat().st_size


def test_tensors_that_come_and_go(packager, tiny: Path, tmp_path: Path) -> None:
    other = write_tiny_llama(tmp_path / "other", shards=2, tied=False, layers=1)
    found = difference(packager, tiny, other)
    assert changes(found["tensors"])["lm_head.weight"] == "added"
    assert found["tensors"]["removed"] == 9
    assert found["tensors"]["same"] == 11  # random, but by name


def test_of_a_registry_only_what_may_be_the_same_is_read(
    packager, tiny: Path, changed: tuple[Path, int], tmp_path: Path, registry_server, opened: list[tuple[str, int]]
) -> None:
    host = registry_server(tmp_path / "storage").host
    first = packager.ok("pack", tiny, f"{host}/acme/model", "--push")
    second = packager.ok("pack", changed[0], f"{host}/acme/changed", "--push")
    opened.clear()
    remote, local = difference(packager, first, second), difference(packager, tiny, changed[0])
    shared, other = (str(Digest.of((changed[0] / name).read_bytes())) for name in (FIRST, SECOND))
    assert {offset for digest, offset in opened if digest == shared} == {0}  # its header
    assert {offset for digest, offset in opened if digest == other} > {0}
    for found in (remote, local):
        del found["before"], found["after"]
    assert remote == local
    assert packager.stored == []


def test_only_the_wanted_tensors_are_read(tiny: Path) -> None:
    from artifact.progress import Quiet
    from artifact.source import file_source
    from packager.checkpoint import PackFile
    from packager.content import Made
    from packager.files import Kind

    header = read_header(tiny / SECOND)
    first, *_, last = header.tensors
    offsets: list[int] = []

    def source(offset: int):
        offsets.append(offset)
        return file_source(tiny / SECOND)(offset)

    seen: dict[str, bytes] = {}
    weights = Weights(PackFile(SECOND, Kind.WEIGHT, Made(header.size, source)), header)
    read_tensors(
        weights, {first.name, last.name}, lambda tensor, data: seen.update({tensor.name: bytes(data)}), Quiet()
    )
    raw = (tiny / SECOND).read_bytes()
    assert seen == {item.name: raw[item.offset : item.offset + item.length] for item in (first, last)}
    assert offsets == [first.offset]  # near enough to be read through


def test_what_cannot_be_compared(packager, tiny: Path, tmp_path: Path) -> None:
    assert "no such file" in packager.fails(1, "diff", tiny, tmp_path / "nothing")
    (tiny / SECOND).write_bytes(struct.pack("<Q", 2) + b"{}")
    assert SECOND in packager.fails(1, "diff", tiny, tiny)
