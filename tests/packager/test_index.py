"""The tensor index that every artifact gets: the same whatever way its bytes took."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from pathlib import Path

import pytest

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import DigestMismatch, Malformed, ServerError
from artifact.layout import LayoutRepository
from artifact.locate import open_repository
from artifact.manifest import Manifest
from artifact.progress import Quiet
from artifact.reference import Reference
from artifact.repository import Repository
from artifact.source import bytes_source
from artifact.tensorindex import FileIndex, TensorIndex
from artifact.tensorindex.attach import read_index
from artifact.weights import gguf, safetensors
from packager.checkpoint import PackFile
from packager.content import OnDisk
from packager.files import Kind
from packager.indexing import Indexing
from tests.checkpoints.tiny import write_tiny_llama
from tests.packager.gguf_files import write_projector

CONVERT = ("--format", "gguf", "--precision", "F16")
TAG = "95K-BF16-safetensors"


@pytest.fixture(autouse=True)
def all_files_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the ways of large files are taken."""
    monkeypatch.setattr("packager.storing._SMALL", 2000)


def found(line: str) -> tuple[Manifest, TensorIndex, dict[str, bytes]]:
    """What is behind the last line of a pack: the manifest, its index, and the weight files."""
    reference = Reference.parse(line)
    repository = open_repository(reference)
    descriptor, raw = repository.manifest(reference.digest)
    manifest = Manifest.parse(raw, descriptor.media_type)
    index = read_index(repository, manifest)
    assert index is not None
    assert index[1].digest == Digest.parse(manifest.annotations["dev.stowage.index"])
    (referrer,) = repository.referrers(descriptor.digest, mediatypes.TENSOR_INDEX)
    assert Manifest.parse(repository.manifest(referrer.digest)[1]).layers[0].digest == index[1].digest
    held = {}
    for layer in manifest.layers:
        path = layer.annotations["org.cncf.model.filepath"]
        if path.endswith((".gguf", ".safetensors")):
            held[path] = blob(repository, layer.digest, layer.size)
    return manifest, index[0], held


def blob(repository: Repository, digest: Digest, size: int) -> bytes:
    return repository.read_blob(Descriptor("application/octet-stream", digest, size), size)


def check(line: str) -> TensorIndex:
    """The index says of every weight file what its bytes say."""
    _, index, held = found(line)
    assert [file.path for file in index.files] == sorted(held)
    for file in index.files:
        data = held[file.path]
        assert (file.digest, file.size) == (Digest.of(data), len(data))
        read = gguf.read_source if file.path.endswith(".gguf") else safetensors.read_source
        tensors = read(bytes_source(data), len(data), file.path).tensors
        assert [*file.tensors] == sorted(tensors, key=lambda tensor: tensor.offset)
        covered = 0
        for chunk in file.chunks:
            assert chunk.digest == hashlib.sha256(data[chunk.offset : chunk.end]).digest()
            assert not any(data[covered : chunk.offset])
            covered = chunk.end
        assert not any(data[covered:])
    return index


@pytest.mark.parametrize("options", [(), ("--layout", "docker"), CONVERT, (*CONVERT, "--split-max-size", "1M")])
def test_the_same_index_whatever_way_the_bytes_take(packager, tmp_path: Path, registry_server, options) -> None:
    checkpoint = write_tiny_llama(tmp_path / "model", shards=2, hidden=128, intermediate=512, layers=8)
    host = registry_server(tmp_path / "storage").host
    local = packager.ok("pack", checkpoint, f"oci:{tmp_path}/out", *options)
    index = check(local)
    assert len(index.files) > 1 or "--split-max-size" not in options
    assert sum(len(file.chunks) for file in index.files) > 4
    pushed = packager.ok("pack", checkpoint, f"{host}/acme/model", "--push", *options)
    again = packager.ok("pack", checkpoint, f"{host}/acme/model", "--push", *options)
    copied = packager.ok("push", pushed, f"oci:{tmp_path}/copy")
    for line in (pushed, again, copied):
        assert line.rpartition("@")[2] == local.rpartition("@")[2]
        assert check(line) == index


def test_an_artifact_packed_again_keeps_the_index_of_its_files(
    packager, tiny: Path, tmp_path: Path, registry_server, opened
) -> None:
    host = registry_server(tmp_path / "storage").host
    line = packager.ok("pack", tiny, f"{host}/acme/model", "--push")
    weights = {str(file.digest): file.size for file in check(line).files}
    for target in (f"{host}/acme/other", f"oci:{tmp_path}/out"):
        opened.clear()
        again = packager.ok(
            "pack", line, target, *(("--push",) if host in target else ()), "--file-filter", "!README.md"
        )
        asked = [digest for digest, offset in opened if digest in weights and offset == 0]
        assert len(asked) == len(weights) * (1 if host in target else 2)  # headers; and the copy, where it is one
        assert check(again) == check(line)


