"""Pushing a new version of a model: what the registry has is not sent again."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from artifact.digest import Digest
from artifact.errors import InvalidInput, NotFound
from artifact.layout import LayoutRepository
from artifact.locate import base_at
from artifact.remote import RemoteRepository, composition
from artifact.remote.composition import Composition, Held, document
from artifact.remote.credentials import Credentials
from artifact.remote.delta import Base, base_of
from artifact.tensorindex import Chunk, FileIndex, TensorIndex
from artifact.tensorindex.attach import read_index
from artifact.transfer import copy_artifact
from artifact.weights.tensor import Tensor
from tests.artifact.exchanges import QUIET
from tests.artifact.test_tensorindex import SIZES, chunks_of, files
from tests.artifact.versions import MIB, file_index, store, tensors, weights
from tests.checkpoints.tiny import write_tiny_llama
from tests.registry import secured
from tests.registry.servers import RunningRegistry, StartRegistry


def send(layout: Path, tag: str, target: RemoteRepository, base: Base | None = None) -> None:
    """As ``packager push``, to the tag ``latest``."""
    source = LayoutRepository(layout)
    copy_artifact(source, target, source.resolve(tag).digest, tag="latest", progress=QUIET, base=base)


def push(layout: Path, tag: str, target: str, *options: str) -> str:
    """``packager push``; what it says on stderr."""
    command = [sys.executable, "-c", "from packager.cli import main; main()", "push", f"oci:{layout}:{tag}", target]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def received(server: RunningRegistry) -> int:
    """Bytes of blobs and lists of ranges that reached the registry, as it counts them itself."""
    text = httpx.get(f"{server.url}/metrics").text
    found = re.findall(r'^stowage_registry_received_bytes_total\{route="uploads?"\} (\S+)', text, re.MULTILINE)
    return round(sum(map(float, found)))


def pulled(host: str, name: str, data: bytes) -> bool:
    blob = httpx.get(f"http://{host}/v2/{name}/blobs/{Digest.of(data)}", follow_redirects=True)
    return blob.content == data


@pytest.fixture(params=["filesystem", pytest.param("s3", marks=pytest.mark.s3)])
def server(request: pytest.FixtureRequest, registry_server: StartRegistry, tmp_path: Path) -> RunningRegistry:
    if request.param == "filesystem":
        return registry_server(tmp_path / "storage")
    s3 = request.getfixturevalue("s3")
    return registry_server(s3.storage(), env=s3.env)


def test_only_what_changed_is_sent(server: RunningRegistry, tmp_path: Path) -> None:
    """The header changes and moves every tensor, one tensor is another; then it is as before under a second name."""
    old, changed = tensors(), {**tensors(), "t3": b"\x01" * (3 * MIB)}
    versions = [weights(old), weights(old, "a longer note"), weights(changed, "a longer note still")]
    for number, data in enumerate(versions):
        store(tmp_path / "layout", f"v{number}", data)
    counts = []
    for number in range(3):
        before = received(server)
        said = push(tmp_path / "layout", f"v{number}", f"{server.host}/team/model:latest")
        counts.append(received(server) - before)
        assert re.search(r"moved \S+ [kM]?B of 19 MB", said), said
        assert pulled(server.host, "team/model", versions[number])
    assert counts[0] > 18 * MIB
    assert counts[1] < 20_000, "the header, the index, the ranges and the referrer"
    assert 3 * MIB < counts[2] < 3 * MIB + 20_000
    assert "moved 3.1 MB of" in said
    options = ("--delta-from", f"{server.host}/team/model:latest")
    before = received(server)
    assert "moved 3.1 MB of" in push(tmp_path / "layout", "v0", f"{server.host}/team/other:v0", *options)
    assert 3 * MIB < received(server) - before < 3 * MIB + 20_000
    remote = RemoteRepository(server.host, "team/model")
    assert read_index(remote, store(tmp_path / "layout", "v2", versions[2])) is not None


def test_what_is_packed_into_a_registry_rests_on_the_version_there(
    registry_server: StartRegistry, tmp_path: Path
) -> None:
    """The same tag; then another repository, which --delta-from names; sizes equal and not."""
    server = registry_server(tmp_path / "storage")
    folder = write_tiny_llama(tmp_path / "model", hidden=768, intermediate=2048, heads=8, kv_heads=4, layers=1)
    file = folder / "model.safetensors"
    moved, found = [], []
    for target, options in (
        ("team/model:BF16-safetensors", ()),
        ("team/model:BF16-safetensors", ()),
        ("team/other", ("--delta-from", f"{server.host}/team/model:BF16-safetensors")),
    ):
        before = received(server)
        command = [sys.executable, "-c", "from packager.cli import main; main()", "pack", str(folder)]
        done = subprocess.run([*command, f"{server.host}/{target}", "--push", *options], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert re.search(r"moved \S+ [kM]?B of 1\d MB", done.stderr), done.stderr
        moved.append(received(server) - before)
        found.append(done.stdout.rpartition("@")[2].strip())
        assert pulled(server.host, target.partition(":")[0], file.read_bytes())
        data = file.read_bytes()
        # Another tensor, in a file of the same size; then all of them elsewhere in the file.
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if len(moved) == 1 else noted(data))
    assert moved[0] > 12 * MIB
    assert moved[1] < 4 * MIB
    assert moved[2] < 4 * MIB
    assert len(set(found)) == 3


def noted(data: bytes) -> bytes:
    """A safetensors file with more metadata, which moves all tensors."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps({**json.loads(data[8:end]), "__metadata__": {"format": "pt", "note": "a longer one"}}).encode()
    return len(header).to_bytes(8, "little") + header + data[end:]


