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
from artifact.reference import is_host
from artifact.remote import RemoteRepository
from artifact.remote.auth import Authorizer
from artifact.remote.challenge import parse_challenges
from artifact.remote.credentials import Credentials
from artifact.remote.hosts import is_internal, is_loopback, scheme_of
from artifact.remote.tokenhosts import parse_token_hosts


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
    "text",
    [
        "{",
        "[]",
        '{"auths":[]}',
        '{"auths":{"h":{"auth":"%%%"}}}',
        '{"auths":{"h":{"auth":"eA=="}}}',
        '{"auths":{"h":{"auth":"\u00e9"}}}',
    ],
)
def test_a_broken_file_is_said(config: Path, text: str) -> None:
    config.write_text(text)
    with pytest.raises(InvalidInput, match=str(config)):
        Credentials.load().get("h")


@pytest.mark.parametrize("key", ["auths", "credHelpers"])
def test_null_is_no_entry(config: Path, key: str) -> None:
    config.write_text(json.dumps({key: None}))
    Credentials.load().store("h", "user", "secret")
    login = Credentials.load().get("h")
    assert login is not None and login.password == "secret"


@pytest.mark.parametrize("text", ['{"auths":[]}', '{"credHelpers":[]}'])
def test_nothing_is_stored_in_a_broken_file(config: Path, text: str) -> None:
    config.write_text(text)
    with pytest.raises(InvalidInput, match="must be an object"):
        Credentials.load().store("h", "user", "secret")
    assert config.read_text() == text


def test_a_link_to_the_file_stays_one(config: Path, tmp_path: Path) -> None:
    (tmp_path / "dotfiles.json").write_text("{}")
    config.symlink_to("dotfiles.json")
    Credentials.load().store("h", "user", "secret")
    assert config.is_symlink() and "auths" in json.loads((tmp_path / "dotfiles.json").read_text())


def test_a_user_without_a_home_has_no_logins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathlib.Path.home", homeless)
    assert Credentials.load().get("h") is None
    with pytest.raises(InvalidInput, match="DOCKER_CONFIG"):
        Credentials.load().store("h", "user", "secret")


def homeless() -> Path:
    raise RuntimeError("Could not determine home directory.")


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


@pytest.mark.parametrize(
    "host", ["127.1", "2130706433:80", "0x7f.0.0.1", "127.0.0.1.", "localhost.", "[::ffff:127.0.0.1]"]
)
def test_loopback_as_only_resolvers_read_it(host: str) -> None:
    assert is_loopback(host) and is_internal(host)


@pytest.mark.parametrize("host", ["0", "10.1", "0xa9fea9fe", "169.16689662", "[::ffff:10.0.0.1]"])
def test_internal_as_only_resolvers_read_it(host: str) -> None:
    assert is_internal(host) and not is_loopback(host)


@pytest.mark.parametrize("host", ["example.org", "localhost.example.org", "127.0.0.1.example.org", "[2606:4700::1111]"])
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host) and not is_internal(host)
    assert (scheme_of(host, False), scheme_of(host, True)) == ("https", "http")


def test_internal_addresses_are_not_loopback() -> None:
    assert is_internal("10.1.2.3:5000") and not is_loopback("10.1.2.3:5000")


def test_token_hosts_are_pairs() -> None:
    text = "registry.example.com=gitlab.example.com, R.example:5000=one.example,r.example:5000=[2606:4700::1111]:8443"
    assert parse_token_hosts(text) == {
        "registry.example.com": {"gitlab.example.com"},
        "r.example:5000": {"one.example", "[2606:4700::1111]:8443"},
    }
    assert parse_token_hosts("") == parse_token_hosts("  ") == {}


@pytest.mark.parametrize(
    "text", ["a", "a=", "=b", "a=b,", ",", "a=b=c", "a=https://b", "a=b/c", "a=b:0", "a b=c", "*=b"]
)
def test_token_hosts_that_make_no_sense_are_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOWAGE_TOKEN_HOSTS", text)
    with pytest.raises(InvalidInput, match="STOWAGE_TOKEN_HOSTS: not REGISTRY=TOKENHOST"):
        RemoteRepository("localhost:1", "x")


@given(st.text(max_size=60))
def test_token_hosts_are_hosts_or_refused(text: str) -> None:
    try:
        found = parse_token_hosts(text)
    except InvalidInput:
        return
    assert all(is_host(host) for registry, hosts in found.items() for host in (registry, *hosts))