@pytest.mark.parametrize("damage", ["lost", "stale"])
def test_without_an_index_that_can_be_used_the_weights_are_read(
    packager, tiny: Path, tmp_path: Path, damage: str
) -> None:
    line = packager.ok("pack", tiny, f"oci:{tmp_path}/out")
    manifest, index, _ = found(line)
    direct = packager.ok("pack", line, f"oci:{tmp_path}/first", "--file-filter", "!README.md")
    path = LayoutRepository(tmp_path / "out").blob_path(Digest.parse(manifest.annotations["dev.stowage.index"]))
    path.unlink()
    if damage == "stale":
        path.write_bytes(index.to_bytes().replace(b"a", b"b"))
    result = packager("pack", line, f"oci:{tmp_path}/second", "--file-filter", "!README.md")
    assert result.status == 0 and "the weights are read instead" in result.stderr
    assert result.last.rpartition("@")[2] == direct.rpartition("@")[2]
    check(result.last)
    card = json.loads(packager("inspect", line, "--json").stdout)
    assert card["index"] is None
    assert "index-missing" in {finding["code"] for finding in card["findings"]}


def test_inspect_shows_it(packager, tiny: Path, tmp_path: Path) -> None:
    line = packager.ok("pack", tiny, f"oci:{tmp_path}/out")
    manifest, index, _ = found(line)
    chunks = sum(len(file.chunks) for file in index.files)
    card = json.loads(packager("inspect", line, "--json").stdout)
    assert card["index"] == {"digest": manifest.annotations["dev.stowage.index"], "chunks": chunks}
    assert f"{chunks} chunks" in packager("inspect", line).stdout
    assert json.loads(packager("inspect", tiny, "--json").stdout)["index"] is None


def test_where_nothing_may_refer_to_a_model_it_is_packed_all_the_same(
    packager, tiny: Path, tmp_path: Path, monkeypatch
):
    push_manifest = LayoutRepository.push_manifest

    def refusing(self: LayoutRepository, raw: bytes, media_type: str, tag: str | None = None) -> Descriptor:
        if Manifest.parse(raw, media_type).subject is not None:
            raise ServerError("the registry takes no such manifest")
        return push_manifest(self, raw, media_type, tag)

    monkeypatch.setattr(LayoutRepository, "push_manifest", refusing)
    result = packager("pack", tiny, f"oci:{tmp_path}/out")
    assert result.status == 0 and "the tensor index is not attached" in result.stderr
    assert json.loads(packager("inspect", result.last, "--json").stdout)["index"]


def test_a_projector_is_in_it_too(packager, tmp_path: Path, tiny_gguf: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(tiny_gguf, folder / "tiny-F16.gguf")
    write_projector(folder / "mmproj-F16.gguf")
    index = check(packager.ok("pack", folder, f"oci:{tmp_path}/out"))
    assert [file.path for file in index.files] == ["mmproj-F16.gguf", "tiny-F16.gguf"]


def indexing(path: Path) -> Indexing:
    return Indexing(PackFile(path.name, Kind.WEIGHT, OnDisk(path)), gguf.read_header(path).tensors)


def take(source, offset: int, count: int, step: int = 1000) -> None:
    with source(offset) as reader:
        while count > 0:
            buffer = memoryview(bytearray(min(step, count)))
            got = reader.readinto(buffer)
            assert got
            count -= got


@pytest.mark.parametrize("step", [1000, 200_000])
def test_reads_that_start_over_and_reads_that_go_on_in_the_middle(tiny_gguf: Path, step: int) -> None:
    size, digest = tiny_gguf.stat().st_size, Digest.of(tiny_gguf.read_bytes())

    def result(*reads: tuple[int, int]) -> FileIndex:
        watched = indexing(tiny_gguf)
        for offset, count in reads:
            take(watched.source, offset, count, step)
        return watched.result(digest, Quiet(), threading.Event())

    whole = result((0, size))
    assert result((0, 5000), (2000, 8000), (10000, size - 10000)) == whole
    assert result((7000, size - 7000)) == whole  # a transfer that goes on where an earlier one stopped
    assert result() == whole  # one that was not needed


def test_what_is_read_for_the_index_alone_is_checked(tiny_gguf: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(tiny_gguf, tmp_path / "model.gguf"))
    watched, digest = indexing(path), Digest.of(path.read_bytes())
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DigestMismatch):
        watched.result(digest, Quiet(), threading.Event())
    watched = indexing(path)
    path.write_bytes(raw[:-100])
    with pytest.raises(Malformed):
        watched.result(digest, Quiet(), threading.Event())
