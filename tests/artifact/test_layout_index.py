"""The index of a layout: it never grows to where it could not be read, and takes in everybody's tags from the first."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest

import artifact.layout.index
from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import Malformed
from artifact.layout import LayoutRepository
from artifact.layout.index import LayoutIndex, named
from artifact.manifest import Index, Manifest
from artifact.source import bytes_source
from tests.artifact.exchanges import QUIET

EMPTY = Descriptor.of(b"{}", mediatypes.EMPTY)


def push(layout: LayoutRepository, tag: str) -> Digest:
    layout.push_blob(EMPTY, bytes_source(b"{}"), QUIET)
    raw = Manifest(EMPTY, (), annotations={"tag": tag}).to_bytes()
    return layout.push_manifest(raw, mediatypes.IMAGE_MANIFEST, tag).digest


def fill(root: Path, count: int) -> None:
    """Give the layout an index with so many tags."""
    entries = (
        Descriptor(mediatypes.IMAGE_MANIFEST, Digest.of(str(n).encode()), 500, {mediatypes.REF_NAME: f"h/team/m:{n}"})
        for n in range(count)
    )
    (root / "index.json").write_bytes(Index(tuple(entries)).to_bytes())


def test_an_index_may_be_larger_than_a_manifest(tmp_path: Path) -> None:
    layout = LayoutRepository(tmp_path, "h/team/m")
    push(layout, "first")
    fill(tmp_path, 20_000)
    assert (tmp_path / "index.json").stat().st_size > 4 * 1024 * 1024
    push(layout, "last")
    assert len(layout.tags()) == 20_001


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact.layout.index, "MAX_BYTES", 100_000)
    layout = LayoutRepository(tmp_path, "h/team/m")
    push(layout, "x")
    fill(tmp_path, 400)
    with pytest.raises(Malformed, match=r"index\.json would be larger than 100,000 bytes: .* remove models"):
        for number in range(1000):
            push(layout, f"new{number}")
    before = (tmp_path / "index.json").read_bytes()
    assert 99_000 < len(before) <= 100_000
    assert len(layout.tags()) == 400 + number
    layout.delete_tag("7")
    layout.drop(layout.resolve("new0").digest)
    push(layout, "newest")
    assert "newest" in layout.tags() and "7" not in layout.tags() and "new0" not in layout.tags()


def test_an_index_that_is_too_large_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact.layout.index, "MAX_BYTES", 100_000)
    layout = LayoutRepository(tmp_path, "h/team/m")
    push(layout, "x")
    fill(tmp_path, 1000)
    with pytest.raises(Malformed, match=r"index\.json is larger than 100000 bytes"):
        layout.tags()


def slow_to_create(root: Path) -> None:
    """As on a disk that takes its time: the file that makes the folder a layout is long in getting its name."""
    replace = os.replace

    def slowly(*paths: Path) -> None:
        os.replace = replace  # type: ignore[assignment]
        time.sleep(0.5)
        replace(*paths)

    os.replace = slowly  # type: ignore[assignment]
    index = LayoutIndex(root)
    index.create()
    index.update(lambda entries: [*entries, named(EMPTY, "slow")])


def slow_to_update(root: Path) -> None:
    """Somebody who comes meanwhile, and takes long to change the index."""

    def change(entries: list[Descriptor]) -> list[Descriptor]:
        time.sleep(1)
        return [*entries, named(EMPTY, "quick")]

    while not any(root.glob(".oci-layout.*")):
        time.sleep(0.01)
    index = LayoutIndex(root)
    index.create()
    index.update(change)


def test_the_first_two_users_of_a_store_lose_no_tag(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(tmp_path,)) for work in (slow_to_create, slow_to_update)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(LayoutRepository(tmp_path).tags()) == ["quick", "slow"]
