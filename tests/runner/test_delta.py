"""``runner pull`` of a model of which another version is in the store: what travels, counted between it and the
registry, and that what arrives is the model whatever was in the store."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.layout import LayoutRepository
from artifact.manifest import Manifest
from artifact.moved import size_text
from artifact.progress import Quiet
from artifact.reference import Reference
from artifact.remote import RemoteRepository
from artifact.repository import Repository
from artifact.source import bytes_source
from artifact.tensorindex import Chunker, FileIndex, TensorIndex
from artifact.tensorindex.attach import annotated, push_index, push_referrer
from artifact.weights.gguf import read_source as read_gguf
from artifact.weights.safetensors import read_source as read_safetensors
from tests.checkpoints.tiny import write_tiny_llama
from tests.peers.conftest import docker_registry  # noqa: F401
from tests.registry.servers import RunningRegistry, StartRegistry
from tests.runner.commands import call, error_line, json_of, packager
from tests.runner.metering import Meter, metered

Tensors = dict[str, np.ndarray]
NAME = "team/model"
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    """Six tensors of 2 MiB, and a small one behind each."""
    made: Tensors = {}
    for number in range(6):
        made[f"blk.{number}.ffn_up.weight"] = _random(1024 * 1024).reshape(1024, 1024)
        made[f"blk.{number}.ffn_norm.weight"] = _random(1024)
    return made


def _random(count: int) -> np.ndarray:
    return np.frombuffer(os.urandom(2 * count), dtype=np.float16)


def as_gguf(folder: Path, tensors: Tensors, template: str) -> dict[str, bytes]:
    path = folder / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_file_type(1)
    writer.add_chat_template(template)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {"model.gguf": path.read_bytes()}


def as_safetensors(tensors: Tensors, shards: int) -> dict[str, bytes]:
    names, files = list(tensors), {}
    for shard in range(shards):
        entries, data = {}, b""
        for name in names[shard * len(names) // shards : (shard + 1) * len(names) // shards]:
            raw = tensors[name].tobytes()
            offsets = [len(data), len(data) + len(raw)]
            entries[name] = {"dtype": "F16", "shape": list(tensors[name].shape), "data_offsets": offsets}
            data += raw
        header = json.dumps(entries).encode()
        files[f"model-{shard + 1:05}-of-{shards:05}.safetensors"] = struct.pack("<Q", len(header)) + header + data
    return files


def push(place: Repository, tag: str, files: Mapping[str, bytes], *, index: bytes | None = None) -> TensorIndex:
    """Push a model with its tensor index, or with `index` in its stead."""
    found, layers = [], []
    for path, data in files.items():
        layer = _blob(place, data, mediatypes.MODEL_WEIGHT, {mediatypes.FILEPATH: path})
        read = read_gguf if path.endswith(".gguf") else read_safetensors
        chunker = Chunker(read(bytes_source(data), len(data), path).tensors, len(data), name=path)
        chunker.update(data)
        tensors = read(bytes_source(data), len(data), path).tensors
        found.append(FileIndex(path, layer.digest, layer.size, tensors, chunker.finish()))
        layers.append(layer)
    made = TensorIndex.of(found)
    raw = made.to_bytes() if index is None else index
    config = {
        "descriptor": {"name": "m"}, "config": {"format": path.rpartition(".")[2], "precision": "float16"},
        "modelfs": {"type": "layers", "diffIds": [str(layer.digest) for layer in layers]},
    }  # fmt: skip
    described = _blob(place, json.dumps(config).encode(), mediatypes.MODEL_CONFIG)
    manifest = Manifest(described, layers, mediatypes.MODEL_MANIFEST, annotations=annotated({}, raw))
    blob = push_index(place, raw)
    push_referrer(place, place.push_manifest(manifest.to_bytes(), manifest.media_type, tag), blob)
    return made


def _blob(place: Repository, data: bytes, media_type: str, annotations: Mapping[str, str] | None = None) -> Descriptor:
    descriptor = Descriptor.of(data, media_type, annotations)
    place.push_blob(descriptor, bytes_source(data), Quiet())
    return descriptor


@pytest.fixture(scope="module")
def ours(session_registries: StartRegistry, tmp_path_factory: pytest.TempPathFactory) -> RunningRegistry:
    """Our registry over a folder."""
    return session_registries(tmp_path_factory.mktemp("registry"))


@pytest.fixture
def meter(ours: RunningRegistry) -> Iterator[Meter]:
    """What goes between the runner and our registry."""
    with metered(ours.host) as between:
        yield between


@pytest.fixture(params=["ours", pytest.param("docker_registry", marks=pytest.mark.peer)])
def any_registry(request: pytest.FixtureRequest) -> str:
    """Where a registry is that has ranges: ours, or Debian's docker-registry."""
    found = request.getfixturevalue(request.param)
    return found if isinstance(found, str) else found.host


