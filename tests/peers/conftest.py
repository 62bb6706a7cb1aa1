"""Other projects' clients and servers. One that is missing is skipped, with the reason."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from artifact.digest import Digest
from artifact.progress import Quiet
from artifact.remote import RemoteRepository
from packager.pack import Options, pack
from packager.source import open_source
from supplychain.keys import PrivateKey
from supplychain.sign import sign
from tests.checkpoints.tiny import write_tiny_llama
from tests.peers.mirrored import model  # noqa: F401
from tests.peers.programs import program
from tests.registry.replicas import Replicas, replicas
from tests.registry.servers import RunningRegistry, StartRegistry


@dataclass(frozen=True)
class Packed:
    """A signed model in a registry: where, and the bytes of all its parts."""

    host: str
    name: str
    tag: str
    digest: Digest
    manifest: bytes
    blobs: dict[str, bytes]
    files: dict[str, bytes]
    key: PrivateKey


@pytest.fixture(
    scope="session",
    params=[
        "filesystem",
        pytest.param("s3", marks=pytest.mark.s3),
        pytest.param("replicas", marks=pytest.mark.s3),
    ],
)
def registry(
    request: pytest.FixtureRequest, session_registries: StartRegistry, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningRegistry | Replicas]:
    """Our registry over each object store, and three replicas over S3 behind nginx, round-robin by request; shared:
    tests that write take a repository of their own."""
    if request.param == "filesystem":
        yield session_registries(tmp_path_factory.mktemp("storage"))
        return
    s3 = request.getfixturevalue("s3")
    if request.param == "s3":
        yield session_registries(s3.storage(), env=s3.env)
        return
    with replicas(session_registries, tmp_path_factory.mktemp("nginx"), s3.storage(), s3.env) as these:
        yield these


@pytest.fixture(scope="session", params=["safetensors", "gguf"])
def packed(
    request: pytest.FixtureRequest, registry: RunningRegistry | Replicas, tmp_path_factory: pytest.TempPathFactory
) -> Packed:
    """A model packed straight into our registry and signed there; not to be changed."""
    name = f"team/{request.param}"
    checkpoint = write_tiny_llama(tmp_path_factory.mktemp("tiny") / "checkpoint", shards=2)
    repository = RemoteRepository(registry.host, name)
    options = Options(request.param, "F16" if request.param == "gguf" else None)
    descriptor, tag = pack(open_source(str(checkpoint)), repository, None, options, Quiet())
    key = PrivateKey.new()
    sign(repository, descriptor, key)
    raw = repository.manifest(descriptor.digest)[1]
    value = json.loads(raw)
    blobs = {
        item["digest"]: httpx.get(f"{registry.url}/v2/{name}/blobs/{item['digest']}", follow_redirects=True).content
        for item in [value["config"], *value["layers"]]
    }
    files = {layer["annotations"]["org.cncf.model.filepath"]: blobs[layer["digest"]] for layer in value["layers"]}
    return Packed(registry.host, name, tag, descriptor.digest, raw, blobs, files, key)


@pytest.fixture
def own() -> str:
    """A repository name nobody else uses."""
    return f"own/{secrets.token_hex(6)}"


@pytest.fixture
def shell(tmp_path: Path) -> Callable[..., str]:
    """Run a foreign program with a home of its own; a failure shows what it said."""

    def run(*command: str) -> str:
        env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


@pytest.fixture
def docker_registry(tmp_path: Path) -> Iterator[str]:
    """Debian's docker-registry (distribution 2.8), as HOST:PORT."""
    binary = program("docker-registry")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    config = tmp_path / "distribution.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nhttp: {{addr: '{host}'}}\n"
        f"storage: {{filesystem: {{rootdirectory: '{tmp_path}/distribution'}}, delete: {{enabled: true}}}}\n"
    )
    with (tmp_path / "distribution.log").open("wb") as log:
        process = subprocess.Popen([binary, "serve", str(config)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                httpx.get(f"http://{host}/v2/", timeout=2)
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline and process.poll() is None, (
                    tmp_path / "distribution.log"
                ).read_text()
                time.sleep(0.05)
        yield host
    finally:
        process.kill()
        process.wait()
