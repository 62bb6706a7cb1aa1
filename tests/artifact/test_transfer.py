"""Copying artifacts whole: blobs first, manifest last, referrers along."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import pytest

import artifact.transfer
from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import DigestMismatch, InvalidInput, Malformed, NotFound
from artifact.layout import LayoutRepository
from artifact.locate import local_repository, open_repository, resolve
from artifact.manifest import Index, Manifest
from artifact.progress import Quiet
from artifact.reference import Reference
from artifact.remote import RemoteRepository
from artifact.source import bytes_source
from artifact.store import default_store
from artifact.transfer import copy_artifact

QUIET = Quiet()


def push(layout: LayoutRepository, data: bytes, media_type: str) -> Descriptor:
    descriptor = Descriptor.of(data, media_type)
    layout.push_blob(descriptor, bytes_source(data), QUIET)
    return descriptor


def push_model(
    layout: LayoutRepository, tag: str | None, *contents: bytes, subject: Descriptor | None = None
) -> Digest:
    layers = tuple(push(layout, data, mediatypes.MODEL_WEIGHT) for data in contents)
    manifest = Manifest(push(layout, b"{}", mediatypes.MODEL_CONFIG), layers, mediatypes.MODEL_MANIFEST, subject)
    return layout.push_manifest(manifest.to_bytes(), mediatypes.IMAGE_MANIFEST, tag).digest


def test_a_model_travels_with_what_refers_to_it(tmp_path: Path) -> None:
    source, target = LayoutRepository(tmp_path / "a"), LayoutRepository(tmp_path / "b", "h:1/x")
    digest = push_model(source, "v1", b"one", b"two", b"")
    signature = push_model(source, None, b"sig", subject=source.resolve(digest))
    on_signature = push_model(source, None, b"countersignature", subject=source.resolve(signature))
    legacy = push_model(source, f"sha256-{digest.hex}.sig", b"legacy")
    copied = copy_artifact(source, target, digest, tag="v1", progress=QUIET, referrers=True)
    assert copied.digest == digest and target.tags() == sorted(["v1", f"sha256-{digest.hex}.sig"])
    assert [item.digest for item in target.referrers(digest)] == [signature]
    assert [item.digest for item in target.referrers(signature)] == [on_signature]
    assert target.resolve(f"sha256-{digest.hex}.sig").digest == legacy
    for layer in Manifest.parse(target.manifest(digest)[1]).layers:
        assert layer.digest.matches(target.read_blob(layer))


def test_without_referrers_only_the_model_travels(tmp_path: Path) -> None:
    source, target = LayoutRepository(tmp_path / "a"), LayoutRepository(tmp_path / "b")
    digest = push_model(source, "v1", b"one")
    push_model(source, None, b"sig", subject=source.resolve(digest))
    copy_artifact(source, target, digest, progress=QUIET)
    assert target.referrers(digest) == [] and target.tags() == []


def test_a_flood_of_referrers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = LayoutRepository(tmp_path / "a"), LayoutRepository(tmp_path / "b")
    digest = push_model(source, "v1", b"one")
    for number in range(5):
        push_model(source, None, bytes(1000) + bytes([number]), subject=source.resolve(digest))
    monkeypatch.setattr(artifact.transfer, "MAX_REFERRERS", 4)
    with pytest.raises(Malformed, match="more than 4 manifests"):
        copy_artifact(source, target, digest, progress=QUIET, referrers=True)
    monkeypatch.setattr(artifact.transfer, "MAX_REFERRERS", 5)
    monkeypatch.setattr(artifact.transfer, "MAX_REFERRER_BYTES", 4000)
    with pytest.raises(Malformed, match="larger than 4000 bytes"):
        copy_artifact(source, target, digest, progress=QUIET, referrers=True)
    monkeypatch.setattr(artifact.transfer, "MAX_REFERRER_BYTES", 40_000)
    copy_artifact(source, target, digest, progress=QUIET, referrers=True)
    assert len(target.referrers(digest)) == 5


def test_indexes_among_the_referrers_count_like_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is named again and again is copied once; and what one referrer names is no way around the bounds."""

    class Counting(LayoutRepository):
        asked = 0

        def manifest(self, reference: str | Digest) -> tuple[Descriptor, bytes]:
            self.asked += 1
            return super().manifest(reference)

    source = Counting(tmp_path / "a")
    digest = push_model(source, "v1", b"one")
    inner = source.push_manifest(Index([]).to_bytes(), mediatypes.IMAGE_INDEX)
    for _ in range(2):
        inner = source.push_manifest(Index([inner] * 40).to_bytes(), mediatypes.IMAGE_INDEX)
    subject = source.resolve(digest)
    top = source.push_manifest(Index([inner] * 40, "a/b", subject).to_bytes(), mediatypes.IMAGE_INDEX)
    source.asked = 0
    target = LayoutRepository(tmp_path / "b")
    copy_artifact(source, target, digest, progress=QUIET, referrers=True)
    assert [item.digest for item in target.referrers(digest)] == [top.digest] and target.has_blob(inner.digest)
    assert source.asked < 20
    monkeypatch.setattr(artifact.transfer, "MAX_REFERRERS", 3)
    with pytest.raises(Malformed, match="more than 3 manifests"):
        copy_artifact(source, LayoutRepository(tmp_path / "c"), digest, progress=QUIET, referrers=True)
    monkeypatch.setattr(artifact.transfer, "MAX_REFERRERS", 4)
    monkeypatch.setattr(artifact.transfer, "MAX_REFERRER_BYTES", top.size + inner.size)
    with pytest.raises(Malformed, match="larger than"):
        copy_artifact(source, LayoutRepository(tmp_path / "d"), digest, progress=QUIET, referrers=True)


