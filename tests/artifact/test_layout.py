"""A layout folder as a repository: whole or absent, resumable, shared by processes, readable by others."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import resource
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import DigestMismatch, Malformed, NotFound, StorageFull, Unreachable
from artifact.layout import LayoutRepository
from artifact.manifest import Index, Manifest
from artifact.progress import Quiet
from artifact.source import bytes_source

QUIET = Quiet()
DATA = os.urandom(3_000_000)
BLOB = Descriptor.of(DATA, mediatypes.MODEL_WEIGHT)


def push(layout: LayoutRepository, data: bytes, media_type: str = mediatypes.MODEL_WEIGHT) -> Descriptor:
    descriptor = Descriptor.of(data, media_type)
    layout.push_blob(descriptor, bytes_source(data), QUIET)
    return descriptor


def push_model(layout: LayoutRepository, tag: str | None, data: bytes = b"weights", **extra: object) -> Descriptor:
    config = push(layout, b"{}", mediatypes.MODEL_CONFIG)
    manifest = Manifest(config, (push(layout, data),), mediatypes.MODEL_MANIFEST, **extra)  # type: ignore[arg-type]
    return layout.push_manifest(manifest.to_bytes(), mediatypes.IMAGE_MANIFEST, tag)


def files_of(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_a_pushed_model_is_found_by_tag_and_digest(tmp_path: Path) -> None:
    layout = LayoutRepository(tmp_path)
    descriptor = push_model(layout, "v1")
    assert layout.resolve("v1") == descriptor == layout.resolve(descriptor.digest)
    raw = layout.manifest("v1")[1]
    assert layout.read_blob(Manifest.parse(raw).layers[0]) == b"weights"
    assert layout.tags() == ["v1"]
    assert json.loads((tmp_path / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    with pytest.raises(NotFound, match="it has v1"):
        layout.resolve("v2")
    with pytest.raises(NotFound):
        layout.resolve(Digest.of(b"nothing"))


def test_a_tag_moves_and_the_old_manifest_stays(tmp_path: Path) -> None:
    layout = LayoutRepository(tmp_path)
    first, second = push_model(layout, "v1"), push_model(layout, "v1", b"others")
    assert layout.resolve("v1") == second
    assert layout.resolve(first.digest) == first
    assert layout.tags() == ["v1"]
    layout.delete_tag("v1")
    assert layout.tags() == []


def test_names_keep_the_repositories_of_a_store_apart(tmp_path: Path) -> None:
    one, two = LayoutRepository(tmp_path, "h:1/a"), LayoutRepository(tmp_path, "h:1/a/b")
    digest = push_model(one, "t").digest
    push_model(two, "u", b"others")
    assert (one.tags(), two.tags()) == (["t"], ["u"])
    assert two.resolve(digest).digest == digest, "content is shared, names are not"
    with pytest.raises(NotFound, match=r"h:1/a/b:t is not in the local store .* \(it has u\)"):
        two.resolve("t")


def test_a_store_that_nothing_was_put_into_is_empty(tmp_path: Path) -> None:
    store = LayoutRepository(tmp_path / "absent", "h:1/a")
    assert store.entries() == [] and store.tags() == [] and store.referrers(BLOB.digest) == []
    with pytest.raises(NotFound, match="h:1/a:t is not in the local store"):
        store.resolve("t")
    assert not (tmp_path / "absent").exists()


def test_a_folder_that_is_no_layout_says_so(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "absent"):
        with pytest.raises(NotFound, match="not an OCI image layout"):
            LayoutRepository(place).resolve("t")
    assert files_of(tmp_path) == set()


def test_a_manifest_whose_parts_are_missing_is_not_taken(tmp_path: Path) -> None:
    layout = LayoutRepository(tmp_path)
    manifest = Manifest(push(layout, b"{}", mediatypes.MODEL_CONFIG), (BLOB,))
    with pytest.raises(NotFound, match=BLOB.digest.hex):
        layout.push_manifest(manifest.to_bytes(), mediatypes.IMAGE_MANIFEST, "t")
    assert not (tmp_path / "index.json").exists()


def test_wrong_bytes_leave_nothing(tmp_path: Path) -> None:
    layout = LayoutRepository(tmp_path)
    for wrong in (DATA[:-1], DATA[:-1] + bytes([DATA[-1] ^ 1]), b""):
        with pytest.raises(DigestMismatch):
            layout.push_blob(BLOB, bytes_source(wrong), QUIET)
        assert files_of(tmp_path) == {"oci-layout"}


def test_flipped_byte_on_disk_is_caught_on_reading(tmp_path: Path) -> None:
    layout = LayoutRepository(tmp_path)
    descriptor = push_model(layout, "t")
    path = layout.blob_path(descriptor.digest)
    raw = bytearray(path.read_bytes())
    raw[5] ^= 1
    path.chmod(0o644)
    path.write_bytes(raw)
    with pytest.raises(DigestMismatch):
        layout.manifest("t")


class Breaking:
    """A source whose connection breaks after some bytes, as often as it is told to."""

    def __init__(self, data: bytes, breaks: list[int]) -> None:
        self.data, self.breaks, self.offsets = data, breaks, []

    @contextmanager
    def __call__(self, offset: int):  # type: ignore[no-untyped-def]
        self.offsets.append(offset)
        self.position = offset
        yield self

    def readinto(self, buffer: memoryview) -> int:
        if self.breaks and self.position >= self.breaks[0]:
            self.breaks.pop(0)
            raise Unreachable("broken")
        part = self.data[self.position : self.position + min(len(buffer), 100_000)]
        buffer[: len(part)] = part
        self.position += len(part)
        return len(part)


def test_a_broken_source_is_taken_up_where_it_broke(tmp_path: Path) -> None:
    layout, source = LayoutRepository(tmp_path), Breaking(DATA, [1_000_000, 2_000_000])
    assert layout.push_blob(BLOB, source, QUIET) is True
    assert source.offsets == [0, 1_000_000, 2_000_000]
    assert layout.blob_path(BLOB.digest).read_bytes() == DATA
    assert layout.push_blob(BLOB, source, QUIET) is False


def test_a_source_that_never_recovers_keeps_what_came_and_resumes_later(tmp_path: Path) -> None:
    layout = LayoutRepository(tmp_path)
    first = Breaking(DATA, [1_500_000] * 10)
    with pytest.raises(Unreachable):
        layout.push_blob(BLOB, first, QUIET)
    assert not layout.has_blob(BLOB.digest)
    later = Breaking(DATA, [])
    layout.push_blob(BLOB, later, QUIET)
    assert later.offsets == [first.position], "not a byte that came is fetched again"
    assert layout.blob_path(BLOB.digest).read_bytes() == DATA


def test_a_damaged_partial_is_begun_again(tmp_path: Path) -> None:
    layout = LayoutRepository(tmp_path)
    push(layout, b"x")
    partial = tmp_path / "ingest" / f"sha256-{BLOB.digest.hex}"
    for content in (b"rubbish" * 1000, DATA + b"more"):
        layout.blob_path(BLOB.digest).unlink(missing_ok=True)
        partial.write_bytes(content)
        layout.push_blob(BLOB, bytes_source(DATA), QUIET)
        assert layout.blob_path(BLOB.digest).read_bytes() == DATA
        assert not partial.exists()


def test_a_write_that_fails_half_way_keeps_what_came(tmp_path: Path) -> None:
    """The kernel's limit on file size makes a write stop short."""
    layout = LayoutRepository(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, limits[1]))
    try:
        with pytest.raises(OSError) as failure:
            layout.push_blob(BLOB, bytes_source(DATA), QUIET)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert failure.value.errno == errno.EFBIG
    assert not layout.has_blob(BLOB.digest)
    layout.push_blob(BLOB, bytes_source(DATA), QUIET)
    assert layout.blob_path(BLOB.digest).read_bytes() == DATA


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_really_full_disk(tmp_path: Path) -> None:
    if os.system(f"mount -t tmpfs -o size=2m tmpfs {tmp_path} 2>/dev/null"):
        pytest.skip("this system does not allow mounting a tmpfs")
    try:
        layout = LayoutRepository(tmp_path)
        with pytest.raises(StorageFull, match=r"disk full.*run the same command again"):
            layout.push_blob(BLOB, bytes_source(DATA), QUIET)
        assert not layout.has_blob(BLOB.digest)
        os.system(f"mount -o remount,size=8m {tmp_path}")
        source = Breaking(DATA, [])
        layout.push_blob(BLOB, source, QUIET)
        assert source.offsets[0] > 1_000_000, "it goes on from what it had"
    finally:
        os.system(f"umount {tmp_path}")


