"""The registry command, as a user meets it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from registry import keys
from registry.listen import is_loopback, listen_address
from tests.registry.servers import ROOT, StartRegistry


def registry(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from registry.cli import main; main()", *arguments]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=60)


def test_version_and_help() -> None:
    assert registry("--version").stdout.startswith("registry ")
    commands = "serve", "fsck", "gc", "user", "user add", "user list", "user remove", "config check", "config token-key"
    for command in commands:
        done = registry(*command.split(), "--help")
        assert done.returncode == 0
        assert "Example: registry" in done.stdout, command


def test_port_taken(tmp_path: Path) -> None:
    """One line, exit 1."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        done = registry("serve", "--storage", str(tmp_path / "s"), "--listen", listen)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {listen} is in use")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "192.0.2.1:5000", "example.org:80"])
def test_refuses_to_listen_beyond_this_machine(tmp_path: Path, listen: str) -> None:
    """Without access control only loopback, unless it is stated; exit 2."""
    done = registry("serve", "--storage", str(tmp_path / "s"), "--listen", listen)
    assert done.returncode == 2
    assert "--insecure-anonymous" in done.stderr
    assert not (tmp_path / "s").exists()


def test_listens_beyond_this_machine_when_told(tmp_path: Path, registry_server: StartRegistry) -> None:
    server = registry_server(tmp_path / "s", "--insecure-anonymous")
    assert server.stop() == 0


@pytest.mark.parametrize("listen", ["", "5000", "host:", "127.0.0.1:99999", "a b:1", "127.0.0.1:-1"])
def test_bad_addresses(tmp_path: Path, listen: str) -> None:
    done = registry("serve", "--storage", str(tmp_path / "s"), "--listen", listen)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_bad_storage(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert registry("serve", "--storage", str(tmp_path / "file")).returncode == 2
    assert registry("fsck", "--storage", str(tmp_path / "none")).returncode == 2


def test_s3_that_is_not_there() -> None:
    """One line and exit 1, not a traceback."""
    env = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}
    done = registry("serve", "--storage", "s3://models", "--listen", "127.0.0.1:0", **env)
    assert done.returncode == 1
    assert done.stderr.startswith("error: object store: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("localhost.example.org", False), ("10.0.0.1", False)],
)  # fmt: skip
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_listen_addresses() -> None:
    assert listen_address("127.0.0.1:0") == ("127.0.0.1", 0)
    assert listen_address("[::1]:5000") == ("::1", 5000)


def test_the_storage_of_a_configuration(tmp_path: Path) -> None:
    """gc and fsck find it there; --dry-run and --json do for both; neither changes anything then."""
    storage = tmp_path / "s"
    storage.mkdir()
    config = tmp_path / "registry.toml"
    config.write_text(f'[server]\nstorage = "{storage}"\n[gc]\ngrace = "2h"\n')
    for command, key in (("gc", "condemned"), ("fsck", "findings")):
        done = registry(command, "--config", str(config), "--dry-run", "--json")
        assert done.returncode == 0, done.stderr
        assert not json.loads(done.stdout)[key]
    (storage / "data").mkdir()
    (storage / "data" / keys.new_upload_id()).write_bytes(b"nobody's")
    assert registry("fsck", "--config", str(config), "--dry-run").returncode == 1
    assert registry("gc", "--config", str(tmp_path / "none.toml")).returncode == 2


def test_checking_says_what_serving_would_refuse(tmp_path: Path) -> None:
    config = tmp_path / "registry.toml"
    config.write_text('[server]\nlisten = "0.0.0.0:0"\n')
    done = registry("config", "check", str(config))
    assert (done.returncode, "--insecure-anonymous" in done.stdout) == (0, True)
    assert json.loads(registry("config", "check", str(config), "--json").stdout)["needs_insecure_anonymous"] is True
    assert registry("serve", "--config", str(config), "--storage", str(tmp_path / "s")).returncode == 2


def test_workers(tmp_path: Path, registry_server: StartRegistry) -> None:
    server = registry_server(tmp_path / "s", "--workers", "2")
    assert server.stop() == 0
