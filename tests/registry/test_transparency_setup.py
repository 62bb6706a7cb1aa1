"""Who may read a registry's log, how it begins, and how it is switched off and on again."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from artifact.errors import InvalidInput
from registry import keys
from registry.cli import app
from registry.log.key import generate
from tests.registry.conftest import Backend, environment
from tests.registry.logged import ORIGIN, Logged, client, logged
from tests.registry.pushing import manifest_of, push_blob, push_image, sha256
from tests.registry.secured import AUTH, RULES, TOKEN, configure, docker_config, fetch_token
from tests.registry.servers import StartRegistry
from tests.registry.test_cli import registry


@pytest.fixture
def folder(tmp_path: Path, registry_server: StartRegistry) -> Logged:
    """As `these`, in a folder."""
    return logged(Backend("filesystem", str(tmp_path / "storage")), tmp_path, registry_server)


# Who may read it.


def test_who_may_read_entries(tmp_path: Path, registry_server: StartRegistry) -> None:
    """Hashes are for everybody; entries, which name private repositories, for those who may pull everything."""
    rules = f"{AUTH}{TOKEN}{RULES}"
    these = logged(Backend("filesystem", str(tmp_path / "storage")), tmp_path, registry_server, "principals = true\n")
    configure(tmp_path, these.config.read_text() + rules)
    server = these.serve()
    with httpx.Client(base_url=server.url, auth=("alice", "alice-has-a-password"), timeout=30) as alice:
        push_image(alice, "team/secret", "v1")
        assert alice.get("/transparency/tile/entries/000.p/2").status_code == 200
    with client(server) as anyone:
        assert anyone.get("/transparency/checkpoint").status_code == 200
        assert anyone.get("/transparency/tile/0/000.p/2").status_code == 200
        refused = anyone.get("/transparency/tile/entries/000.p/2")
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"].startswith("Bearer ")
    with httpx.Client(base_url=server.url, auth=("bob", "bob-has-a-password"), timeout=30) as bob:
        assert bob.get("/transparency/tile/entries/000.p/2").status_code == 403
    for scope, status in (("registry:catalog:*", 200), ("repository:team/secret:pull", 401)):
        token = fetch_token(server.url, scope, user="alice")
        answer = httpx.get(
            f"{server.url}/transparency/tile/entries/000.p/2", headers={"Authorization": f"Bearer {token}"}
        )
        assert answer.status_code == status, scope
    assert [entry.principal for entry in these.entries()] == ["alice", "alice"]
    with environment({"DOCKER_CONFIG": str(docker_config(tmp_path / "docker", server.host, "alice"))}):
        assert these.verify(server.host).exit_code == 0
    server.stop()
    text = these.config.read_text().replace("principals = true\n", "public = true\n")
    these.config.write_text(text)
    server = these.serve()
    with client(server) as anyone:
        answer = anyone.get("/transparency/tile/entries/000.p/2")
        assert answer.status_code == 200
        assert answer.headers["cache-control"].startswith("public")


def test_a_registry_without_a_log(folder: Logged) -> None:
    server = folder.serve(logged=False)
    with client(server) as http:
        push_image(http, "t", "v0", b"0")
        assert http.get("/transparency/checkpoint").status_code == 404
    assert folder.backend.open().list("log/") == []
    assert folder.backend.open().get(keys.tag("t", "v0")).data == sha256(manifest_of([b"0"])).encode()


# Beginning, switching off and on again.


def test_a_log_over_tags_that_were_there(folder: Logged) -> None:
    """The registry does not serve before somebody has looked at them; then they are in the log, and are served."""
    server = folder.serve(logged=False)
    with client(server) as http:
        raw = push_image(http, "old/a", "v1", b"1")
        push_image(http, "old/b", "v1", b"2")
        push_image(http, "old/b", "v2", b"3")
    server.stop()
    done = registry("serve", "--config", str(folder.config), **folder.backend.env)
    assert done.returncode == 1
    assert "registry transparency adopt" in done.stderr
    with environment(folder.backend.env):
        done = folder.command("adopt", "--config", str(folder.config), "--json")
        assert done.exit_code == 0, done.output
        assert len(json.loads(done.output)["adopted"]) == 3
        again = folder.command("adopt", "--config", str(folder.config))
    assert "0 tags adopted; the log has 3 entries" in again.output
    server = folder.serve()
    with client(server) as http:
        assert http.get("/v2/old/a/manifests/v1").content == raw
        push_image(http, "old/a", "v1", b"4")
        assert http.delete("/v2/old/b/manifests/v1").status_code == 202
    assert folder.verify(server.host).exit_code == 0
    server.stop()

    server = folder.serve(logged=False)  # switched off: tags of both kinds work, the removed one stays removed
    with client(server) as http:
        assert http.get("/v2/old/b/tags/list").json()["tags"] == ["v2"]
        assert http.get("/v2/old/b/manifests/v1").status_code == 404
        assert http.delete("/v2/old/b/manifests/v1").status_code == 404
        push_image(http, "old/b", "v1", b"5")
        push_image(http, "old/a", "v1", b"6")
        assert http.delete("/v2/old/b/manifests/v2").status_code == 202
    server.stop()

    server = folder.serve()  # on again: what was done meanwhile is not served until somebody has looked at it
    with client(server) as http:
        assert http.get("/v2/old/a/manifests/v1").status_code == 404
        assert folder.verify(server.host, "--patience", "0").exit_code == 3
        with environment(folder.backend.env):
            done = folder.command("adopt", "--config", str(folder.config), "--json")
        assert len(json.loads(done.output)["adopted"]) == 3
        assert http.get("/v2/old/a/manifests/v1").status_code == 200
        assert http.get("/v2/old/b/tags/list").json()["tags"] == ["v1"]
    assert folder.verify(server.host).exit_code == 0


def test_settings(tmp_path: Path) -> None:
    """Each mistake is one line that names it; a key is never replaced."""
    key = tmp_path / "log.key"
    done = registry("transparency", "keygen", str(key), "--origin", ORIGIN)
    assert done.returncode == 0
    assert done.stdout.strip() == (tmp_path / "log.key.pub").read_text().strip()
    assert key.stat().st_mode & 0o777 == 0o600
    for path, origin in ((key, ORIGIN), (tmp_path / "x", "a b")):
        with pytest.raises(InvalidInput):
            generate(path, origin)
    for text, word in (
        ('key = "log.key"\n', "origin"),
        (f'origin = "{ORIGIN}"\n', "key"),
        (f'key = "none"\norigin = "{ORIGIN}"\n', "no file"),
        ('key = "log.key"\norigin = "a b"\n', "spaces"),
        (f'key = "log.key.pub"\norigin = "{ORIGIN}"\n', "Ed25519"),
        (f'key = "log.key"\norigin = "{ORIGIN}"\nkeys = 1\n', "no such setting"),
    ):
        (tmp_path / "registry.toml").write_text(f"[transparency]\n{text}")
        done = CliRunner().invoke(app, ["config", "check", str(tmp_path / "registry.toml")])
        assert isinstance(done.exception, InvalidInput), text
        assert word in str(done.exception)


def test_another_key_over_the_same_storage(folder: Logged, tmp_path: Path) -> None:
    server = folder.serve()
    with client(server) as http:
        push_blob(http, "t", b"x")
    server.stop()
    generate(tmp_path / "other.key", ORIGIN)
    folder.config.write_text(folder.config.read_text().replace('"log.key"', '"other.key"'))
    done = registry("serve", "--config", str(folder.config), "--listen", "127.0.0.1:0")
    assert done.returncode == 1
    assert "not written with this log's key" in done.stderr
