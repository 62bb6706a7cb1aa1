"""Client certificates: the subject of a certificate of the configured authority is a principal."""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tests.registry.pushing import push_image, sha256
from tests.registry.secured import AUTH, PASSWORDS, RULES, TOKEN, configure
from tests.registry.servers import ROOT

TLS = """
[server]
listen = "127.0.0.1:0"
storage = "{folder}/storage"

[server.tls]
certificate = "server.crt"
key = "server.key"
client-ca = "clients.crt"

[[access]]
principals = ["cert:CN=ci,O=Acme"]
repositories = ["team/**"]
rights = ["pull", "push"]
"""


def name(common: str, organisation: str) -> x509.Name:
    organisation_first = [
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation), x509.NameAttribute(NameOID.COMMON_NAME, common),
    ]  # fmt: skip
    return x509.Name(organisation_first)


class Authority:
    """A certificate authority that writes what it makes into a folder."""

    def __init__(self, folder: Path, file: str) -> None:
        self._folder = folder
        self._name, self._key = name(file, "Authority"), ec.generate_private_key(ec.SECP256R1())
        self._write(file, self._name, self._key, authority=True)

    def issue(self, file: str, common: str, organisation: str = "Acme") -> None:
        """Certificate and key for a subject, and for 127.0.0.1."""
        self._write(file, name(common, organisation), ec.generate_private_key(ec.SECP256R1()))

    def _write(self, file: str, subject: x509.Name, key: ec.EllipticCurvePrivateKey, authority: bool = False) -> None:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if not authority:
            alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
            builder = builder.add_extension(alternative, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        (self._folder / f"{file}.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (self._folder / f"{file}.key").write_bytes(pem)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    Authority(folder, "servers").issue("server", "registry")
    clients = Authority(folder, "clients")
    clients.issue("ci", "ci")
    clients.issue("other", "other")
    clients.issue("tricky", "ci,O=Acme", "Evil")  # a name that would read as another's, were it not escaped
    Authority(folder, "strangers").issue("stranger", "ci")
    configure(folder, TLS.format(folder=folder) + AUTH + TOKEN + RULES)
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    code = "from registry.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "serve", "--config", str(folder / "registry.toml")],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, env=dict(os.environ),
    )  # fmt: skip
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert "https://" in line
        yield "https://" + line.split("https://")[1].split()[0]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def client(folder: Path, url: str, certificate: str | None = None) -> httpx.Client:
    context = ssl.create_default_context(cafile=str(folder / "servers.crt"))
    if certificate is not None:
        context.load_cert_chain(folder / f"{certificate}.crt", folder / f"{certificate}.key")
    transport = httpx.HTTPTransport(verify=context, retries=20)
    return httpx.Client(base_url=url, transport=transport, timeout=30)


def test_a_certificate_is_a_login(folder: Path, url: str) -> None:
    with client(folder, url, "ci") as ci:
        assert ci.get("/v2/").status_code == 200
        push_image(ci, "team/by-certificate", layer=b"x" * 3_000_000)
        assert ci.get("/v2/team/by-certificate/blobs/" + sha256(b"x" * 3_000_000)).content == b"x" * 3_000_000
        assert ci.get("/v2/carol/x/tags/list").status_code == 403
        token = ci.get("/token", params={"scope": "repository:team/by-certificate:pull"}).json()["token"]
    with client(folder, url) as elsewhere:
        path = "/v2/team/by-certificate/tags/list"
        assert elsewhere.get(path, headers={"Authorization": f"Bearer {token}"}).status_code == 200


@pytest.mark.parametrize("certificate", ["other", "tricky"])
def test_others_are_others(folder: Path, url: str, certificate: str) -> None:
    with client(folder, url, certificate) as caller:
        assert caller.get("/v2/").status_code == 200
        assert caller.get("/v2/team/by-certificate/tags/list").status_code == 403


def test_without_a_certificate(folder: Path, url: str) -> None:
    """Others log in as ever, and a login stands over a certificate."""
    with client(folder, url) as anyone:
        answer = anyone.get("/v2/team/by-certificate/tags/list")
        assert answer.status_code == 401
        assert f'realm="{url}/token"' in answer.headers["www-authenticate"]
        assert anyone.get("/v2/", auth=("alice", PASSWORDS["alice"])).status_code == 200
    with client(folder, url, "ci") as ci:
        assert ci.get("/v2/team/by-certificate/tags/list", auth=("carol", PASSWORDS["carol"])).status_code == 403
        assert ci.get("/v2/", auth=("alice", "wrong")).status_code == 401


def test_of_another_authority(folder: Path, url: str) -> None:
    """The handshake fails: such a certificate proves nothing, not even nobody."""
    with client(folder, url, "stranger") as stranger, pytest.raises(httpx.TransportError):
        stranger.get("/v2/")
