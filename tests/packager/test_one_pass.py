"""Packing reads each byte of its source once, and keeps no copy on the way: counted by the kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from artifact.digest import Digest
from artifact.locate import open_repository, resolve
from artifact.reference import Reference
from packager import convert
from packager.rebuild import provenance_of
from tests.checkpoints.tiny import write_tiny_llama

SCRIPT = """
import json, sys
from packager import cli, convert, pack_command, push_command
def counted():
    return {key: int(value) for key, value in (line.split(": ") for line in open("/proc/self/io"))}
before = counted()
try:
    cli.main()
except SystemExit as ended:
    assert not ended.code, ended.code
after = counted()
print(json.dumps([after["rchar"] - before["rchar"], after["wchar"] - before["wchar"]]))
"""
SLACK = 4 * 2**20
"""Bytes of headers, configurations and modules that are loaded late."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of some 13 MB: larger than what is read whole."""
    folder = tmp_path_factory.mktemp("large") / "model"
    return write_tiny_llama(folder, hidden=768, intermediate=2048, heads=8, kv_heads=4, layers=2, shards=2)


def weights(folder: Path) -> int:
    sizes = [path.stat().st_size for path in folder.glob("*.safetensors")]
    assert min(sizes) > 2 * SLACK
    return sum(sizes)


def packed(tmp_path: Path, *args: str | Path) -> tuple[str, int, int]:
    """The last line of the command, and how many bytes it read and wrote (sockets are not counted)."""
    environment = {**os.environ, "STOWAGE_STORE": str(tmp_path / "store"), "COSIGN_PASSWORD": ""}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, args)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    line, counts = done.stdout.splitlines()[-2:]
    read, written = json.loads(counts)
    return line, read, written


CONVERT = ("--format", "gguf", "--precision", "F16")


@pytest.mark.parametrize("options", [(), CONVERT], ids=["as it is", "converted"])
def test_packing_into_the_store_reads_and_writes_once(checkpoint: Path, tmp_path: Path, options: tuple) -> None:
    _, read, written = packed(tmp_path, "pack", checkpoint, f"oci:{tmp_path}/out", *options)
    size = weights(checkpoint)
    assert size <= read <= size + SLACK
    assert size <= written <= size + SLACK


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("key")
    packed(folder, "keygen", folder / "release")
    return folder / "release.key"


@pytest.mark.parametrize("options", [(), CONVERT, (*CONVERT, "--split-max-size", "8M")], ids=["as is", "one", "split"])
def test_a_signed_pack_reads_its_source_once_too(checkpoint: Path, tmp_path: Path, key: Path, options: tuple) -> None:
    """The provenance names the digest of every source file: of what the conversion has read."""
    line, read, written = packed(tmp_path, "pack", checkpoint, f"oci:{tmp_path}/out", *options, "--sign", key)
    size = weights(checkpoint)
    assert size <= read <= size + SLACK
    assert size <= written <= size + SLACK
    reference = Reference.parse(line)
    made = provenance_of(open_repository(reference), reference.digest)
    recorded = {file.path: file.digest for file in made.files}
    for path in checkpoint.glob("*.safetensors"):
        assert recorded[path.name] == Digest.of(path.read_bytes())


@pytest.mark.parametrize("options", [(), CONVERT], ids=["as it is", "converted"])
def test_packing_into_a_registry_reads_once_and_writes_nothing(
    checkpoint: Path, tmp_path: Path, registry_server, options: tuple
) -> None:
    host = registry_server(tmp_path / "storage").host
    line, read, written = packed(tmp_path, "pack", checkpoint, f"{host}/acme/model", "--push", *options)
    size = weights(checkpoint)
    assert size <= read <= size + SLACK
    assert written <= SLACK
    here, _, _ = packed(tmp_path, "pack", checkpoint, f"oci:{tmp_path}/out", *options)
    assert here.rpartition("@")[2] == line.rpartition("@")[2]
    reference = Reference.parse(line)
    assert resolve(open_repository(reference), reference).digest == reference.digest


OPENED = """
import json, os, sys
from collections import Counter
from packager import cli
opened = Counter()
def hook(event, args):
    if event == "open" and isinstance(args[0], str) and os.path.dirname(args[0]) == sys.argv[2]:
        opened[os.path.basename(args[0])] += 1
sys.addaudithook(hook)
try:
    cli.main()
except SystemExit as ended:
    assert not ended.code, ended.code
print(json.dumps(opened))
"""


def test_small_files_are_opened_once(checkpoint: Path, tmp_path: Path, key: Path) -> None:
    command = [sys.executable, "-c", OPENED, "pack", checkpoint.resolve(), f"oci:{tmp_path}/out", "--sign", key]
    environment = {**os.environ, "COSIGN_PASSWORD": ""}
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    opened = json.loads(done.stdout.splitlines()[-1])
    small = {path.name for path in checkpoint.iterdir() if path.suffix != ".safetensors"}
    assert {"config.json", "tokenizer.json", "README.md"} <= small <= opened.keys()
    assert {name: opened[name] for name in small} == dict.fromkeys(small, 1)


def test_what_the_registry_has_is_not_sent_again(checkpoint: Path, tmp_path: Path, registry_server) -> None:
    server = registry_server(tmp_path / "storage")
    command = ("pack", checkpoint, f"{server.host}/acme/model", "--push")
    first, _, _ = packed(tmp_path, *command)
    kept = stored(tmp_path / "storage")
    again, read, _ = packed(tmp_path, *command)
    assert again == first and stored(tmp_path / "storage") == kept
    assert read <= weights(checkpoint) + SLACK


def stored(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and "data" in path.parts)


def test_a_conversion_can_be_gone_on_with_anywhere(checkpoint: Path) -> None:
    """What a broken upload asks for: the bytes from any offset, the same each time."""
    planned = convert.plan_conversion(checkpoint, "Q8_0")
    whole = taken(planned, 0, planned.size + 1)
    assert len(whole) == planned.size and whole.startswith(planned.header)
    tensors = [len(planned.header)]
    for tensor in planned.tensors:
        tensors.append(tensors[-1] + tensor.entry.length + tensor.entry.padding)
    assert tensors[-1] == planned.size
    for offset in (1, *(place + step for place in tensors for step in (-1, 0, 1))):
        if 0 <= offset <= planned.size:
            assert taken(planned, offset, 100) == whole[offset : offset + 100], offset


def taken(planned: convert.Plan, offset: int, count: int) -> bytes:
    buffer, filled = memoryview(bytearray(count)), 0
    with planned.source(offset) as reader:
        while filled < count and (got := reader.readinto(buffer[filled:])):
            filled += got
    return bytes(buffer[:filled])
