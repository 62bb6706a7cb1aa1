"""Logins: to whom they go, and to whom they do not."""

from __future__ import annotations

import base64
import json
from urllib.parse import parse_qs, urlsplit

import pytest

from artifact.errors import (
    ServerError,
    StowageError,
    Unauthorized,
)
from artifact.remote import RemoteRepository
from artifact.remote.credentials import Credentials
from tests.artifact.exchanges import RAW, Exchange, Serve, answer_manifest

pytestmark = pytest.mark.usefixtures("no_waiting")


def login(host: str, user: str = "user", password: str = "secret") -> None:
    Credentials.load().store(host, user, password)


def test_without_a_login_the_message_says_how_to_get_one(serve: Serve) -> None:
    server = serve(lambda exchange: exchange.answer(401, WWW_Authenticate='Basic realm="r"'))
    with pytest.raises(Unauthorized, match=f"packager login {server.host}"):
        RemoteRepository(server.host, "x").resolve("t")


def test_a_wrong_login_is_tried_once(serve: Serve) -> None:
    server = serve(lambda exchange: exchange.answer(401, WWW_Authenticate='Basic realm="r"'))
    login(server.host)
    with pytest.raises(StowageError, match="login"):
        RemoteRepository(server.host, "x").resolve("t")
    assert [("authorization" in item.headers) for item in server.seen] == [False, True]


def test_the_token_flow(serve: Serve) -> None:
    def script(exchange: Exchange) -> None:
        parts = urlsplit(exchange.path)
        if parts.path == "/token":
            assert parse_qs(parts.query) == {"service": ["s"], "scope": ["repository:x:pull"], "account": ["user"]}
            assert exchange.headers["authorization"].startswith("Basic ")
            exchange.answer(200, b'{"access_token":"T"}')
        elif exchange.headers.get("authorization") == "Bearer T":
            answer_manifest(exchange)
        else:
            challenge = f'Bearer realm="http://{exchange.headers["host"]}/token",service="s",scope="repository:x:pull"'
            exchange.answer(401, WWW_Authenticate=challenge)

    server = serve(script)
    login(server.host)
    repository = RemoteRepository(server.host, "x")
    assert repository.manifest("t")[1] == RAW
    assert repository.manifest("t")[1] == RAW
    assert [urlsplit(item.path).path for item in server.seen].count("/token") == 1, "the token is used again"


class TokenService:
    """On another host than its registry; gives its token to anybody, or to nobody without a login."""

    def __init__(self, serve: Serve, strict: bool = False) -> None:
        def give(exchange: Exchange) -> None:
            allowed = "authorization" in exchange.headers or not strict
            exchange.answer(200 if allowed else 403, b'{"token":"T"}')

        def check(exchange: Exchange) -> None:
            if exchange.headers.get("authorization") == "Bearer T":
                answer_manifest(exchange)
            else:
                exchange.answer(401, WWW_Authenticate=f'Bearer realm="http://{self.host}/token",service="s"')

        self.server, self.registry = serve(give), serve(check).host
        self.host = f"localhost:{self.server.host.split(':')[1]}"  # another name, and so another host

    def shown(self) -> list[str | None]:
        """What it was shown of logins."""
        return [item.headers.get("authorization") for item in self.server.seen]


def test_a_login_is_never_sent_to_another_realm(serve: Serve) -> None:
    """CVE-2026-33990, CVE-2025-51471: the realm is the server's word, the password is the user's."""
    thief = TokenService(serve)
    login(thief.registry)
    assert RemoteRepository(thief.registry, "x").manifest("t")[1] == RAW
    assert thief.shown() == [None]


def test_a_registry_gets_no_token_of_another_one(serve: Serve) -> None:
    """That the user logs in at the host which it names is the very reason to name it."""
    other = TokenService(serve, strict=True)
    login(other.host)
    with pytest.raises(Unauthorized, match=f"STOWAGE_TOKEN_HOSTS={other.registry}={other.host}"):
        RemoteRepository(other.registry, "x").manifest("t")
    assert other.shown() == [None]


@pytest.mark.parametrize("stored", ["registry", "host"])
def test_a_login_goes_to_the_token_host_that_the_user_names(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, stored: str
) -> None:
    """As with GitLab on one's own machines: the registry's own login; else what is stored for the token host."""
    service = TokenService(serve, strict=True)
    login(getattr(service, stored))
    login("elsewhere.example", "another")
    monkeypatch.setenv("STOWAGE_TOKEN_HOSTS", f"elsewhere.example=a.example,{service.registry}={service.host.upper()}")
    assert RemoteRepository(service.registry, "x").manifest("t")[1] == RAW
    assert service.shown() == ["Basic dXNlcjpzZWNyZXQ="]


def test_a_token_host_is_named_for_one_registry(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    service = TokenService(serve, strict=True)
    login(service.registry)
    login(service.host)
    monkeypatch.setenv("STOWAGE_TOKEN_HOSTS", f"elsewhere.example={service.host}")
    with pytest.raises(Unauthorized, match="gives no token"):
        RemoteRepository(service.registry, "x").manifest("t")
    assert service.shown() == [None]


def test_what_may_not_be_read_without_a_login_says_that_none_was_sent(serve: Serve) -> None:
    service = TokenService(serve)
    refused = serve(lambda exchange: exchange.answer(401, WWW_Authenticate=f'Bearer realm="http://{service.host}/t"'))
    login(refused.host)
    with pytest.raises(Unauthorized, match=f"STOWAGE_TOKEN_HOSTS={refused.host}={service.host}"):
        RemoteRepository(refused.host, "x").manifest("t")


@pytest.mark.parametrize(
    "realm",
    ["", "file:///etc/passwd", "http://user:pw@h/token", "javascript:1", "http:///x", "http://[x/", "http://h:x/"],
)
def test_a_realm_that_is_no_url_is_refused(serve: Serve, realm: str) -> None:
    server = serve(lambda exchange: exchange.answer(401, WWW_Authenticate=f'Bearer realm="{realm}"'))
    with pytest.raises(ServerError, match="no URL"):
        RemoteRepository(server.host, "x").resolve("t")


@pytest.mark.parametrize(
    "answer",
    [
        json.dumps({"token": "a\r\nX: é"}).encode(),
        json.dumps({"token": "a\r\nX-Evil: 1"}).encode(),
        json.dumps({"token": "a\x7f"}).encode(),
        b"[" * 60_000,
        b"[]",
        b"",
    ],
    ids=["other characters", "a line end", "a control character", "depth", "a list", "nothing"],
)
def test_a_token_that_is_none_is_refused(serve: Serve, answer: bytes) -> None:
    def script(exchange: Exchange) -> None:
        if exchange.path.startswith("/token"):
            exchange.answer(200, answer)
        else:
            exchange.answer(401, WWW_Authenticate=f'Bearer realm="http://{exchange.headers["host"]}/token"')

    with pytest.raises(ServerError, match="no token"):
        RemoteRepository(serve(script).host, "x").resolve("t")


def test_a_password_for_the_proxy_reaches_it(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = serve(answer_manifest)
    for name in ("no_proxy", "NO_PROXY", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://user:p%40ss@{proxy.host}")
    assert RemoteRepository("registry.example.com", "x", plain_http=True).manifest("t")[1] == RAW
    (asked,) = proxy.seen
    assert asked.path == "http://registry.example.com/v2/x/manifests/t"
    assert asked.headers["proxy-authorization"] == f"Basic {base64.b64encode(b'user:p@ss').decode()}"