def test_a_base_in_another_repository(registry_server: StartRegistry, tmp_path: Path) -> None:
    """By tokens for both. What may not be read there is not composed from, even if its index is known."""
    rules = secured.RULES + '[[access]]\nprincipals = ["bob"]\nrepositories = ["carol/shared"]\nrights = ["pull"]\n'
    config = secured.configure(tmp_path, secured.AUTH + secured.TOKEN + rules)
    server = registry_server(tmp_path / "data", "--config", str(config))
    fresh = weights(tensors(), "new")
    store(tmp_path / "layout", "v1", weights(tensors()))
    store(tmp_path / "layout", "v2", fresh)
    for name in ("carol/shared", "carol/private"):
        send(tmp_path / "layout", "v1", repository(server, name, "carol"))
    shared = Base(repository(server, "carol/shared", "bob"), "latest")
    before = received(server)
    send(tmp_path / "layout", "v2", repository(server, "team/a", "bob"), shared)
    assert received(server) - before < 20_000
    renamed = repository(server, "carol/shared", "bob")
    renamed.name = "carol/private"  # what is known of one, said of the other
    renamed.manifest, renamed.read_blob = shared.repository.manifest, shared.repository.read_blob  # type: ignore
    renamed.blob_size = shared.repository.blob_size  # type: ignore[method-assign]
    before = received(server)
    send(tmp_path / "layout", "v2", repository(server, "team/b", "bob"), Base(renamed, "latest"))
    assert received(server) - before >= len(fresh)


def repository(server: RunningRegistry, name: str, user: str) -> RemoteRepository:
    login = {"username": user, "password": secured.PASSWORDS[user]}
    return RemoteRepository(server.host, name, credentials=Credentials(Path(), {"auths": {server.host: login}}))


def test_a_base_that_is_none_is_said_to_be_so(registry_server: StartRegistry, tmp_path: Path) -> None:
    server = registry_server(tmp_path / "storage")
    with pytest.raises(InvalidInput, match="names no registry"):
        base_at(f"oci:{tmp_path}/layout:v1")
    with pytest.raises(NotFound, match="nothing"):
        base_at(f"{server.host}/nothing:v1")
    base = Base(RemoteRepository("localhost:1", "m"), "v1")
    with pytest.raises(InvalidInput, match="is not in the registry"):
        base_of(RemoteRepository(server.host, "m"), "v1", base)
    with pytest.raises(InvalidInput, match="is no registry"):
        base_of(LayoutRepository(tmp_path / "layout"), "v1", base)


def test_an_index_that_lies_costs_time_and_nothing_else(registry_server: StartRegistry, tmp_path: Path) -> None:
    """The earlier version says that its bytes are others: the composed blob is refused, and sent whole."""
    server = registry_server(tmp_path / "storage")
    old, fresh = weights(tensors()), weights({**tensors(), "t2": bytes(3 * MIB + 2)})
    true, honest = file_index(old, "m0.safetensors"), file_index(fresh, "m0.safetensors")
    lie = replace(true, chunks=[Chunk(*a[:2], b[2]) for a, b in zip(true.chunks, honest.chunks, strict=True)])
    store(tmp_path / "layout", "v1", old, index=TensorIndex.of([lie]))
    store(tmp_path / "layout", "v2", fresh)
    send(tmp_path / "layout", "v1", RemoteRepository(server.host, "m"))
    before = received(server)
    send(tmp_path / "layout", "v2", RemoteRepository(server.host, "m"))
    assert received(server) - before > len(fresh)
    assert pulled(server.host, "m", fresh)


