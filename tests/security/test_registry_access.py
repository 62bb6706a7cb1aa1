"""What other registries got wrong about who may do what, tried on this one. Each test names its report."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from artifact.errors import InvalidInput
from registry.settings import Settings, effective
from tests.registry.pushing import error_code, manifest_of, push_blob, push_image, put_manifest, sha256
from tests.registry.secured import AUTH, RULES, TOKEN, bearer, client, configure, fetch_token
from tests.registry.servers import ROOT, RunningRegistry, StartRegistry


@pytest.fixture(scope="module", params=["password", "token"])
def server(
    request: pytest.FixtureRequest, session_registries: StartRegistry, tmp_path_factory: pytest.TempPathFactory
) -> RunningRegistry:
    folder = tmp_path_factory.mktemp("access")
    text = AUTH + (TOKEN if request.param == "token" else "") + RULES
    return session_registries(folder / "s", "--config", str(configure(folder, text)))


@pytest.fixture(scope="module")
def secret(server: RunningRegistry) -> str:
    """The digest of a blob in a repository that carol may not read."""
    with client(server.url, "alice") as alice:
        push_image(alice, "team/secret", layer=b"nobody else's bytes")
    return sha256(b"nobody else's bytes")


def test_blobs_of_others_do_not_leak(server: RunningRegistry, secret: str) -> None:
    """CVE-2024-39897: not by HEAD, GET, mount with or without from, nor by a manifest that names them."""
    with client(server.url, "carol") as carol:
        push_blob(carol, "carol/own", b"{}")
        for repo, wanted in (("team/secret", 403), ("carol/own", 404)):
            for method in ("GET", "HEAD"):
                assert carol.request(method, f"/v2/{repo}/blobs/{secret}").status_code == wanted
        for query in (
            {"mount": secret, "from": "team/secret"},
            {"mount": secret},
            {"mount": secret, "from": "carol/own"},
        ):
            assert carol.post("/v2/carol/own/blobs/uploads/", params=query).status_code == 202
        answer = put_manifest(carol, "carol/own", manifest_of([b"nobody else's bytes"]), "v1")
        assert answer.status_code == 404
        assert carol.head(f"/v2/carol/own/blobs/{secret}").status_code == 404


def test_a_mount_asks_about_the_origin(server: RunningRegistry, secret: str) -> None:
    """CVE-2022-31667: that the target may be written says nothing about the origin; unknown origins answer alike."""
    with client(server.url, "carol") as carol:
        answers = [
            carol.post("/v2/carol/own/blobs/uploads/", params={"mount": secret, "from": origin})
            for origin in ("team/secret", "team/absent", "../x", "")
        ]
    assert {answer.status_code for answer in answers} == {202}
    assert len({tuple(sorted(answer.headers)) for answer in answers}) == 1


def test_who_creates_does_not_replace(server: RunningRegistry) -> None:
    """CVE-2026-31801: pull, push, overwrite and delete are separate."""
    with client(server.url, "bob") as bob:
        first = push_image(bob, "team/created", layer=b"first")
        push_blob(bob, "team/created", b"second")
        for reference, query in (("v1", {}), (sha256(manifest_of([b"second"])), {"tag": "v1"})):
            answer = put_manifest(bob, "team/created", manifest_of([b"second"]), reference, **query)
            assert (answer.status_code, error_code(answer)) == (403, "DENIED")
        assert bob.delete("/v2/team/created/manifests/v1").status_code == 403
        assert bob.get("/v2/team/created/manifests/v1").content == first


def test_private_repositories_are_private(server: RunningRegistry, secret: str) -> None:
    """CVE-2026-27771: nobody reads without a login what a rule does not open to nobody."""
    paths = ("manifests/v1", f"blobs/{secret}", "tags/list", f"referrers/{secret}")
    with client(server.url) as anyone:
        for path in paths:
            for method in ("GET", "HEAD"):
                assert anyone.request(method, f"/v2/team/secret/{path}").status_code in (401, 405)
        assert "team/secret" not in anyone.get("/v2/_catalog").text


def test_uploads_of_others(server: RunningRegistry) -> None:
    """CVE-2022-31670: an upload's id is no right to it."""
    with client(server.url, "bob") as bob, client(server.url, "alice") as alice:
        location = bob.post("/v2/team/upload/blobs/uploads/").headers["location"]
        for method in ("GET", "PATCH", "PUT", "DELETE"):
            answer = alice.request(method, location, params={"digest": sha256(b"")})
            assert (answer.status_code, error_code(answer)) == (404, "BLOB_UPLOAD_UNKNOWN")
        assert bob.get(location).status_code == 204


@pytest.mark.parametrize("path", ["v1", "digest", "blob"])
def test_the_switch_that_forbids_deletes(undeletable: str, path: str) -> None:
    """CVE-2026-41888: it holds for tags too, whoever asks."""
    with client(undeletable, "alice") as alice:
        raw = push_image(alice, "team/kept", layer=b"kept")
        target = {"v1": "manifests/v1", "digest": f"manifests/{sha256(raw)}", "blob": f"blobs/{sha256(b'kept')}"}[path]
        answer = alice.delete(f"/v2/team/kept/{target}")
        assert (answer.status_code, error_code(answer)) == (405, "UNSUPPORTED")
        assert alice.get("/v2/team/kept/manifests/v1").content == raw
        location = alice.post("/v2/team/kept/blobs/uploads/").headers["location"]
        assert alice.delete(location).status_code == 204  # giving an upload up deletes nothing that is there