def test_what_refers_to_a_member_that_is_also_a_referrer_follows(tmp_path: Path) -> None:
    source, target = LayoutRepository(tmp_path / "a"), LayoutRepository(tmp_path / "b")
    digest = push_model(source, "v1", b"one")
    subject = source.resolve(digest)
    signature = source.resolve(push_model(source, None, b"sig", subject=subject))
    on_signature = push_model(source, None, b"countersignature", subject=signature)
    source.push_manifest(Index([signature], "a/b", subject).to_bytes(), mediatypes.IMAGE_INDEX)
    copy_artifact(source, target, digest, progress=QUIET, referrers=True)
    assert [item.digest for item in target.referrers(signature.digest)] == [on_signature]


def test_an_index_travels_with_its_members(tmp_path: Path) -> None:
    source, target = LayoutRepository(tmp_path / "a"), LayoutRepository(tmp_path / "b")
    members = [source.resolve(push_model(source, None, name)) for name in (b"one", b"two")]
    index = source.push_manifest(Index(members).to_bytes(), mediatypes.IMAGE_INDEX, "all")
    assert copy_artifact(source, target, index.digest, tag="all", progress=QUIET) == index
    assert all(target.has_blob(member.digest) for member in members)


def test_manifests_nested_without_end_are_refused(tmp_path: Path) -> None:
    source = LayoutRepository(tmp_path / "a")
    inner = source.resolve(push_model(source, None, b"x"))
    for _ in range(8):
        inner = source.push_manifest(Index([inner]).to_bytes(), mediatypes.IMAGE_INDEX)
    with pytest.raises(Malformed, match="levels deep"):
        copy_artifact(source, LayoutRepository(tmp_path / "b"), inner.digest, progress=QUIET)


def test_one_bad_blob_stops_the_copy_and_nothing_is_named(tmp_path: Path) -> None:
    source, target = LayoutRepository(tmp_path / "a"), LayoutRepository(tmp_path / "b")
    digest = push_model(source, "v1", b"good", b"a" * 1000, b"c" * 50_000_000)
    bad = source.blob_path(Digest.of(b"a" * 1000))
    bad.chmod(0o644)
    bad.write_bytes(b"b" + b"a" * 999)
    with pytest.raises(DigestMismatch, match="damaged or were tampered with"):
        copy_artifact(source, target, digest, tag="v1", progress=QUIET)
    assert not (tmp_path / "b" / "index.json").exists()
    assert not target.has_blob(Digest.of(b"a" * 1000))


def test_a_missing_blob_is_named(tmp_path: Path) -> None:
    source = LayoutRepository(tmp_path / "a")
    digest = push_model(source, "v1", b"gone")
    source.blob_path(Digest.of(b"gone")).unlink()
    with pytest.raises(NotFound, match=Digest.of(b"gone").hex):
        copy_artifact(source, LayoutRepository(tmp_path / "b"), digest, progress=QUIET)


