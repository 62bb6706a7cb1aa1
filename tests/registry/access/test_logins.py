"""Our own client and skopeo log in, push and pull, with Basic and by the token flow."""

from __future__ import annotations

import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from artifact.digest import Digest
from artifact.errors import Unauthorized
from artifact.layout import LayoutRepository
from artifact.progress import Quiet
from artifact.remote import RemoteRepository
from artifact.transfer import copy_artifact
from packager.pack import Options, pack
from packager.source import open_source
from tests.checkpoints.tiny import write_tiny_llama
from tests.peers.programs import program
from tests.registry.secured import PASSWORDS, docker_config
from tests.registry.servers import ROOT, RunningRegistry


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> tuple[LayoutRepository, Digest]:
    """A small model in a layout, tagged ``v1``."""
    folder = tmp_path_factory.mktemp("model")
    repository = LayoutRepository(folder / "layout")
    source = open_source(str(write_tiny_llama(folder / "checkpoint")))
    descriptor, _ = pack(source, repository, "v1", Options("safetensors", None), Quiet())
    return repository, descriptor.digest


def test_our_client(
    guarded: RunningRegistry,
    layout: tuple[LayoutRepository, Digest],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Push, pull, mount from another repository, list and delete with a login; nothing without one."""
    source, digest = layout
    name = f"team/{secrets.token_hex(6)}"
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "nobody"))
    with pytest.raises(Unauthorized):
        copy_artifact(source, RemoteRepository(guarded.host, name), digest, tag="v1", progress=Quiet())
    monkeypatch.setenv("DOCKER_CONFIG", str(docker_config(tmp_path / "alice", guarded.host, "alice")))
    remote = RemoteRepository(guarded.host, name)
    copy_artifact(source, remote, digest, tag="v1", progress=Quiet())
    copy = RemoteRepository(guarded.host, f"{name}/copy")
    copy_artifact(remote, copy, digest, tag="v1", progress=Quiet())
    assert copy.resolve("v1").digest == digest
    back = LayoutRepository(tmp_path / "back")
    copy_artifact(copy, back, digest, tag="v1", progress=Quiet())
    assert back.resolve("v1").digest == digest
    assert remote.tags() == ["v1"]
    remote.delete_tag("v1")
    monkeypatch.setenv("DOCKER_CONFIG", str(docker_config(tmp_path / "reader", guarded.host, "reader")))
    reader = RemoteRepository(guarded.host, f"{name}/copy")
    assert reader.resolve("v1").digest == digest
    with pytest.raises(Unauthorized, match="login"):
        reader.delete_tag("v1")


def test_packager_login(guarded: RunningRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A login is tried before it is kept."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))

    def login(password: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from packager.cli import main; main()", "login", guarded.host]
        return subprocess.run(
            [*command, "--username", "alice", "--password-stdin"],
            cwd=ROOT, input=password, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    assert login("wrong").returncode == 1
    assert not (tmp_path / "config.json").exists()
    assert login(PASSWORDS["alice"]).returncode == 0
    assert (tmp_path / "config.json").exists()


@pytest.mark.peer
def test_skopeo(guarded: RunningRegistry, layout: tuple[LayoutRepository, Digest], tmp_path: Path) -> None:
    binary, target = program("skopeo"), f"docker://{guarded.host}/team/{secrets.token_hex(6)}:v1"
    source = f"oci:{tmp_path}/source:v1"
    copy_artifact(layout[0], LayoutRepository(tmp_path / "source"), layout[1], tag="v1", progress=Quiet())
    auth = ["--authfile", str(tmp_path / "auth.json")]

    def skopeo(*arguments: str) -> int:
        done = subprocess.run([binary, *arguments], capture_output=True, text=True, timeout=60, check=False)
        return done.returncode

    assert skopeo("copy", "--dest-tls-verify=false", source, target) != 0
    wrong = ["--username", "bob", "--password", "wrong"]
    assert skopeo("login", *auth, "--tls-verify=false", *wrong, guarded.host) != 0
    right = ["--username", "bob", "--password", PASSWORDS["bob"]]
    assert skopeo("login", *auth, "--tls-verify=false", *right, guarded.host) == 0
    assert skopeo("copy", *auth, "--dest-tls-verify=false", source, target) == 0
    assert skopeo("copy", *auth, "--src-tls-verify=false", target, f"oci:{tmp_path}/pulled:v1") == 0
    assert LayoutRepository(tmp_path / "pulled").resolve("v1").digest == layout[1]
    assert skopeo("list-tags", *auth, "--tls-verify=false", target.removesuffix(":v1")) == 0
    assert skopeo("delete", *auth, "--tls-verify=false", target) != 0  # bob may not
    alice = [f"--creds=alice:{PASSWORDS['alice']}"]
    assert skopeo("delete", *alice, "--tls-verify=false", target) == 0
