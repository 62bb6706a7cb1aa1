"""Tar archives from strangers: what is a plain file inside is found, everything else is refused."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifact.errors import Malformed, NotFound
from runner.tarmembers import Member, member_source, read_members


def write(path: Path, *members: tuple[tarfile.TarInfo, bytes], format_: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format_) as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def named(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def content(path: Path, member: Member, offset: int = 0) -> bytes:
    buffer = bytearray(member.size + 600)
    filled = 0
    with member_source(path, member)(offset) as reader:
        while count := reader.readinto(memoryview(buffer)[filled:]):
            filled += count
    return bytes(buffer[:filled])


@pytest.mark.parametrize("format_", [tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_plain_files_are_found(tmp_path, format_):
    deep = "blobs/sha512/" + "a" * 80
    path = write(
        tmp_path / "x.tar", (named("d", tarfile.DIRTYPE), b""), (named("./d/one"), b"1" * 700), (named(deep), b""),
        format_=format_,
    )  # fmt: skip
    members = read_members(path)
    assert set(members) == {"d/one", deep}
    assert content(path, members["d/one"]) == b"1" * 700
    assert content(path, members["d/one"], 699) == b"1"
    assert content(path, members[deep]) == b""


def test_long_names_of_pax(tmp_path):
    name = "blobs/sha512/" + "f" * 128
    path = write(tmp_path / "x.tar", (named(name), b"data"))
    assert content(path, read_members(path)[name]) == b"data"


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "a//b", "a/./b", "a\\b", "..", "x/.."])
def test_names_that_lead_out_are_refused(tmp_path, name):
    with pytest.raises(Malformed, match="leads out of the archive"):
        read_members(write(tmp_path / "x.tar", (named(name), b"x")))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.FIFOTYPE, "a pipe"),
    ],
)
def test_links_and_devices_are_refused(tmp_path, kind, said):
    path = write(tmp_path / "x.tar", (named("index.json", kind, "/etc/passwd"), b""))
    with pytest.raises(Malformed, match=said):
        read_members(path)


def test_names_given_twice_are_refused(tmp_path):
    with pytest.raises(Malformed, match="twice"):
        read_members(write(tmp_path / "x.tar", (named("a"), b"1"), (named("./a"), b"2")))


def test_what_is_cut_short_or_no_archive_is_refused(tmp_path):
    whole = write(tmp_path / "x.tar", (named("a"), b"1" * 5000)).read_bytes()
    for data in (whole[:700], whole[:300], b"", b"no archive at all" * 100):
        (tmp_path / "y.tar").write_bytes(data)
        with pytest.raises(Malformed):
            read_members(tmp_path / "y.tar")
    with pytest.raises(NotFound):
        read_members(tmp_path / "none.tar")


def test_extension_headers_are_bounded(tmp_path):
    info = named("a")
    info.pax_headers = {"comment": "x" * 100_000}
    with pytest.raises(Malformed, match="extension header is larger"):
        read_members(write(tmp_path / "x.tar", (info, b"1")))


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 2047), st.integers(0, 255)), max_size=8))
def test_damage_never_does_more_than_refuse(tmp_path_factory, damage):
    path = tmp_path_factory.mktemp("tar") / "x.tar"
    write(path, (named("blobs/" + "n" * 120), b"1" * 600), (named("b"), b"2"))
    data = bytearray(path.read_bytes())
    for at, value in damage:
        data[at] = value
    path.write_bytes(data)
    try:
        members = read_members(path)
    except Malformed:
        return
    for member in members.values():
        assert member.offset + member.size <= len(data)
        assert not member.name.startswith("/")
        assert ".." not in member.name.split("/")
