"""Challenges, credential files and helpers, and to whom a login may go."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifact.errors import InvalidInput, StowageError, Unauthorized
from artifact.remote.auth import Authorizer
from artifact.remote.challenge import parse_challenges
from artifact.remote.credentials import Credentials
from artifact.remote.hosts import is_internal, is_loopback, scheme_of


@given(st.text(max_size=200))
def test_any_header_is_read_without_complaint(header: str) -> None:
    for challenge in parse_challenges(header):
        assert challenge.scheme == challenge.scheme.lower()


def test_challenges_of_several_schemes() -> None:
    header = 'Basic realm="a, \\"b\\"", Bearer realm="https://h/t",service=s,scope="repository:x:pull,push", Negotiate'
    basic, bearer, negotiate = parse_challenges(header)
    assert (basic.scheme, basic.parameters) == ("basic", {"realm": 'a, "b"'})
    assert bearer.parameters == {"realm": "https://h/t", "service": "s", "scope": "repository:x:pull,push"}
    assert negotiate.scheme == "negotiate"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    return tmp_path / "config.json"


def test_a_stored_login_is_private_and_reads_back(config: Path) -> None:
    config.write_text(json.dumps({"HttpHeaders": {"k": "v"}, "auths": {"other": {"auth": "eDp5"}}}))
    Credentials.load().store("h:1", "user", "pass:word")
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    value = json.loads(config.read_text())
    assert value["HttpHeaders"] == {"k": "v"} and set(value["auths"]) == {"other", "h:1"}
    login = Credentials.load().get("h:1")
    assert login is not None and (login.username, login.password) == ("user", "pass:word")
    assert "pass:word" not in repr(login)
    assert Credentials.load().get("h:2") is None, "another port is another host"
    assert Credentials.load().erase("h:1") and not Credentials.load().erase("h:1")


@pytest.mark.parametrize("key", ["h:1", "https://h:1", "https://h:1/v2/"])
def test_the_spellings_docker_uses(config: Path, key: str) -> None:
    config.write_text(json.dumps({"auths": {key: {"auth": base64.b64encode(b"u:p").decode()}}}))
    login = Credentials.load().get("h:1")
    assert login is not None and login.basic == "Basic " + base64.b64encode(b"u:p").decode()


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"auths":[]}', '{"auths":{"h":{"auth":"%%%"}}}', '{"auths":{"h":{"auth":"eA=="}}}']
)
def test_a_broken_file_is_said(config: Path, text: str) -> None:
    config.write_text(text)
    with pytest.raises(InvalidInput, match=str(config)):
        Credentials.load().get("h")


def helper(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = folder / "docker-credential-test"
    program.write_text("#!/bin/sh\n" + script)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_a_helper_is_asked_for_its_host_only(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(tmp_path, monkeypatch, f'read h; echo "$1 $h" >> {tmp_path}/asked; echo \'{{"Username":"u","Secret":"s"}}\'')
    config.write_text(json.dumps({"credHelpers": {"h:1": "test"}}))
    login = Credentials.load().get("h:1")
    assert login is not None and login.password == "s"
    assert Credentials.load().get("h:2") is None
    assert (tmp_path / "asked").read_text() == "get h:1\n"


def test_a_helper_returns_an_identity_token(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(tmp_path, monkeypatch, 'echo \'{"Username":"<token>","Secret":"refresh"}\'')
    config.write_text(json.dumps({"credsStore": "test"}))
    login = Credentials.load().get("h:1")
    assert login is not None and login.identity_token == "refresh"


def test_a_helper_that_fails_is_said(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(tmp_path, monkeypatch, "echo locked >&2; exit 1")
    config.write_text(json.dumps({"credsStore": "test"}))
    with pytest.raises(StowageError, match="docker-credential-test get failed: locked"):
        Credentials.load().get("h:1")
    config.write_text(json.dumps({"credsStore": "absent"}))
    with pytest.raises(StowageError, match="not on PATH"):
        Credentials.load().get("h:1")


@pytest.mark.parametrize("name", ["../../bin/sh", "a b", "", "-x", 3])
def test_a_helpers_name_is_checked_before_it_is_run(config: Path, name: object) -> None:
    config.write_text(json.dumps({"credHelpers": {"h:1": name}, "credsStore": "a b"}))
    with pytest.raises(InvalidInput, match="credential helper"):
        Credentials.load().get("h:1")


@pytest.mark.parametrize(
    ("registry", "realm"),
    [
        ("registry.example.org", "http://registry.example.org/token"),
        ("registry.example.org", "http://elsewhere.example/token"),
        ("registry.example.org", "https://127.0.0.1/token"),
        ("registry.example.org", "https://10.0.0.8/latest/meta-data"),
        ("registry.example.org", "https://169.254.169.254/token"),
        ("registry.example.org", "https://[::1]/token"),
        ("registry.example.org", "https://localhost/token"),
    ],
)
def test_realms_that_leave_the_trust_boundary_are_not_asked(registry: str, realm: str) -> None:
    """CVE-2026-33540, CVE-2026-33990."""

    def send(*_: object, **__: object) -> None:
        raise AssertionError("a request was sent")

    import urllib3

    response = urllib3.HTTPResponse(status=401, headers={"WWW-Authenticate": f'Bearer realm="{realm}"'})
    authorizer = Authorizer("https", registry, Credentials(Path("none"), {}), send)  # type: ignore[arg-type]
    with pytest.raises(Unauthorized, match="not asked"):
        authorizer.answer(response, "repository:x:pull", None)


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:5000", "127.0.0.1:80", "127.9.9.9", "[::1]:5000", "LOCALHOST"]
)
def test_loopback(host: str) -> None:
    assert is_loopback(host) and is_internal(host) and scheme_of(host, False) == "http"


@pytest.mark.parametrize("host", ["example.org", "localhost.example.org", "127.0.0.1.example.org", "[2606:4700::1111]"])
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host) and not is_internal(host)
    assert (scheme_of(host, False), scheme_of(host, True)) == ("https", "http")


def test_internal_addresses_are_not_loopback() -> None:
    assert is_internal("10.1.2.3:5000") and not is_loopback("10.1.2.3:5000")
