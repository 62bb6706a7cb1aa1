"""Robot accounts: made by a command, known to every replica, for a time."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from artifact.errors import InvalidInput, NotFound, StowageError
from registry.access import robots as robots_module
from registry.access.rights import Grant, Right
from registry.access.robots import Robots
from registry.cli import app
from registry.store.filesystem import FilesystemStore
from registry.store.protocol import StoreUnavailable
from tests.registry.pushing import push_image
from tests.registry.secured import PASSWORDS, bearer, client, fetch_token, quick_hash
from tests.registry.servers import RunningRegistry


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def registry(*arguments: str, stdin: str = "") -> Done:
    """The command, in this process: its error line and exit status are those `artifact.terminal.run` gives."""
    result = CliRunner().invoke(app, arguments, input=stdin)
    if isinstance(result.exception, StowageError):
        return Done(result.exception.exit_code, result.stdout, str(result.exception))
    return Done(result.exit_code, result.stdout, result.stderr)


@pytest.fixture
def store(tmp_path: Path) -> FilesystemStore:
    return FilesystemStore(tmp_path / "store")


def test_an_account(store: FilesystemStore) -> None:
    grants = [Grant(("team/**",), frozenset({Right.PULL}))]
    robot, secret = Robots(store).add("ci", 60, grants)
    elsewhere = Robots(store).find("robot+ci")
    assert elsewhere == robot
    assert elsewhere.accepts(secret)
    assert not elsewhere.accepts(secret + "x")
    assert not elsewhere.accepts("")
    assert secret not in store.get("robots/ci").data.decode()
    assert Robots(store).list() == [robot]


def test_names(store: FilesystemStore) -> None:
    robots = Robots(store)
    robots.add("ci", 60, [])
    with pytest.raises(InvalidInput, match="there is a robot"):
        robots.add("ci", 60, [])
    for name in ("", "A", "a/b", "../x", "a" * 100, "a:b", "robot+robot+x"):
        with pytest.raises(InvalidInput):
            robots.add(name, 60, [])
        assert robots.find(f"robot+{name}") is None
    assert robots.find("ci") is None
    with pytest.raises(NotFound):
        robots.remove("absent")


def test_expiry_and_removal(store: FilesystemStore, monkeypatch: pytest.MonkeyPatch) -> None:
    robots = Robots(store)
    robots.add("short", 60, [])
    robots.add("gone", 60, [])
    assert robots.find("robot+short")
    later = time.time() + 61
    monkeypatch.setattr(robots_module.time, "time", lambda: later)
    assert robots.find("robot+short") is None
    robots.add("short", 60, [])  # the name is free again
    robots.remove("gone")
    assert Robots(store).find("robot+gone") is None


def test_a_damaged_account_lets_nobody_in(store: FilesystemStore) -> None:
    for raw in (b"", b"{}", b"[]", b'{"secret":"x","created":0,"expires":9e99,"grants":[{"rights":["all"]}]}'):
        store.put("robots/bad", raw)
        with pytest.raises(StoreUnavailable):
            Robots(store).find("robot+bad")


def test_from_the_command_to_a_push(guarded: RunningRegistry) -> None:
    """The secret is printed once, alone on stdout; the running server knows the robot at once."""
    name = f"ci{time.time_ns()}"
    done = registry(
        "user", "add", name, "--robot", "--expires", "1h", "--rights", "team/**:pull,push", "--storage", guarded.storage
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    secret = done.stdout.strip()
    assert secret not in done.stderr
    listed = json.loads(registry("user", "list", "--robot", "--storage", guarded.storage, "--json").stdout)
    assert f"robot+{name}" in [robot["robot"] for robot in listed]
    assert secret not in json.dumps(listed)
    with client(guarded.url, f"robot+{name}", secret) as robot:
        push_image(robot, f"team/{name}")
        assert robot.delete(f"/v2/team/{name}/manifests/v1").status_code == 403
        assert robot.post("/v2/carol/x/blobs/uploads/").status_code == 403
    assert registry("user", "remove", name, "--robot", "--storage", guarded.storage).returncode == 0
    assert registry("user", "remove", name, "--robot", "--storage", guarded.storage).returncode == 1


def test_a_token_ends_with_its_robot(by_token: RunningRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A robot that was removed is out before its tokens expire."""
    store = FilesystemStore(Path(by_token.storage))
    _, secret = Robots(store).add("brief", 2, [Grant(("team/**",), frozenset({Right.PULL}))])
    token = fetch_token(by_token.url, "repository:team/x:pull", user="robot+brief", password=secret)
    with bearer(by_token.url, token) as robot:
        assert robot.get("/v2/team/x/tags/list").status_code == 404
        time.sleep(2)
        assert robot.get("/v2/team/x/tags/list").status_code == 401


def test_users(tmp_path: Path) -> None:
    file = tmp_path / "htpasswd"

    def user(*arguments: str, stdin: str = "") -> Done:
        return registry("user", *arguments, "--htpasswd", str(file), stdin=stdin)

    assert user("add", "dora", "--password-stdin", stdin="correct horse\n").returncode == 0
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text().startswith("dora:$2b$12$")
    assert "correct" not in file.read_text()
    assert user("list").stdout == "dora\n"
    too_long = user("add", "erik", "--password-stdin", stdin="ü" * 37 + "\n")
    assert too_long.returncode == 2
    assert "72 bytes" in too_long.stderr
    for name, password in (
        ("erik", "short"),
        ("a:b", "long enough"),
        ("oidc", "long enough"),
        ("robot+x", "long enough"),
    ):
        assert user("add", name, "--password-stdin", stdin=password).returncode == 2
    assert user("list").stdout == "dora\n"
    assert user("remove", "dora").returncode == 0
    assert user("remove", "dora").returncode == 1
    assert registry("user", "list").returncode == 2
    assert user("add", "dora").returncode == 2  # no terminal to ask at


def test_a_user_who_is_removed_is_out(by_token: RunningRegistry) -> None:
    """The file is read again when it changes; a token of a removed user is refused."""
    htpasswd = Path(by_token.storage).parent / "htpasswd"
    before = htpasswd.read_text()
    try:
        htpasswd.write_text(f"{before}\nzoe:{quick_hash('zoe-has-a-password')}\n")
        time.sleep(1.1)
        token = fetch_token(by_token.url, user="zoe", password="zoe-has-a-password")
        with bearer(by_token.url, token) as zoe:
            assert zoe.get("/v2/").status_code == 200
            htpasswd.write_text(before)
            time.sleep(1.1)
            assert zoe.get("/v2/").status_code == 401
        htpasswd.write_text("not an htpasswd file\n")
        time.sleep(1.1)
        with client(by_token.url, "alice", PASSWORDS["alice"]) as alice:
            assert alice.get("/token").status_code == 503
            assert alice.get("/v2/").status_code == 503
    finally:
        htpasswd.write_text(before)
        time.sleep(1.1)
