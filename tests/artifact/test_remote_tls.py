"""Registries that speak TLS where plain HTTP is spoken, or the other way round, or with a certificate nobody knows."""

from __future__ import annotations

import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from artifact.errors import Unreachable
from artifact.remote import RemoteRepository
from artifact.remote.transport import Transport


class _Nothing(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Nothing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def asked(host: str, scheme: str) -> str:
    """What is said of a request to `host`. Loopback is asked in plain HTTP, so the scheme is set here."""
    transport = Transport(host, attempts=1)
    transport.scheme, transport.base = scheme, f"{scheme}://{host}"
    with pytest.raises(Unreachable) as raised:
        RemoteRepository(host, "x", transport=transport).manifest("v1")
    return str(raised.value)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    path = tmp_path / "both.pem"
    command = [
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
        "-subj", "/CN=registry", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", path,
        "-out", tmp_path / "crt.pem",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    path.write_text(path.read_text() + (tmp_path / "crt.pem").read_text())
    return path


def test_plain_http_where_tls_is_spoken(server: ThreadingHTTPServer) -> None:
    host = f"127.0.0.1:{server.server_port}"
    assert asked(host, "https") == (
        f"cannot reach {host}: it does not speak TLS: if plain HTTP is what is meant, --plain-http"
    )


def test_a_certificate_by_nobody_known(
    server: ThreadingHTTPServer, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = f"127.0.0.1:{server.server_port}"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    said = asked(host, "https")
    assert "its certificate is not trusted (self-signed certificate)" in said and "SSL_CERT_FILE" in said
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.with_name("crt.pem")))
    transport = Transport(host)
    transport.scheme, transport.base = "https", f"https://{host}"
    assert transport.request("GET", "/v2/", scope="", expect=(404,)).status == 404
