"""The pull-through cache in front of Debian's docker-registry, and asked by skopeo."""

from __future__ import annotations

import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from artifact.descriptor import Descriptor
from artifact.progress import Quiet
from artifact.remote import RemoteRepository
from artifact.source import bytes_source
from artifact.transfer import copy_artifact
from tests.peers.mirrored import Model
from tests.peers.programs import program
from tests.registry.pushing import EMPTY, MANIFEST, OCTETS, manifest_of, sha256
from tests.registry.servers import RunningRegistry, StartRegistry

pytestmark = pytest.mark.peer
MIB = 1024 * 1024


def cache_of(start: StartRegistry, folder: Path, host: str) -> RunningRegistry:
    (folder / "proxy.toml").write_text(
        f'[proxy]\ntag-ttl = "1s"\n[[proxy.upstreams]]\nprefix = "mirror"\nurl = "http://{host}"\n'
    )
    return start(folder / "cache", "--config", str(folder / "proxy.toml"))


def test_a_signed_model_through_the_cache_and_without_the_original(
    model: Model, docker_registry: str, registry_server: StartRegistry, tmp_path: Path
) -> None:
    """The original lists referrers under the fallback tag; through the cache they have the API."""
    theirs = RemoteRepository(docker_registry, model.name)
    copy_artifact(model.repository, theirs, model.descriptor.digest, tag=model.tag, progress=Quiet(), referrers=True)
    cache = cache_of(registry_server, tmp_path, docker_registry)
    through = RemoteRepository(cache.host, f"mirror/{model.name}")
    assert through.tags() == theirs.tags()
    assert [item.digest for item in through.referrers(model.descriptor.digest)] == [
        item.digest for item in model.repository.referrers(model.descriptor.digest)
    ]
    model.assert_trusted(through)
    layouts = httpx.get(f"{cache.url}/v2/_catalog").json()["repositories"]
    assert layouts == [f"mirror/{model.name}"]


def test_skopeo_pulls_through_the_cache(
    model: Model, docker_registry: str, registry_server: StartRegistry, shell: Callable[..., str], tmp_path: Path
) -> None:
    theirs = RemoteRepository(docker_registry, model.name)
    copy_artifact(model.repository, theirs, model.descriptor.digest, tag=model.tag, progress=Quiet())
    cache = cache_of(registry_server, tmp_path, docker_registry)
    source = f"docker://{cache.host}/mirror/{model.name}:{model.tag}"
    for attempt in ("first", "held"):
        shell(
            program("skopeo"), "copy", "--src-tls-verify=false", source, f"oci:{tmp_path}/{attempt}:{model.tag}"
        )  # fmt: skip
    assert (tmp_path / f"held/blobs/sha256/{model.descriptor.digest.hex}").read_bytes() == model.manifest


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[tuple[str, Callable[[], subprocess.Popen[bytes]]]]:
    """A docker-registry that can be killed and started again, over the same folder."""
    binary = program("docker-registry")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    config = tmp_path / "mortal.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nhttp: {{addr: '{host}'}}\n"
        f"storage: {{filesystem: {{rootdirectory: '{tmp_path}/mortal'}}}}\n"
    )
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        process = subprocess.Popen([binary, "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        started.append(process)
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"http://{host}/v2/", timeout=5)
                return process
            except httpx.TransportError:
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.05)

    try:
        yield host, start
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_the_original_is_killed_in_the_middle_of_a_blob(
    mortal: tuple[str, Callable[[], subprocess.Popen[bytes]]], registry_server: StartRegistry, tmp_path: Path
) -> None:
    """While it is away the fetch waits for it to come back; what it had sent is not asked for again. Where it stays
    away the client's answer is cut, and nothing is stored."""
    host, start = mortal
    process = start()
    content = secrets.token_bytes(64 * MIB)
    theirs = RemoteRepository(host, "team/large")
    for blob, media_type in ((b"{}", EMPTY), (content, OCTETS)):
        theirs.push_blob(Descriptor.of(blob, media_type), bytes_source(blob), Quiet())
    theirs.push_manifest(manifest_of([content]), MANIFEST, "v1")
    cache = cache_of(registry_server, tmp_path, host)
    url = f"{cache.url}/v2/mirror/team/large/blobs/{sha256(content)}"
    record = Path(cache.storage) / "repos/mirror/team/large/_blobs/sha256" / sha256(content).partition(":")[2]
    with httpx.Client(timeout=120) as client:
        with client.stream("GET", url) as answer:
            pieces = answer.iter_raw(MIB)
            received = next(pieces)
            process.kill()
            process.wait()
            try:
                received += b"".join(pieces)
                whole = True
            except httpx.RemoteProtocolError:
                whole = False
        assert content.startswith(received)
        if not whole:
            assert len(received) < len(content) and not record.exists()
        start()
        assert client.get(url).content == content
        assert record.exists()
