"""Packing straight into Debian's docker-registry: blobs whose digest is known when they end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from artifact.reference import Reference
from artifact.remote import RemoteRepository
from tests.checkpoints.tiny import write_tiny_llama

pytestmark = pytest.mark.peer


@pytest.mark.parametrize("options", [(), ("--format", "gguf", "--precision", "F16")], ids=["as it is", "converted"])
def test_a_pack_is_pushed_while_it_is_made(docker_registry: str, tmp_path: Path, options: tuple[str, ...]) -> None:
    folder = write_tiny_llama(tmp_path / "model", hidden=768, intermediate=2048, heads=8, kv_heads=4, layers=1)
    assert (folder / "model.safetensors").stat().st_size > 8 * 2**20
    lines = []
    for arguments in ((f"{docker_registry}/acme/model", "--push"), (f"oci:{tmp_path}/out",)):
        command = [sys.executable, "-c", "from packager.cli import main; main()", "pack", str(folder), *arguments]
        done = subprocess.run([*command, *options], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        lines.append(done.stdout.strip())
    there, here = lines
    assert there.rpartition("@")[2] == here.rpartition("@")[2]
    reference = Reference.parse(there)
    assert reference.tag is not None
    assert RemoteRepository(docker_registry, "acme/model").resolve(reference.tag).digest == reference.digest
