"""What users meet when something is wrong: one clear line, the right status, nothing left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.layout import LayoutRepository
from artifact.manifest import Manifest
from artifact.progress import Quiet
from artifact.source import bytes_source
from tests.registry.servers import RunningRegistry, StartRegistry

Run = Any


@pytest.fixture
def registry(registry_server: StartRegistry, tmp_path: Path) -> RunningRegistry:
    return registry_server(tmp_path / "storage")


@pytest.fixture
def model(registry: RunningRegistry, run: Run, tiny: Path, result_of: Any) -> str:
    """A GGUF model in the registry, as HOST/NAME:TAG@DIGEST."""
    return result_of(run("packager", "pack", str(tiny), f"{registry.host}/m", "--format", "gguf", "--push"))


def blobs_in(store: Path) -> list[Path]:
    return [path for path in store.rglob("*") if path.is_file() and len(path.name) == 64]


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_unknown_tag_and_wrong_digest(model: str, run: Run, error_of: Any, user: dict[str, str]) -> None:
    name, digest = model.rsplit(":", 2)[0], model.rsplit("@", 1)[1]
    repository = model.split("@")[0].rsplit(":", 1)[0]
    assert name
    tag = model.split("@")[0].rsplit(":", 1)[1]
    unknown = error_of(run("runner", "pull", f"{repository}:nope", expect=1))
    assert "has no manifest nope" in unknown and f"(it has {tag}" in unknown
    other = "sha256:" + "0" * 64
    assert "has no manifest" in error_of(run("runner", "pull", f"{repository}@{other}", expect=1))
    moved = error_of(run("runner", "pull", f"{model.split('@')[0]}@{other}", expect=3))
    assert digest in moved and other in moved and "moved" in moved
    assert "neither a tag nor a digest" in error_of(run("runner", "pull", repository, expect=2))
    assert blobs_in(Path(user["STOWAGE_STORE"])) == []


def test_a_registry_that_is_down(tiny: Path, run: Run, error_of: Any) -> None:
    host = f"127.0.0.1:{unused_port()}"
    assert f"cannot reach {host}" in error_of(run("runner", "pull", f"{host}/m:t", expect=1))
    assert f"cannot reach {host}" in error_of(run("packager", "pack", str(tiny), f"{host}/m", "--push", expect=1))


def test_a_port_that_is_taken(registry: RunningRegistry, run: Run, error_of: Any, tmp_path: Path, model: str) -> None:
    again = ("registry", "serve", "--storage", str(tmp_path / "other"), "--listen", registry.host)
    assert registry.host in error_of(run(*again, expect=1))
    assert registry.host in error_of(run("runner", "serve", model, "--listen", registry.host, expect=1))


def test_one_flipped_bit_in_the_registrys_store_is_caught(
    registry: RunningRegistry, model: str, run: Run, error_of: Any, user: dict[str, str], tmp_path: Path
) -> None:
    largest = max((tmp_path / "storage" / "data").rglob("*"), key=lambda path: path.stat().st_size)
    with largest.open("r+b") as stream:
        stream.seek(largest.stat().st_size // 2)
        byte = stream.read(1)[0]
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 1]))
    error = error_of(run("runner", "pull", model, expect=3))
    assert "other bytes" in error
    layout = LayoutRepository(Path(user["STOWAGE_STORE"]))
    assert not any(path.stat().st_size == largest.stat().st_size for path in blobs_in(layout.root))
    assert run("runner", "list", "--json").stdout.strip() in ("[]", "{}")
    assert run("registry", "fsck", "--storage", str(tmp_path / "storage"), expect=1).stdout


def test_an_unsigned_model_is_refused_and_leaves_no_weights(
    model: str, run: Run, error_of: Any, policy: tuple[Path, Path], user: dict[str, str]
) -> None:
    error = error_of(run("runner", "pull", model, "--policy", str(policy[1]), expect=3))
    assert "unsigned" in error or "signature" in error
    assert not any(path.stat().st_size > 100_000 for path in blobs_in(Path(user["STOWAGE_STORE"])))
    run("packager", "sign", model, "--key", str(policy[0]))
    assert run("runner", "pull", model, "--policy", str(policy[1])).stdout.strip().endswith(model.rsplit("@", 1)[1])


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_disk_that_is_full_while_pulling(model: str, run: Run, error_of: Any, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("this system does not allow mounting a tmpfs")
    try:
        error = error_of(run("runner", "pull", model, "--store", str(small), expect=1))
        assert "full" in error or "No space" in error
        assert run("runner", "list", "--store", str(small), "--json").stdout.strip() in ("[]", "{}")
        subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
        run("runner", "pull", model, "--store", str(small))
    finally:
        subprocess.run(["umount", "-l", str(small)], check=False)


def test_a_registry_that_dies_in_the_middle_of_a_push(
    registry_server: StartRegistry, run: Run, user: dict[str, str], tmp_path: Path
) -> None:
    """SIGKILL while a large blob is on its way; after a restart the same command brings it home."""
    port = unused_port()
    first = registry_server(tmp_path / "storage", "--listen", f"127.0.0.1:{port}")
    layout = LayoutRepository(tmp_path / "layout")
    data = os.urandom(200_000_000)
    blob = Descriptor.of(data, mediatypes.IMAGE_LAYER)
    config = Descriptor.of(b"{}", mediatypes.IMAGE_CONFIG)
    layout.push_blob(blob, bytes_source(data), Quiet())
    layout.push_blob(config, bytes_source(b"{}"), Quiet())
    manifest = Manifest(config, (blob,))
    layout.push_manifest(manifest.to_bytes(), mediatypes.IMAGE_MANIFEST, "t")
    push = ("packager", "push", f"oci:{tmp_path}/layout:t", f"127.0.0.1:{port}/big:t")

    def kill_when_bytes_flow() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            held = sum(path.stat().st_size for path in (tmp_path / "storage").rglob("*") if path.is_file())
            if held > 80_000_000:
                break
            time.sleep(0.005)
        first.kill()

    killer = threading.Thread(target=kill_when_bytes_flow)
    killer.start()
    done = subprocess.run(push, env=user, capture_output=True, text=True, timeout=120, check=False)
    killer.join()
    assert done.returncode == 1 and f"127.0.0.1:{port}" in done.stderr and "Traceback" not in done.stderr
    second = registry_server(tmp_path / "storage", "--listen", f"127.0.0.1:{port}")
    assert httpx.get(f"{second.url}/v2/big/manifests/t").status_code == 404
    assert httpx.head(f"{second.url}/v2/big/blobs/{blob.digest}").status_code == 404
    run(*push)
    assert httpx.get(f"{second.url}/v2/big/blobs/{blob.digest}", follow_redirects=True).content == data


def test_interrupting_a_pack_leaves_nothing_named(
    run: Run, smollm2: Path, user: dict[str, str], tmp_path: Path
) -> None:
    process = subprocess.Popen(
        ["packager", "pack", str(smollm2), "m", "--format", "gguf", "--precision", "F32"],
        env=user | {"TMPDIR": str(tmp_path)}, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert "converting to F32" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors
    assert not (Path(user["STOWAGE_STORE"]) / "index.json").exists()
    assert [path for path in tmp_path.iterdir() if path.name.startswith("packager-")] == []