def _slow_push(root: Path) -> None:
    class Slow(Breaking):
        def readinto(self, buffer: memoryview) -> int:
            time.sleep(0.02)
            return super().readinto(buffer)

    LayoutRepository(root).push_blob(BLOB, Slow(DATA, []), QUIET)


def test_kill_in_the_middle_leaves_nothing_named_and_the_next_goes_on(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_slow_push, args=(tmp_path,))
    process.start()
    partial = tmp_path / "ingest" / f"sha256-{BLOB.digest.hex}"
    deadline = time.monotonic() + 20
    while not (partial.exists() and partial.stat().st_size > 500_000) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.join()
    layout = LayoutRepository(tmp_path)
    assert not layout.has_blob(BLOB.digest)
    source = Breaking(DATA, [])
    layout.push_blob(BLOB, source, QUIET)
    assert source.offsets[0] >= 500_000
    assert layout.blob_path(BLOB.digest).read_bytes() == DATA


def test_two_processes_that_store_one_blob_do_the_work_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_slow_push, args=(tmp_path,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert LayoutRepository(tmp_path).blob_path(BLOB.digest).read_bytes() == DATA
    assert list((tmp_path / "ingest").iterdir()) == []


def _tag_many(root: Path, prefix: str) -> None:
    for number in range(15):
        push_model(LayoutRepository(root), f"{prefix}{number}", f"{prefix}{number}".encode())


def test_no_tag_is_lost_between_processes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_tag_many, args=(tmp_path, prefix)) for prefix in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert len(LayoutRepository(tmp_path).tags()) == 45


