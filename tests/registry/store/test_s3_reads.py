"""Reads from S3 when the service, the network or the credentials fail: the right bytes, or an error that says so."""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from registry.store.open import open_store
from registry.store.protocol import Missing, ObjectStore, StoreUnavailable, Stream
from tests.registry.conftest import environment
from tests.registry.store.scripted import Asked, Misdeed, ScriptedS3, answer, error

BIG = os.urandom(3_000_000)
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
CLEARED = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "HTTP_PROXY", "http_proxy", "AWS_PROFILE", "AWS_SESSION_TOKEN")


@pytest.fixture(autouse=True)
def nothing_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*CLEARED, *KEYS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_REGION", "us-east-1")


@pytest.fixture
def s3() -> Iterator[ScriptedS3]:
    with ScriptedS3({"/models/p/a/b": b"small", "/models/p/big": BIG}) as service:
        yield service


@pytest.fixture
def store(s3: ScriptedS3, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    return opened(s3)


def opened(s3: ScriptedS3, **env: str) -> ObjectStore:
    with environment({"AWS_ENDPOINT_URL": s3.url, **env}):
        return open_store("s3://models/p")


def everything(stream: Stream, piece: int = 100_000) -> bytes:
    """By `readinto`, as bodies are sent."""
    parts, room = [], bytearray(piece)
    while count := stream.readinto(memoryview(room)):
        parts.append(bytes(room[:count]))
    stream.close()
    return b"".join(parts)


def one_of(answers: bytes) -> Misdeed:
    def act(connection: socket.socket, asked: Asked) -> bool:
        connection.sendall(answers)
        return False

    return act


def test_the_plain_case_needs_no_sdk_and_one_connection(s3: ScriptedS3, store: ObjectStore) -> None:
    for _ in range(3):
        assert store.get("a/b").data == b"small"
        assert everything(store.read("big", 5, 2_000_000)) == BIG[5:2_000_005]
        with pytest.raises(Missing):
            store.get("a/c")
        with pytest.raises(Missing):
            store.read("a/c", 0, 1)
    assert not any(asked.by_sdk for asked in s3.asked)
    assert s3.connections == 1


def test_connection_that_the_service_has_closed_meanwhile(s3: ScriptedS3, store: ObjectStore) -> None:
    assert store.get("a/b").data == b"small"
    s3.hang_up()
    assert store.get("a/b").data == b"small"
    assert s3.connections == 2
    s3.misdeeds.append(lambda connection, asked: False)  # at the moment of the request
    assert store.get("a/b").data == b"small"
    assert s3.connections == 3
    assert not any(asked.by_sdk for asked in s3.asked)


MISDEEDS: dict[str, Callable[[ScriptedS3], Misdeed]] = {
    "short": lambda s3: s3.breaks_after(2),
    "reset": lambda s3: s3.breaks_after(2, hard=True),
    "closed at once": lambda s3: lambda connection, asked: False,
    "half a head": lambda s3: one_of(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "no HTTP": lambda s3: one_of(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
    "no length": lambda s3: one_of(b"HTTP/1.1 200 OK\r\n\r\nwrong"),
    "length that is none": lambda s3: one_of(b"HTTP/1.1 200 OK\r\nETag: x\r\nContent-Length: -5\r\n\r\nwrong"),
    "more than its length": lambda s3: one_of(answer("200 OK", b"wrong, and more", length=5)),
    "503": lambda s3: error("503 Slow Down", "SlowDown"),
    "500": lambda s3: error("500 Internal Server Error", "InternalError"),
}


@pytest.mark.parametrize("name", MISDEEDS)
@pytest.mark.parametrize("read", ["get", "read"])
def test_one_misdeed_goes_unnoticed(s3: ScriptedS3, store: ObjectStore, name: str, read: str) -> None:
    for before in (False, True):  # on a new connection and on one that has been used
        s3.misdeeds.append(MISDEEDS[name](s3))
        got = store.get("a/b").data if read == "get" else everything(store.read("a/b", 0, 5))
        assert got == b"small", before
        assert not s3.misdeeds


@pytest.mark.parametrize("hard", [False, True])
def test_a_long_answer_that_breaks_off_is_taken_up_where_it_broke(
    s3: ScriptedS3, store: ObjectStore, hard: bool
) -> None:
    s3.misdeeds += [s3.breaks_after(count, hard) for count in (1_000_000, 1, 700_000)]
    assert everything(store.read("big", 7, len(BIG) - 7)) == BIG[7:]
    ranges = [asked.headers["range"] for asked in s3.asked]
    assert ranges[0] == f"bytes=7-{len(BIG) - 1}"
    if not hard:  # a reset may take bytes with it that were on their way
        begins = [7, 1_000_007, 1_000_008, 1_700_008]
        assert ranges == [f"bytes={begin}-{len(BIG) - 1}" for begin in begins]


def test_a_service_that_always_breaks_off_is_given_up(s3: ScriptedS3, store: ObjectStore) -> None:
    s3.misdeeds += [s3.breaks_after(0) for _ in range(40)]
    stream = store.read("big", 0, len(BIG))
    with pytest.raises(StoreUnavailable):
        everything(stream)
    stream.close()
    assert len(s3.asked) < 40


def test_object_that_goes_away_while_it_is_read(s3: ScriptedS3, store: ObjectStore) -> None:
    s3.misdeeds.append(s3.breaks_after(1000))
    stream = store.read("big", 0, len(BIG))
    s3.objects.clear()
    with pytest.raises(Missing):
        everything(stream)


def test_object_that_is_shorter_than_was_thought(s3: ScriptedS3, store: ObjectStore) -> None:
    assert everything(store.read("big", 0, len(BIG) + 10)) == BIG
    assert store.read("big", 0, len(BIG) + 10).read(10**7) == BIG
    with pytest.raises(StoreUnavailable, match="InvalidRange"):
        store.read("big", len(BIG) + 5, 3)


@pytest.mark.parametrize(
    "other",
    [answer("200 OK", BIG), answer("206 Partial Content", BIG[:100], f"Content-Range: bytes 0-99/{len(BIG)}")],
    ids=["everything", "another range"],
)
def test_service_that_ignores_the_range(s3: ScriptedS3, store: ObjectStore, other: bytes) -> None:
    """Never the wrong bytes."""
    s3.misdeeds += [one_of(other) for _ in range(2)]
    with pytest.raises(StoreUnavailable, match="range"):
        store.read("big", 10, 100)
    assert [asked.by_sdk for asked in s3.asked] == [False, True]


def test_bucket_that_is_not_there_is_not_a_missing_object(s3: ScriptedS3, store: ObjectStore) -> None:
    s3.misdeeds += [error("404 Not Found", "NoSuchBucket") for _ in range(4)]
    for read in (lambda: store.get("a/b"), lambda: store.read("a/b", 0, 5)):
        with pytest.raises(StoreUnavailable, match="NoSuchBucket"):
            read()


def test_refused_and_then_not(s3: ScriptedS3, store: ObjectStore) -> None:
    """After a refusal the SDK is asked at once for a while: it knows about clocks and other regions."""
    s3.misdeeds += [error("403 Forbidden", "RequestTimeTooSkewed")]
    assert store.get("a/b").data == b"small"
    assert store.get("a/b").data == b"small"
    assert [asked.by_sdk for asked in s3.asked] == [False, True, True]


def test_expired_credentials_are_an_error_and_renewed_ones_are_used(
    s3: ScriptedS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Credentials that are lent for a time, as containers get them."""

    def lent(number: int, minutes: int) -> dict[str, str]:
        end = datetime.now(UTC) + timedelta(minutes=minutes)
        names = {"AccessKeyId": f"key-{number}", "SecretAccessKey": "secret", "Token": f"token-{number}"}
        return {**names, "Expiration": end.strftime("%Y-%m-%dT%H:%M:%SZ")}

    s3.credentials += [lent(1, 5), lent(2, 5), lent(3, 60)]  # those that end within ten minutes are renewed at once
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{s3.url}/credentials")
    store = opened(s3)
    used = []
    for _ in range(4):
        assert store.get("a/b").data == b"small"
        used.append((s3.asked[-1].headers["authorization"].split("/")[0], s3.asked[-1].headers["x-amz-security-token"]))
    assert used[-1] == used[-2] == ("AWS4-HMAC-SHA256 Credential=key-3", "token-3")
    assert not any(asked.by_sdk for asked in s3.asked)
    s3.misdeeds += [error("403 Forbidden", "ExpiredToken") for _ in range(2)]
    with pytest.raises(StoreUnavailable, match="ExpiredToken"):
        store.get("a/b")
    assert store.get("a/b").data == b"small"


def test_no_credentials_at_all(s3: ScriptedS3) -> None:
    store = opened(s3)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="credentials"):
            store.get("a/b")
    assert s3.asked == []


def test_a_proxy_is_used_where_one_is_set(s3: ScriptedS3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("http_proxy", s3.url)
    monkeypatch.setenv("no_proxy", "")
    s3.objects["http://store.example/models/p/a/b"] = b"by proxy"
    with environment({"AWS_ENDPOINT_URL": "http://store.example"}):
        store = open_store("s3://models/p")
    assert store.get("a/b").data == b"by proxy"
    assert all(asked.by_sdk for asked in s3.asked)


def certificate(folder: Path) -> ssl.SSLContext:
    """A service's certificate for 127.0.0.1, which stands for itself, in ``ca.pem``."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(made.public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.pem", folder / "key.pem")
    return context


def test_over_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    with ScriptedS3({"/models/p/big": BIG}, certificate(tmp_path)) as s3:
        store = opened(s3, AWS_CA_BUNDLE=str(tmp_path / "ca.pem"))
        s3.misdeeds.append(s3.breaks_after(500_000))
        for _ in range(2):
            assert everything(store.read("big", 3, len(BIG) - 3)) == BIG[3:]
        assert len(store.get("big").data) == len(BIG)
        assert not any(asked.by_sdk for asked in s3.asked)
        assert s3.connections == 2

        distrusting, before = opened(s3), len(s3.asked)
        with pytest.raises(StoreUnavailable):
            distrusting.get("big")
        assert len(s3.asked) == before
