"""Finding chunks in the layouts that are here: nearest first, within bounds, and never where they are not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import artifact.layout.local
from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.layout import LayoutRepository
from artifact.layout.local import find_chunks
from artifact.manifest import Manifest
from artifact.source import bytes_source
from artifact.tensorindex import Chunker, FileIndex, TensorIndex
from artifact.tensorindex.attach import annotated, push_index, push_referrer
from artifact.weights.tensor import Tensor
from tests.artifact.exchanges import QUIET

SHARED = os.urandom(3_000_000)
TENSOR = [Tensor("shared", "U8", (len(SHARED),), 1000, len(SHARED))]


def stored(root: Path, name: str, tag: str) -> tuple[LayoutRepository, FileIndex]:
    """A model with a header of its own and the tensor that all have."""
    layout, data = LayoutRepository(root, name), os.urandom(1000) + SHARED
    chunker = Chunker(TENSOR, len(data))
    chunker.update(data)
    file = FileIndex("m.gguf", Digest.of(data), len(data), TENSOR, chunker.finish())
    raw = TensorIndex.of([file]).to_bytes()
    config = Descriptor.of(b"{}", mediatypes.MODEL_CONFIG)
    layer = Descriptor(mediatypes.MODEL_WEIGHT, file.digest, file.size)
    layout.push_blob(config, bytes_source(b"{}"), QUIET)
    layout.push_blob(layer, bytes_source(data), QUIET)
    index = push_index(layout, raw)
    manifest = Manifest(config, (layer,), mediatypes.MODEL_MANIFEST, annotations=annotated({}, raw))
    push_referrer(layout, layout.push_manifest(manifest.to_bytes(), manifest.media_type, tag), index)
    return layout, file


def found_in(layouts: list[LayoutRepository], wanted: FileIndex, first: str = "") -> set[Path]:
    found = find_chunks(layouts, {chunk.digest for chunk in wanted.chunks}, first)
    for digest, place in found.items():
        (chunk,) = (chunk for chunk in wanted.chunks if chunk.digest == digest)
        with place.path.open("rb") as stream:
            stream.seek(place.offset)
            assert Digest.of(stream.read(chunk.length)).hex == digest.hex()
    return {place.path for place in found.values()}


def test_the_same_repository_comes_first_and_then_the_newest(tmp_path: Path) -> None:
    layout, mine = stored(tmp_path, "team/model", "1")
    _, other = stored(tmp_path, "team/other", "1")
    _, newest = stored(tmp_path, "team/another", "1")
    wanted = FileIndex("m.gguf", mine.digest, mine.size, TENSOR, mine.chunks[1:])
    assert found_in([layout], wanted, "team/model") == {layout.blob_path(mine.digest)}
    assert found_in([layout], wanted, "team/other") == {layout.blob_path(other.digest)}
    assert found_in([layout], wanted) == {layout.blob_path(newest.digest)}


def test_every_layout_is_looked_into(tmp_path: Path) -> None:
    user, _ = LayoutRepository(tmp_path / "none"), None
    system, file = stored(tmp_path / "system", "team/model", "1")
    assert found_in([user, system], file) == {system.blob_path(file.digest)}


@pytest.mark.parametrize("how", ["gone", "short", "damaged index", "no index"])
def test_what_is_not_there_is_not_found(tmp_path: Path, how: str) -> None:
    layout, file = stored(tmp_path, "team/model", "1")
    manifest = Manifest.parse(layout.manifest("1")[1])
    path = layout.blob_path(file.digest if how in ("gone", "short") else _index(manifest))
    path.chmod(0o644)
    if how == "damaged index":
        path.write_bytes(path.read_bytes()[:-1] + b" ")
    elif how == "short":
        os.truncate(path, 5000)
    else:
        path.unlink()
    assert not found_in([layout], file)


def _index(manifest: Manifest) -> Digest:
    return Digest.parse(manifest.annotations[mediatypes.INDEX])


def test_how_far_is_looked_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, oldest = stored(tmp_path, "team/model", "1")
    for number in range(3):
        stored(tmp_path, "team/model", f"newer{number}")
    assert len(found_in([layout], oldest)) == 2, "its header is in it alone, the tensor in the newest"
    monkeypatch.setattr(artifact.layout.local, "MAX_INDEXES", 3)
    assert len(found_in([layout], oldest)) == 1
    monkeypatch.setattr(artifact.layout.local, "MAX_INDEX_BYTES", 100)
    assert not found_in([layout], oldest)
