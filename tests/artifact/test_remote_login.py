"""Logins: to whom they go, and to whom they do not."""

from __future__ import annotations

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


def test_a_login_is_never_sent_to_another_realm(serve: Serve) -> None:
    """CVE-2026-33990, CVE-2025-51471: the realm is the server's word, the password is the user's."""
    thief = serve(lambda exchange: exchange.answer(200, b'{"token":"T"}'))

    def script(exchange: Exchange) -> None:
        if exchange.headers.get("authorization") == "Bearer T":
            answer_manifest(exchange)
        else:
            exchange.answer(401, WWW_Authenticate=f'Bearer realm="http://{other}/token",service="s"')

    server = serve(script)
    other = f"localhost:{thief.host.split(':')[1]}"  # another name, and so another host
    login(server.host)
    assert RemoteRepository(server.host, "x").manifest("t")[1] == RAW
    assert thief.seen and all("authorization" not in item.headers for item in thief.seen)


@pytest.mark.parametrize("realm", ["", "file:///etc/passwd", "http://user:pw@h/token", "javascript:1", "http:///x"])
def test_a_realm_that_is_no_url_is_refused(serve: Serve, realm: str) -> None:
    server = serve(lambda exchange: exchange.answer(401, WWW_Authenticate=f'Bearer realm="{realm}"'))
    with pytest.raises(ServerError, match="no URL"):
        RemoteRepository(server.host, "x").resolve("t")


def test_a_token_that_would_break_the_header_is_refused(serve: Serve) -> None:
    def script(exchange: Exchange) -> None:
        if exchange.path.startswith("/token"):
            exchange.answer(200, json.dumps({"token": "a\r\nX: é"}).encode())
        else:
            exchange.answer(401, WWW_Authenticate=f'Bearer realm="http://{exchange.headers["host"]}/token"')

    with pytest.raises(StowageError):
        RemoteRepository(serve(script).host, "x").resolve("t")
