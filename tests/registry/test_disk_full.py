"""A full disk under the registry's folder: the client is told so, nothing is half done, and room makes all well."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from registry.fsck import Checker
from registry.store.open import open_store
from tests.registry.pushing import begin, manifest_of, push_blob, put_manifest, sha256
from tests.registry.servers import RunningRegistry, StartRegistry

MIB = 1024 * 1024


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("cannot mount a small tmpfs (needs root): NOTHING ABOUT A FULL DISK WAS TESTED")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def assert_full(answer: httpx.Response) -> None:
    assert answer.status_code == 507
    assert answer.json()["errors"][0]["code"] == "UNAVAILABLE"
    assert "full" in answer.json()["errors"][0]["message"]


def test_full(disk: Path, registry_server: StartRegistry) -> None:
    server: RunningRegistry = registry_server(disk / "registry")
    small, large = os.urandom(MIB), os.urandom(40 * MIB)
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for data in (b"{}", small):
            push_blob(client, "full/disk", data)
        raw = manifest_of([small])
        assert put_manifest(client, "full/disk", raw, "v1").status_code == 201

        # Too large for the disk, in each way of pushing: what was taken is given back at once.
        post = "/v2/full/disk/blobs/uploads/"
        assert_full(client.post(post, params={"digest": sha256(large)}, content=large))
        location = begin(client, "full/disk")
        assert_full(client.patch(location, content=large))
        assert client.get(location).headers["range"] == "0-0"
        assert_full(client.put(location, params={"digest": sha256(large)}, content=large))
        assert client.patch(location, content=small).status_code == 202
        assert_full(client.patch(location, content=large))
        assert client.get(location).headers["range"] == f"0-{MIB - 1}"
        assert client.delete(location).status_code == 204
        assert client.head(f"/v2/full/disk/blobs/{sha256(large)}").status_code == 404

        # No room for anything at all.
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 4096)
            except OSError:
                pass
        other = manifest_of([small], annotations={"a": "x" * 8192})
        assert_full(put_manifest(client, "full/disk", other, "v1"))
        assert_full(client.post(post))
        assert client.get("/v2/full/disk/manifests/v1").content == raw
        assert client.get(f"/v2/full/disk/blobs/{sha256(small)}").content == small
        assert list(Checker(open_store(server.storage)).run()) == []

        filler.unlink()
        assert put_manifest(client, "full/disk", other, "v1").status_code == 201
        assert client.get("/v2/full/disk/manifests/v1").content == other