def pull(store: Path, meter: Meter, name: str, tag: str, *options: str) -> str:
    """Pull a model through the meter, which counts from nothing; what was said about it."""
    meter.reset()
    return call(store, "pull", f"{meter.host}/{name}:{tag}", *options).stderr


def held(store: Path, data: bytes) -> bool:
    """Whether the store has exactly these bytes as a blob."""
    path = LayoutRepository(store).blob_path(Digest.of(data))
    return path.is_file() and path.read_bytes() == data


OVERHEAD = 64 * 1024
"""Bytes of manifests, configs, indexes and HTTP around what is pulled."""


def test_only_what_is_new_travels(any_registry: str, store: Path, tmp_path: Path, tensors: Tensors) -> None:
    place = RemoteRepository(any_registry, NAME)
    first, fixed = (as_gguf(tmp_path, tensors, template) for template in ("{{ one }}", "{{ another }}" * 40))
    changed = tensors | {
        name: _random(tensor.size).reshape(tensor.shape) for name, tensor in list(tensors.items())[4:6]
    }
    tuned = as_gguf(tmp_path, changed, "{{ one }}")
    whole, sharded = as_safetensors(tensors, 1), as_safetensors(tensors, 4)
    size = len(first["model.gguf"])
    with metered(any_registry) as meter:
        for tag, files, new, what in (
            ("first", first, size, "all of it"),
            ("fixed", fixed, 0, "a chat template"),
            ("tuned", tuned, 2 * MIB, "a tensor"),
            ("whole", whole, 0, "the same in another format"),
            ("sharded", sharded, 0, "the same in more files"),
        ):
            push(place, tag, files)
            said = pull(store, meter, NAME, tag)
            assert all(held(store, data) for data in files.values()), what
            assert new <= meter.received < new + OVERHEAD, what
            moved = re.search(r"moved ([0-9.]+ [kM]?B) of 13 MB", said)
            assert moved is not None, said
            assert moved[1] == "13 MB" if new == size else moved[1] != "13 MB"
            assert len(meter.blobs) <= 3 + 3 * len(files), "few requests"


def test_a_chat_template_that_was_fixed_and_packed_again(
    ours: RunningRegistry, meter: Meter, store: Path, tmp_path: Path
) -> None:
    """The whole way: what `packager` makes of a checkpoint before and after the change."""
    sizes = {"layers": 2, "hidden": 512, "intermediate": 1024}
    received = []
    for version, template in (("v1", "{{ messages[0]['content'] }}"), ("v2", "{{ messages[-1]['content'] }}")):
        checkpoint = write_tiny_llama(tmp_path / version / "tiny", **sizes, chat_template=template)
        options = ("--format", "gguf", "--precision", "F16", "--push")
        line = packager(tmp_path / "packing", "pack", str(checkpoint), f"{ours.host}/{version}/tiny", *options)
        meter.reset()
        call(store, "pull", f"{meter.host}/{version}/tiny@{line.rpartition('@')[2]}")
        received.append(meter.received)
    assert received[0] > 8 * MIB and received[1] < received[0] / 20


def test_no_delta_fetches_everything(meter: Meter, store: Path, tmp_path: Path, tensors: Tensors) -> None:
    place = RemoteRepository(meter.host, NAME)
    for tag in ("one", "two"):
        push(place, tag, as_gguf(tmp_path, tensors, tag))
    pull(store, meter, NAME, "one")
    value = json_of(call(store, "pull", f"{meter.host}/{NAME}:two", "--no-delta", "--json"))
    assert value["moved"] >= 12 * MIB and value["size"] - 1000 < value["moved"] <= value["size"] + OVERHEAD


def test_another_repository_in_the_store_helps_too(meter: Meter, store: Path, tmp_path: Path, tensors: Tensors) -> None:
    push(RemoteRepository(meter.host, "their/base"), "1", as_gguf(tmp_path, tensors, "base"))
    adapted = as_gguf(tmp_path, tensors, "adapted")
    push(RemoteRepository(meter.host, NAME), "adapted", adapted)
    pull(store, meter, "their/base", "1")
    pull(store, meter, NAME, "adapted")
    assert meter.received < OVERHEAD and held(store, adapted["model.gguf"])


def test_damage_in_the_store_is_found_and_stays_there(
    meter: Meter, store: Path, tmp_path: Path, tensors: Tensors
) -> None:
    place, name = RemoteRepository(meter.host, NAME), "damaged"
    old, new = as_gguf(tmp_path, tensors, "old"), as_gguf(tmp_path, tensors, "new")
    push(place, f"{name}1", old)
    push(place, f"{name}2", new)
    pull(store, meter, NAME, f"{name}1")
    path = LayoutRepository(store).blob_path(Digest.of(old["model.gguf"]))
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.seek(7 * MIB)
        stream.write(b"damage")
    said = pull(store, meter, NAME, f"{name}2")
    assert "1 parts of" in said and "are damaged" in said
    assert held(store, new["model.gguf"])
    assert 2 * MIB <= meter.received < 2 * MIB + OVERHEAD