def test_referrers_of_ours_and_of_other_tools(tmp_path: Path) -> None:
    layout = LayoutRepository(tmp_path)
    model = push_model(layout, "t")
    signature = push_model(layout, None, b"sig", subject=model, annotations={"k": "v"})
    other = push_model(layout, "unrelated", b"x")
    (found,) = layout.referrers(model.digest)
    assert found.digest == signature.digest
    assert (found.artifact_type, found.annotations) == (mediatypes.MODEL_MANIFEST, {"k": "v"})
    assert layout.referrers(model.digest, "application/none") == []
    assert layout.referrers(other.digest) == []
    bare = [Descriptor(item.media_type, item.digest, item.size) for item in layout.entries()]
    (tmp_path / "index.json").write_bytes(Index(bare).to_bytes())  # as a tool writes it that knows no such annotation
    assert [item.digest for item in layout.referrers(model.digest)] == [signature.digest]


@pytest.mark.parametrize("content", [b"", b"{}", b'{"schemaVersion":2,"manifests":{}}', b"\xff"])
def test_a_broken_index_is_said(tmp_path: Path, content: bytes) -> None:
    layout = LayoutRepository(tmp_path)
    push_model(layout, "t")
    (tmp_path / "index.json").write_bytes(content)
    with pytest.raises(Malformed):
        layout.resolve("t")
