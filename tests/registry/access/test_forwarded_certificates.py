"""Client certificates that end at a proxy: nginx passes them on, and is believed where the configuration names it."""

from __future__ import annotations

import base64
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from artifact.errors import Unauthorized
from registry.http.certificate import read_certificate
from tests.registry.access.test_certificates import Authority
from tests.registry.pushing import push_image
from tests.registry.replicas import CONFIGURATION, free_port
from tests.registry.secured import AUTH, RULES, TOKEN, configure
from tests.registry.servers import RunningRegistry, StartRegistry

SETTINGS = """
[server]
trusted-proxies = ["{network}"]

[server.forwarded-certificate]
header = "X-Client-Cert"
client-ca = "clients.crt"

[[access]]
principals = ["cert:CN=ci,O=Acme"]
repositories = ["team/**"]
rights = ["pull", "push"]
"""

NGINX = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/t1;
    proxy_temp_path {folder}/t2;
    fastcgi_temp_path {folder}/t3;
    uwsgi_temp_path {folder}/t4;
    scgi_temp_path {folder}/t5;
    include {folder}/registry.conf;
}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forwarded")
    Authority(folder, "servers").issue("server", "registry")
    clients = Authority(folder, "clients")
    clients.issue("ci", "ci")
    clients.issue("other", "other")
    Authority(folder, "strangers").issue("stranger", "ci")
    return folder


def started(start: StartRegistry, folder: Path, network: str) -> RunningRegistry:
    config = configure(folder, SETTINGS.format(network=network) + AUTH + TOKEN + RULES)
    return start(folder / "storage", "--config", str(config))


@pytest.fixture(scope="module")
def server(session_registries: StartRegistry, folder: Path) -> RunningRegistry:
    """A registry that believes 127.0.0.1."""
    return started(session_registries, folder, "127.0.0.1/32")


def in_nginx(name: str, folder: Path) -> str:
    """A certificate as ``$ssl_client_escaped_cert`` has it."""
    return quote((folder / f"{name}.crt").read_bytes())


def in_rfc9440(name: str, folder: Path) -> str:
    certificate = x509.load_pem_x509_certificate((folder / f"{name}.crt").read_bytes())
    return f":{base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()}:"


@pytest.fixture(scope="module", params=["on", "optional_no_ca"])
def proxy(request: pytest.FixtureRequest, server: RunningRegistry, folder: Path) -> Iterator[str]:
    """nginx with the configuration that is shipped: once it verifies certificates, once it passes on any."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed (apt-get install nginx): NO CERTIFICATE BEHIND A PROXY WAS TESTED")
    place, port = folder / request.param, free_port()
    place.mkdir()
    verify = "optional" if request.param == "on" else request.param
    (place / "nginx.conf").write_text(NGINX.format(folder=place))
    shutil.copy(CONFIGURATION, place / "registry.conf")
    (place / "registry-replicas.conf").write_text(f"server {server.host};\n")
    (place / "registry-listen.conf").write_text(
        f"listen 127.0.0.1:{port} ssl;\n"
        f"ssl_certificate {folder}/server.crt;\nssl_certificate_key {folder}/server.key;\n"
        f"ssl_client_certificate {folder}/clients.crt;\nssl_verify_client {verify};\n"
    )
    command = [program, "-p", str(place), "-c", "nginx.conf", "-e", str(place / "error.log")]
    with subprocess.Popen(command) as nginx:
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    with caller(folder, f"https://127.0.0.1:{port}") as anyone:
                        anyone.get("/healthz")
                    break
                except httpx.TransportError:
                    assert nginx.poll() is None and time.monotonic() < deadline, (place / "error.log").read_text()
                    time.sleep(0.05)
            yield f"https://127.0.0.1:{port}"
        finally:
            nginx.kill()


def caller(folder: Path, url: str, certificate: str | None = None, **headers: str) -> httpx.Client:
    context = ssl.create_default_context(cafile=str(folder / "servers.crt"))
    if certificate is not None:
        context.load_cert_chain(folder / f"{certificate}.crt", folder / f"{certificate}.key")
    return httpx.Client(base_url=url, verify=context, timeout=60, headers=headers)


def test_through_nginx(folder: Path, proxy: str) -> None:
    """The subject is the principal, also for tokens; without a certificate nobody is there."""
    with caller(folder, proxy, "ci") as ci:
        push_image(ci, "team/forwarded")
        assert ci.get("/v2/carol/x/tags/list").status_code == 403
        token = ci.get("/token", params={"scope": "repository:team/forwarded:pull"}).json()["token"]
        path = "/v2/team/forwarded/tags/list"
    with caller(folder, proxy) as elsewhere:
        assert elsewhere.get(path).status_code == 401
        assert elsewhere.get(path, headers={"Authorization": f"Bearer {token}"}).status_code == 200
    with caller(folder, proxy, "other") as other:
        assert other.get("/v2/").status_code == 200
        assert other.get(path).status_code == 403


def test_of_another_authority(folder: Path, proxy: str) -> None:
    """nginx may refuse it itself; where it passes on what it has not verified, the registry refuses."""
    with caller(folder, proxy, "stranger") as stranger:
        assert stranger.get("/v2/team/forwarded/tags/list").status_code in (400, 401)


def test_a_client_cannot_send_the_header_itself(folder: Path, proxy: str) -> None:
    for header in ("X-Client-Cert", "Client-Cert", "x_client_cert"):
        with caller(folder, proxy, **{header: in_nginx("ci", folder)}) as forger:
            assert forger.get("/v2/team/forwarded/tags/list").status_code == 401


def test_both_spellings_and_nothing_else(folder: Path, server: RunningRegistry) -> None:
    path = f"{server.url}/v2/team/x/tags/list"
    for value in (in_nginx("ci", folder), in_rfc9440("ci", folder)):
        assert httpx.get(path, headers={"X-Client-Cert": value}).status_code == 404, "let in: there is no repository"
    strangers = in_rfc9440("stranger", folder), in_nginx("stranger", folder)
    for value in ("x", "::", ":AAAA:", in_rfc9440("ci", folder)[:-1], *strangers):
        assert httpx.get(path, headers={"X-Client-Cert": value}).status_code == 401, value
        assert httpx.get(f"{server.url}/token", headers={"X-Client-Cert": value}).status_code == 401, value
    twice = [("X-Client-Cert", in_nginx("ci", folder)), ("X-Client-Cert", in_nginx("other", folder))]
    assert httpx.get(path, headers=twice).status_code == 401
    login = {"X-Client-Cert": in_nginx("ci", folder), "Authorization": "Basic YWxpY2U6d3Jvbmc="}
    assert httpx.get(path, headers=login).status_code == 401, "a login stands over a certificate"


def test_nobody_else_is_believed(folder: Path, registry_server: StartRegistry, tmp_path: Path) -> None:
    """From an address that is no trusted proxy the header is nothing, whatever other headers say."""
    shutil.copy(folder / "clients.crt", tmp_path)
    server = started(registry_server, tmp_path, "192.0.2.0/24")
    for more in ({}, {"X-Forwarded-For": "192.0.2.1"}, {"Forwarded": "for=192.0.2.1"}):
        headers = {"X-Client-Cert": in_nginx("ci", folder), **more}
        assert httpx.get(f"{server.url}/v2/team/x/tags/list", headers=headers).status_code == 401


@given(st.binary(max_size=200))
def test_any_bytes_in_the_header(value: bytes) -> None:
    with pytest.raises(Unauthorized):
        read_certificate(value)
    with pytest.raises(Unauthorized):
        read_certificate(b":" + base64.b64encode(value) + b":")