def test_an_index_that_was_lost_on_the_way_costs_time_alone(
    meter: Meter, store: Path, tmp_path: Path, tensors: Tensors
) -> None:
    """A replicator that copies what a manifest lists leaves the index behind."""
    files = as_gguf(tmp_path, tensors, "lost")
    layout = LayoutRepository(tmp_path / "layout")
    raw = push(layout, "lost", files).to_bytes()
    place, manifest = RemoteRepository(meter.host, "mirror/model"), layout.manifest("lost")[1]
    for blob in Manifest.parse(manifest).blobs:
        place.push_blob(blob, layout.blob_source(blob), Quiet())
    place.push_manifest(manifest, mediatypes.IMAGE_MANIFEST, "lost")
    said = pull(store, meter, "mirror/model", "lost")
    assert f"does not have the tensor index {Digest.of(raw).short}: the model is pulled without" in said
    assert held(store, files["model.gguf"])
    assert not LayoutRepository(store).has_blob(Digest.of(raw))


@pytest.mark.parametrize("how", ["no index", "of another model"])
def test_an_index_that_is_none_is_not_used(
    meter: Meter, store: Path, tmp_path: Path, tensors: Tensors, how: str
) -> None:
    files = as_gguf(tmp_path, tensors, how)
    chunker = Chunker([], 100)
    chunker.update(bytes(100))
    other = FileIndex("model.gguf", Digest.of(bytes(100)), 100, (), chunker.finish())
    raw = b"{}" if how == "no index" else TensorIndex.of([other]).to_bytes()
    tag = how.replace(" ", "-")
    push(RemoteRepository(meter.host, NAME), tag, files, index=raw)
    said = pull(store, meter, NAME, tag)
    assert "pulled without its tensor index" in said and held(store, files["model.gguf"])


def test_the_index_lives_and_goes_with_its_model(meter: Meter, store: Path, tmp_path: Path, tensors: Tensors) -> None:
    place = RemoteRepository(meter.host, "own/model")
    one = Digest.of(push(place, "one", as_gguf(tmp_path, tensors, "one")).to_bytes())
    two = Digest.of(push(place, "two", as_gguf(tmp_path, tensors, "two")).to_bytes())
    for tag in ("one", "two"):
        pull(store, meter, "own/model", tag)
    layout = LayoutRepository(store)
    assert layout.has_blob(one) and layout.has_blob(two)
    assert len(json_of(call(store, "list", "--json"))) == 2, "an index is no model"
    for path in store.glob("blobs/*/*"):
        os.utime(path, (0, 0))
    call(store, "prune")
    assert layout.has_blob(one) and layout.has_blob(two)

    call(store, "save", f"{meter.host}/own/model:two", str(tmp_path / "two.tar"))
    loaded = tmp_path / "elsewhere" / "store"
    loaded.parent.mkdir()
    call(loaded, "load", str(tmp_path / "two.tar"))
    assert LayoutRepository(loaded).has_blob(two) and not LayoutRepository(loaded).has_blob(one)
    pull(loaded, meter, "own/model", "one")
    assert meter.received < OVERHEAD, "what came in a file serves as well"

    call(store, "rm", f"{meter.host}/own/model:one")
    assert layout.has_blob(two) and not layout.has_blob(one)
    call(store, "rm", f"{meter.host}/own/model:two")
    assert not list(store.glob("blobs/*/*"))


def test_a_refused_model_leaves_no_index(store: Path, tmp_path: Path, tensors: Tensors) -> None:
    """The tag says another precision than the bytes have."""
    layout = LayoutRepository(tmp_path / "layout")
    push(layout, "4B-Q8_0", as_gguf(tmp_path, tensors, "refused"))
    refused = call(store, "pull", f"oci:{layout.root}:4B-Q8_0", status=3)
    assert "says Q8_0, the bytes are F16" in error_line(refused)
    assert not list(store.glob("blobs/*/*"))


def test_a_pull_from_a_layout_keeps_the_index(store: Path, tmp_path: Path, tensors: Tensors) -> None:
    layout = LayoutRepository(tmp_path / "layout")
    files = as_gguf(tmp_path, tensors, "layout")
    raw = push(layout, "1", files).to_bytes()
    said = call(store, "pull", f"oci:{layout.root}:1").stderr
    assert f"moved {size_text(13 * 10**6)} of" in said
    assert LayoutRepository(store).has_blob(Digest.of(raw))
    reference = Reference.parse(f"oci:{layout.root}:1")
    subject = LayoutRepository(store, reference.repository).resolve("1")
    assert len(LayoutRepository(store).referrers(subject.digest, mediatypes.TENSOR_INDEX)) == 1
