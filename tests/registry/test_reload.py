"""A running registry whose rules change: users and robots at once, `registry.toml` on SIGHUP, in every process."""

from __future__ import annotations

import signal
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from cryptography import x509

from registry.access import htpasswd
from registry.access.robots import Robots
from tests.registry.access.test_certificates import Authority
from tests.registry.conftest import Backend
from tests.registry.pushing import begin, push_image, sha256
from tests.registry.secured import AUTH, RULES, TOKEN, client, configure, quick_hash
from tests.registry.servers import RunningRegistry, StartRegistry

OPEN = '[[access]]\nprincipals = ["anonymous"]\nrepositories = ["**"]\nrights = ["pull"]\n'


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def hang_up(server: RunningRegistry, answer: str) -> str:
    """SIGHUP, and the line that says what came of it."""
    before = len(server.log.read_text())
    server.process.send_signal(signal.SIGHUP)
    until(lambda: answer in server.log.read_text()[before:])
    return server.log.read_text()[before:]


def status(server: RunningRegistry, path: str = "/v2/team/x/tags/list") -> set[int]:
    """What anonymous callers are answered, by whichever processes there are: each asks over its own connection."""
    return {httpx.get(server.url + path).status_code for _ in range(12)}


def test_users_at_once(tmp_path: Path, registry_server: StartRegistry) -> None:
    server = registry_server(tmp_path / "s", "--config", str(configure(tmp_path)))
    file = tmp_path / "htpasswd"
    with client(server.url, "alice") as alice, client(server.url, "dora", "a-new-password") as dora:
        assert alice.get("/v2/").status_code == 200
        assert dora.get("/v2/").status_code == 401
        htpasswd.add(file, "dora", quick_hash("a-new-password"))
        assert dora.get("/v2/").status_code == 200
        htpasswd.remove(file, "alice")
        assert alice.get("/v2/").status_code == 401
        htpasswd.add(file, "dora", quick_hash("another-password"))
        assert dora.get("/v2/").status_code == 401


def test_robots_at_once(tmp_path: Path, backend: Backend, registry_server: StartRegistry) -> None:
    config = str(configure(tmp_path))
    servers = [registry_server(backend.storage, "--config", config, env=backend.env) for _ in range(2)]
    robots = Robots(backend.open())
    _, secret = robots.add("ci", 600, ())
    for server in servers:
        with client(server.url, "robot+ci", secret) as robot:
            assert robot.get("/v2/").status_code == 200
    robots.remove("ci")
    for server in servers:
        with client(server.url, "robot+ci", secret) as robot:
            if backend.driver == "filesystem":
                assert robot.get("/v2/").status_code == 401
            until(lambda robot=robot: robot.get("/v2/").status_code == 401)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_rules_on_sighup(tmp_path: Path, registry_server: StartRegistry, workers: str) -> None:
    """The new rules hold in every process; a file that cannot be used changes nothing in any."""
    config = configure(tmp_path)
    server = registry_server(tmp_path / "s", "--config", str(config), "--workers", workers)
    assert status(server) == {401}
    configure(tmp_path, AUTH + TOKEN + RULES + OPEN)
    assert "7 access rules" in hang_up(server, "has been read again")
    until(lambda: status(server) == {404})
    assert status(server, "/token?service=test-registry") == {200}
    for text, said in {
        "[[acess]]\n" + AUTH + RULES: "registry.toml:1: acess: there is no such setting",
        AUTH + RULES + '[[access]]\nprincipals = ["x"]\nrights = ["pull"]\n': "'repositories' is missing",
        '[auth]\nhtpasswd = "gone"\n' + RULES: "registry.toml:2: auth.htpasswd: there is no file",
        AUTH.replace("htpasswd = ", "htpasswd == ") + RULES: "registry.toml:2: ",
    }.items():
        config.write_text(text)
        assert said in hang_up(server, "is not taken")
        assert status(server) == {404}
    assert server.process.poll() is None
    configure(tmp_path)
    hang_up(server, "has been read again")
    until(lambda: status(server) == {401})
    assert status(server, "/token") == {404}
    with client(server.url, "alice") as alice:
        push_image(alice, "team/after")


def test_what_needs_a_restart_is_refused(tmp_path: Path, registry_server: StartRegistry) -> None:
    """As a whole: the rules beside it do not come to hold either."""
    config = configure(tmp_path)
    server = registry_server(tmp_path / "s", "--config", str(config))
    Authority(tmp_path, "other").issue("server", "x")
    tls = '[server.tls]\ncertificate = "server.crt"\nkey = "server.key"\n'
    config.write_text(tls + AUTH + RULES + OPEN)
    assert "server.tls cannot change while the registry runs" in hang_up(server, "is not taken")
    assert status(server) == {401}


def test_requests_that_run_end_as_they_began(tmp_path: Path, registry_server: StartRegistry) -> None:
    config = configure(tmp_path, AUTH + RULES)
    server = registry_server(tmp_path / "s", "--config", str(config))
    with client(server.url, "bob") as bob:
        location = begin(bob, "team/slow")
        authorization = next(bob.auth.auth_flow(bob.build_request("GET", "/v2/"))).headers["authorization"]
    host, port = server.host.split(":")
    digest = sha256(b"0123456789")
    with socket.create_connection((host, int(port))) as connection:
        head = f"PUT {location}?digest={digest} HTTP/1.1\r\nHost: x\r\nAuthorization: {authorization}\r\n"
        connection.sendall(f"{head}Content-Length: 10\r\n\r\n01234".encode())
        until(lambda: "uploads_in_flight 1" in httpx.get(f"{server.url}/metrics").text)
        configure(tmp_path, AUTH + OPEN)
        hang_up(server, "has been read again")
        connection.sendall(b"56789")
        assert b" 201 " in connection.recv(65536).split(b"\r\n")[0]
    assert httpx.get(f"{server.url}/v2/team/slow/blobs/{digest}").content == b"0123456789"
    with client(server.url, "bob") as bob:
        assert bob.post("/v2/team/slow/blobs/uploads/").status_code == 403


def test_a_new_certificate_on_sighup(tmp_path: Path, registry_server: StartRegistry) -> None:
    """Connections made from then on are shown it; one whose key does not belong to it is refused."""
    authority = Authority(tmp_path, "servers")
    authority.issue("server", "first")
    tls = '[server.tls]\ncertificate = "server.crt"\nkey = "server.key"\n'
    config = configure(tmp_path, tls + AUTH + RULES)
    server = registry_server(tmp_path / "s", "--config", str(config))
    assert shown(server) == "first"
    key = (tmp_path / "server.key").read_bytes()
    authority.issue("server", "second")
    hang_up(server, "has been read again")
    assert shown(server) == "second"
    (tmp_path / "server.key").write_bytes(key)
    assert "cannot be used together" in hang_up(server, "is not taken")
    assert shown(server) == "second"


def shown(server: RunningRegistry) -> str:
    host, port = server.host.split(":")
    pem = ssl.get_server_certificate((host, int(port)), timeout=30)
    subject = x509.load_pem_x509_certificate(pem.encode()).subject
    return str(subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)


def test_without_a_file_sighup_ends_it(tmp_path: Path, registry_server: StartRegistry) -> None:
    server = registry_server(tmp_path / "s")
    server.process.send_signal(signal.SIGHUP)
    server.process.wait(timeout=60)