@pytest.fixture(scope="module")
def undeletable(session_registries: StartRegistry, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("undeletable")
    config = configure(folder, "[server]\ndeletes = false\n" + AUTH + RULES)
    return session_registries(folder / "s", "--config", str(config)).url


def test_no_default_password(server: RunningRegistry) -> None:
    """CVE-2026-4404: none ships."""
    for user, password in (
        ("admin", "admin"),
        ("admin", "Harbor12345"),
        ("admin", ""),
        ("root", "root"),
        ("alice", ""),
    ):
        with client(server.url, user, password) as guess:
            assert guess.get("/v2/").status_code == 401


def test_no_password_or_key_is_made_silently(tmp_path: Path) -> None:
    """CVE-2026-4404: what the configuration names has to be there."""
    config = tmp_path / "registry.toml"
    rules = '[[access]]\nprincipals = ["alice"]\nrepositories = ["**"]\nrights = ["pull"]\n'
    for missing in ('[auth]\nhtpasswd = "htpasswd"\n', '[auth.token]\nkey = "token.key"\n'):
        config.write_text(missing + rules)
        with pytest.raises(InvalidInput, match="there is no file"):
            effective(Settings(str(config)))
    assert serve(tmp_path, "--config", str(config)).returncode == 2
    assert {path.name for path in tmp_path.iterdir()} == {"registry.toml"}


def serve(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from registry.cli import main; main()", "serve", "--storage", str(folder / "s")]
    return subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_keys_in_a_token_are_not_trusted(server: RunningRegistry) -> None:
    """CVE-2025-24976: a token signed by a key that it brings itself is nobody's."""
    key = ec.generate_private_key(ec.SECP256R1())
    public = jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    now = int(time.time())
    access = [{"type": "repository", "name": "team/secret", "actions": ["*"]}]
    claims = {"iss": "test-registry", "aud": "test-registry", "sub": "alice", "groups": [], "iat": now, "nbf": now,
              "exp": now + 300, "access": access}  # fmt: skip
    for headers in (
        {"jwk": public, "kid": "x"},
        {"jku": "http://127.0.0.1:1/", "kid": "x"},
        {"kid": "../token.key"},
        {},
    ):
        with bearer(server.url, jwt.encode(claims, key, "ES256", headers)) as forger:
            assert forger.get("/v2/team/secret/tags/list").status_code == 401
    for token in (jwt.encode(claims, None, "none"), jwt.encode(claims, "s" * 40, "HS256")):
        with bearer(server.url, token) as forger:
            assert forger.get("/v2/").status_code == 401


def test_tokens_are_of_use_here_alone(
    session_registries: StartRegistry, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """CVE-2025-51471: a token is bound to its service; another registry's means nothing here."""
    urls = []
    for name in ("one", "two"):
        folder = tmp_path_factory.mktemp(name)
        urls.append(session_registries(folder / "s", "--config", str(configure(folder, AUTH + TOKEN + RULES))).url)
    token = fetch_token(urls[0], "repository:team/x:pull", user="alice")
    for url, wanted in zip(urls, (404, 401), strict=True):
        with bearer(url, token) as caller:
            assert caller.get("/v2/team/x/tags/list").status_code == wanted


def test_the_realm_is_this_registry(server: RunningRegistry) -> None:
    """CVE-2026-33990: clients are never sent to where a request says."""
    host, port = server.host.split(":")
    for line in (b"Host: evil.example/x", b'Host: a",realm="http://evil.example', b"Host: user@evil.example"):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(b"GET /v2/ HTTP/1.1\r\n" + line + b"\r\nConnection: close\r\n\r\n")
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert b"evil" not in answer.partition(b"\r\n\r\n")[0]


def test_long_passwords_are_not_cut_short(server: RunningRegistry) -> None:
    """bcrypt looks at 72 bytes: a longer password is wrong, and costs no hash."""
    with client(server.url, "alice", "x" * 30_000) as caller:
        assert caller.get("/v2/").status_code == 401


def test_beyond_this_machine_only_with_rules(tmp_path: Path) -> None:
    """Fail closed: without access rules nothing listens beyond loopback, whatever else the file says."""
    config = tmp_path / "registry.toml"
    config.write_text('[server]\nlisten = "0.0.0.0:0"\ndeletes = false\n')
    done = serve(tmp_path, "--config", str(config))
    assert done.returncode == 2
    assert "no access control" in done.stderr


def test_nothing_of_a_login_is_told(server: RunningRegistry, secret: str) -> None:
    """Wrong user and wrong password answer alike, and logs hold no credentials."""
    answers = []
    for user, password in (
        ("alice", "wrong-password-1"),
        ("nobody", "wrong-password-2"),
        ("robot+x", "wrong-password-3"),
    ):
        with client(server.url, user, password) as caller:
            answers.append(caller.get("/v2/team/secret/manifests/v1"))
    assert len({(answer.status_code, answer.text) for answer in answers}) == 1
    log = server.log.read_text()
    assert "wrong-password" not in log
    assert "alice-has-a-password" not in log
    with httpx.Client(base_url=server.url) as caller:
        token = "Bearer eyJhbGciOiJFUzI1NiJ9.e30.AAAA"
        assert caller.get("/v2/", headers={"Authorization": token}).status_code == 401
    assert "eyJ" not in server.log.read_text()
