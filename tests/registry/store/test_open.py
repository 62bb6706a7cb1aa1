"""Which driver a --storage value means."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifact.errors import InvalidInput
from registry.store.filesystem import FilesystemStore
from registry.store.open import open_store
from registry.store.s3 import S3Store
from registry.store.s3writer import LARGEST_PART, MAX_PARTS, PART, part_size


def test_folder_is_made(tmp_path: Path) -> None:
    assert isinstance(open_store(str(tmp_path / "a" / "b")), FilesystemStore)
    assert (tmp_path / "a" / "b").is_dir()


def test_bucket_with_and_without_prefix() -> None:
    for storage in ("s3://models", "s3://models/team/one"):
        store = open_store(storage)
        assert isinstance(store, S3Store)
        assert store.place == storage


@pytest.mark.parametrize("storage", ["gs://x", "s3://", "s3://Upper", "s3://ab/..", "s3://abc/a//b", "http://x"])
def test_refused(storage: str) -> None:
    with pytest.raises(InvalidInput):
        open_store(storage)


def test_file_and_missing_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidInput, match="is a file"):
        open_store(str(tmp_path / "file"))
    with pytest.raises(InvalidInput, match="does not exist"):
        open_store(str(tmp_path / "none"), create=False)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("size", [None, 0, PART, PART * MAX_PARTS, PART * MAX_PARTS + 1, LARGEST_PART * MAX_PARTS])
def test_parts_are_enough(size: int | None) -> None:
    part = part_size(size)
    assert part >= PART
    assert size is None or part * MAX_PARTS >= size
    assert size is None or size > PART * MAX_PARTS or part == PART