def test_what_was_deleted_meanwhile_is_sent(registry_server: StartRegistry, tmp_path: Path) -> None:
    server = registry_server(tmp_path / "storage")
    old, fresh = weights(tensors()), weights(tensors(), "new")
    store(tmp_path / "layout", "v1", old)
    store(tmp_path / "layout", "v2", fresh)
    send(tmp_path / "layout", "v1", RemoteRepository(server.host, "m"))
    assert httpx.delete(f"{server.url}/v2/m/blobs/{Digest.of(old)}").status_code == 202
    send(tmp_path / "layout", "v2", RemoteRepository(server.host, "m"))
    assert pulled(server.host, "m", fresh)


def test_a_push_that_was_cut_off_goes_on(
    registry_server: StartRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a range: what was composed before stays, and the rest is composed too."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(composition, "MOST_BYTES", MIB)
    server = registry_server(tmp_path / "storage")
    fresh = weights(tensors(), "new")
    store(tmp_path / "layout", "v1", weights(tensors()))
    store(tmp_path / "layout", "v2", fresh)
    send(tmp_path / "layout", "v1", RemoteRepository(server.host, "m"))
    calls: list[int] = []

    def cut(pieces: list[composition.Piece]) -> bytes:
        calls.append(pieces[0].start)
        if len(calls) == 6:
            raise RuntimeError("cut off")
        return document(pieces)

    monkeypatch.setattr("artifact.remote.upload.document", cut)
    with pytest.raises(RuntimeError, match="cut off"):
        send(tmp_path / "layout", "v2", RemoteRepository(server.host, "m"))
    before = received(server)
    send(tmp_path / "layout", "v2", RemoteRepository(server.host, "m"))
    assert received(server) - before < 20_000
    assert calls[6] == calls[5] > 4 * MIB, "it goes on where it was"
    assert pulled(server.host, "m", fresh)


def test_models_without_an_index_are_sent_whole(registry_server: StartRegistry, tmp_path: Path) -> None:
    server = registry_server(tmp_path / "storage")
    versions = [weights(tensors(), note) for note in ("a", "bb", "ccc")]
    for number, indexed in enumerate((False, True, False)):
        store(tmp_path / "layout", f"v{number}", versions[number], indexed=indexed)
        before = received(server)
        send(tmp_path / "layout", f"v{number}", RemoteRepository(server.host, "m"))
        assert received(server) - before >= len(versions[number])
        assert pulled(server.host, "m", versions[number])


@st.composite
def versions(draw: st.DrawFn) -> tuple[tuple, list[tuple]]:
    """A file, and others with tensors of it: fewer, changed, in other places, with other gaps between them."""
    data, listed = new = draw(files())
    old = []
    for _ in range(draw(st.integers(0, 2))):
        out, tensors = bytearray(draw(st.binary(max_size=40))), []
        for tensor in listed:
            content = data[tensor.offset : tensor.offset + tensor.length]
            if draw(st.integers(0, 4)) == 0:
                content = draw(st.binary(min_size=tensor.length, max_size=tensor.length))
            tensors.append(replace(tensor, offset=len(out)))
            out += content + bytes(draw(st.sampled_from([0, 0, 1, 30])))
        old.append((bytes(out), tensors))
    return new, old


def gapped(gap: int) -> tuple[bytes, list[Tensor]]:
    """Two tensors with zeros between them."""
    data = bytes(range(1, 25)) + bytes(gap) + bytes(range(100))
    return data, [Tensor("a", "U8", (24,), 0, 24), Tensor("b", "U8", (100,), 24 + gap, 100)]


@given(versions(), st.integers(0, 40))
@example((gapped(36), [gapped(0)]), 0)
@example((gapped(36), [gapped(36)]), 0)
@settings(max_examples=300, deadline=None)
def test_pieces_make_the_file(content: tuple, least: int) -> None:
    """Whatever the files have in common, with the zeros between tensors: the pieces put together are the new one."""
    new, old = content

    def indexed(content: tuple) -> FileIndex:
        return FileIndex("m", Digest.of(content[0]), len(content[0]), content[1], chunks_of(*content))

    held = Held()
    for content in [*old, new][: len(old) + least % 2]:  # now and then it is there already
        held.add(TensorIndex([indexed(content)], **SIZES))
    blobs = {Digest.of(content[0]): content[0] for content in [*old, new]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(composition, "LEAST_RUN", least)
        patch.setattr(composition, "MOST_BYTES", 50)
        way = Composition.of(indexed(new), held)
        if way is None:
            return
        made, sent = b"", 0
        while len(made) < len(new[0]):
            end, pieces = way.step(len(made))
            if pieces:
                assert document(pieces).startswith(b'{"ranges":[{"from":"sha256:')
                for piece in pieces:
                    assert piece.start == len(made) and piece.origin is not None
                    made += blobs[piece.origin][piece.at : piece.at + piece.end - piece.start]
            else:
                sent += end - len(made)
                made = new[0][:end] if made == new[0][: len(made)] else b""
            assert way.travelled(len(made)) == sent
    assert made == new[0]