def test_the_same_digest_as_config_and_layer_is_still_checked(tmp_path: Path) -> None:
    """Ollama #15504: a digest that appears twice must not skip verification."""
    source, target = LayoutRepository(tmp_path / "a"), LayoutRepository(tmp_path / "b")
    blob = push(source, b"both", mediatypes.MODEL_CONFIG)
    manifest = Manifest(blob, (Descriptor(mediatypes.MODEL_WEIGHT, blob.digest, blob.size),))
    digest = source.push_manifest(manifest.to_bytes(), mediatypes.IMAGE_MANIFEST, "t").digest
    source.blob_path(blob.digest).chmod(0o644)
    source.blob_path(blob.digest).write_bytes(b"evil")
    with pytest.raises(DigestMismatch):
        copy_artifact(source, target, digest, progress=QUIET)
    assert not target.has_blob(blob.digest)


def test_progress_adds_up(tmp_path: Path) -> None:
    class Counting(Quiet):
        def __init__(self) -> None:
            self.totals: dict[str, int] = {}
            self.moved: dict[str, int] = {}
            self.notes: dict[str, str] = {}

        def begin(self, name: str, total: int) -> None:
            self.totals[name] = total

        def advance(self, name: str, count: int) -> None:
            self.moved[name] = self.moved.get(name, 0) + count

        def finish(self, name: str, note: str = "") -> None:
            self.notes[name] = note

    source, target = LayoutRepository(tmp_path / "a"), LayoutRepository(tmp_path / "b")
    digest = push_model(source, "v1", b"one" * 1_000_000, b"two")
    first, second = Counting(), Counting()
    copy_artifact(source, target, digest, progress=first)
    assert first.moved == first.totals and set(first.notes.values()) == {""}
    copy_artifact(source, target, digest, progress=second)
    assert second.moved == {} and set(second.notes.values()) == {"exists"}


# --- from a reference to its place ---


def test_references_name_their_places(tmp_path: Path) -> None:
    remote = open_repository(Reference.parse("localhost:5000/a/b:t"))
    assert isinstance(remote, RemoteRepository) and remote.place == "localhost:5000/a/b"
    layout = open_repository(Reference.parse(f"oci:{tmp_path}:t"))
    assert isinstance(layout, LayoutRepository) and layout.place == f"oci:{tmp_path}"
    local = open_repository(Reference.parse("a/b:t"), store=tmp_path)
    assert isinstance(local, LayoutRepository) and (local.root, local.name) == (tmp_path, "a/b")
    kept = local_repository(Reference.parse("localhost:5000/a/b:t"), tmp_path)
    assert kept.name == "localhost:5000/a/b"


def test_the_store_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STOWAGE_STORE", str(tmp_path))
    assert default_store() == tmp_path
    monkeypatch.delenv("STOWAGE_STORE")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_store() == Path("/data/stowage/store")
    monkeypatch.setenv("XDG_DATA_HOME", "relative/is/ignored")
    assert default_store() == Path.home() / ".local/share/stowage/store"


def test_tag_and_digest_must_agree(tmp_path: Path) -> None:
    layout = LayoutRepository(tmp_path)
    one, two = push_model(layout, "one", b"1"), push_model(layout, "two", b"2")
    place = Reference.parse(f"oci:{tmp_path}")
    assert resolve(layout, place.with_tag("one")).digest == one
    assert resolve(layout, place.with_digest(two)).digest == two
    assert resolve(layout, place.with_tag("one").with_digest(one)).digest == one
    with pytest.raises(DigestMismatch, match="the tag has moved"):
        resolve(layout, place.with_tag("one").with_digest(two))
    with pytest.raises(InvalidInput, match=r"neither a tag nor a digest \(it has one, two\)"):
        resolve(layout, place)


def test_a_source_that_is_not_asked_is_not_read(tmp_path: Path) -> None:
    """What the target has is not fetched again."""
    target = LayoutRepository(tmp_path)
    blob = push(target, b"here", mediatypes.MODEL_WEIGHT)

    @contextmanager
    def unreadable(offset: int):  # type: ignore[no-untyped-def]
        raise AssertionError("opened")
        yield

    assert target.push_blob(blob, unreadable, QUIET) is False
