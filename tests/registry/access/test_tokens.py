"""Docker's token flow: tokens say who and what at most, hold for minutes, and are believed by configured keys alone."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from artifact.errors import InvalidInput, Unauthorized
from artifact.remote.challenge import parse_challenges
from registry.access.rights import Caller, Grant, Principal, Right
from registry.access.scopes import Scope, granted, parse
from registry.access.tokens import Tokens, generate_key
from tests.registry.secured import PASSWORDS, bearer, claims, client, fetch_token
from tests.registry.servers import RunningRegistry


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    generate_key(tmp_path / "key")
    return Tokens(tmp_path / "key", (), "here", 300)


ALICE = Principal("alice")


def test_a_token_says_who_and_what(tokens: Tokens) -> None:
    token, now = tokens.issue(Principal("oidc:x:y", frozenset({"oidc:x"})), [Scope("repository", "a/b", ("pull",))])
    found = tokens.read(token)
    assert found.principal == Principal("oidc:x:y", frozenset({"oidc:x"}))
    assert found.bounds == (Grant(("a/b",), frozenset({Right.PULL})),)
    assert not found.catalog
    assert found.expires == now + 300
    assert jwt.get_unverified_header(token) == {"alg": "ES256", "typ": "JWT"}


def forged(key: Any, algorithm: str, headers: dict[str, Any] | None = None, **changes: Any) -> str:
    now = int(time.time())
    value = {"iss": "here", "aud": "here", "sub": "alice", "groups": [], "iat": now, "nbf": now, "exp": now + 300}
    value = {name: item for name, item in {**value, "access": [], **changes}.items() if item is not None}
    return jwt.encode(value, key, algorithm=algorithm, headers=headers)


def test_keys_in_headers_are_not_trusted(tokens: Tokens) -> None:
    """CVE-2025-24976, and what belongs to it."""
    own = ec.generate_private_key(ec.SECP256R1())
    public = jwt.algorithms.ECAlgorithm.to_jwk(own.public_key(), as_dict=True)
    headers: list[dict[str, Any]] = [
        {"jwk": public}, {"kid": "x"}, {"jku": "http://127.0.0.1:9/keys"}, {"x5u": "http://127.0.0.1:9/"},
        {"x5c": ["AAAA"]}, {},
    ]  # fmt: skip
    for header in headers:
        with pytest.raises(Unauthorized):
            tokens.read(forged(own, "ES256", header))


def test_algorithms_are_pinned(tokens: Tokens, tmp_path: Path) -> None:
    """No "none", no HMAC with the public key for a secret, no other algorithm."""
    private = (tmp_path / "key").read_text()
    with pytest.raises(Unauthorized):
        tokens.read(forged(None, "none"))
    with pytest.raises(Unauthorized):
        tokens.read(forged("a secret of some length that anyone may choose", "HS256"))
    with pytest.raises(Unauthorized):
        tokens.read(forged(rsa.generate_private_key(65537, 2048), "RS256"))
    assert tokens.read(forged(private, "ES256")).principal == ALICE


@pytest.mark.parametrize(
    "changes",
    [{"aud": "elsewhere"}, {"aud": ["here", "elsewhere"]}, {"iss": "elsewhere"}, {"exp": int(time.time()) - 60},
     {"nbf": int(time.time()) + 10**6}, {"exp": None}, {"sub": None}, {"aud": None}, {"access": "x"}, {"groups": None},
     {"access": [{"type": "repository"}]}, {"access": [{"type": "repository", "name": "a", "actions": "pull"}]}],
)  # fmt: skip
def test_claims_are_required(tokens: Tokens, tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(Unauthorized):
        tokens.read(forged((tmp_path / "key").read_text(), "ES256", **changes))


@pytest.mark.parametrize("token", ["", "a", "a.b.c", "..", "\ud800", "a" * 20_000, "eyJhbGciOiJFUzI1NiJ9.e30."])
def test_rubbish(tokens: Tokens, token: str) -> None:
    with pytest.raises(Unauthorized):
        tokens.read(token)


def test_rotation(tmp_path: Path) -> None:
    """Tokens of a previous key hold; those of a key that is in no list do not."""
    for name in ("old", "new"):
        generate_key(tmp_path / name)
    token, _ = Tokens(tmp_path / "old", (), "here", 300).issue(ALICE, [])
    assert Tokens(tmp_path / "new", (tmp_path / "old",), "here", 300).read(token).principal == ALICE
    with pytest.raises(Unauthorized):
        Tokens(tmp_path / "new", (), "here", 300).read(token)


def test_keys_are_made_by_command_only(tmp_path: Path) -> None:
    generate_key(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(InvalidInput, match="already"):
        generate_key(tmp_path / "key")
    (tmp_path / "bad").write_text("nothing")
    for name in ("bad", "absent"):
        with pytest.raises(InvalidInput, match=name):
            Tokens(tmp_path / name, (), "here", 300)
    assert not (tmp_path / "absent").exists()


def test_scopes() -> None:
    assert parse(["repository:a/b:pull,push repository:c:*", "registry:catalog:*"]) == [
        Scope("repository", "a/b", ("pull", "push")),
        Scope("repository", "c", ("*",)),
        Scope("registry", "catalog", ("*",)),
    ]
    assert parse(["", "repository", "repository:a", "repository:A B:pull", "\0", "x:y:z w"]) == [
        Scope("x", "y", ("z",))
    ]
    assert len(parse([f"repository:r{n}:pull" for n in range(1000)])) == 64


def test_scopes_are_cut_down_to_what_is_granted() -> None:
    caller = Caller(
        ALICE, (Grant(("a/*",), frozenset({Right.PULL, Right.PUSH})), Grant(("b",), frozenset({Right.DELETE})))
    )
    asked = parse(["repository:a/x:pull,push,delete", "repository:b:*", "repository:c:pull", "repository:../x:pull"])
    assert granted(caller, asked) == [
        Scope("repository", "a/x", ("pull", "push")),
        Scope("repository", "b", ("delete",)),
    ]


class TestServer:
    def test_challenge_and_answer(self, by_token: RunningRegistry) -> None:
        with client(by_token.url) as anyone:
            header = anyone.get("/v2/team/model/manifests/v1").headers["www-authenticate"]
        (challenge,) = parse_challenges(header)
        assert challenge.scheme == "bearer"
        assert challenge.parameters == {
            "realm": f"{by_token.url}/token", "service": "test-registry", "scope": "repository:team/model:pull",
        }  # fmt: skip

    def test_answer(self, by_token: RunningRegistry) -> None:
        with client(by_token.url, "bob") as bob:
            answer = bob.get("/token", params={"scope": "repository:team/a:pull,push,delete", "account": "bob"})
        body = answer.json()
        assert body["token"] == body["access_token"]
        assert body["expires_in"] == 300
        assert body["issued_at"].endswith("Z")
        assert answer.headers["cache-control"] == "no-store"
        assert claims(body["token"])["access"] == [
            {"type": "repository", "name": "team/a", "actions": ["pull", "push"]}
        ]

    def test_oauth2(self, by_token: RunningRegistry) -> None:
        form = {
            "grant_type": "password", "username": "bob", "password": PASSWORDS["bob"], "client_id": "x",
            "scope": "repository:team/a:pull", "service": "test-registry",
        }  # fmt: skip
        with client(by_token.url) as anyone:
            answer = anyone.post("/token", data=form)
            assert answer.json()["scope"] == "repository:team/a:pull"
            assert anyone.post("/token", data={**form, "password": "wrong"}).status_code == 401
            assert anyone.post("/token", data={**form, "service": "other"}).status_code == 400
            assert anyone.post("/token", data={"grant_type": "refresh_token"}).status_code == 400
            assert anyone.post("/token", content=b"\xff" * 100).status_code == 400
            assert anyone.post("/token", content=b"a" * 100_000).status_code == 413

    def test_no_token_for_a_wrong_password(self, by_token: RunningRegistry) -> None:
        for user, password in (("bob", "wrong"), ("nobody", "x"), ("oidc", "x"), ("robot+x", "x")):
            with client(by_token.url, user, password) as caller:
                answer = caller.get("/token")
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Basic ")

    def test_anonymous_token(self, by_token: RunningRegistry) -> None:
        token = fetch_token(by_token.url, "repository:public/model:pull,push repository:team/model:pull")
        assert claims(token)["access"] == [{"type": "repository", "name": "public/model", "actions": ["pull"]}]
        with bearer(by_token.url, token) as caller:
            assert caller.get("/v2/").status_code == 200
            assert caller.get("/v2/public/absent/tags/list").status_code == 401
            assert caller.get("/v2/team/model/tags/list").status_code == 401

    def test_a_token_bounds_its_holder(self, by_token: RunningRegistry) -> None:
        """Nothing beyond its scopes, though the principal might; 401 says which scope to ask for."""
        token = fetch_token(by_token.url, "repository:team/model:pull", user="alice")
        with bearer(by_token.url, token) as caller:
            assert caller.get("/v2/team/model/tags/list").status_code in (200, 404)
            answer = caller.delete("/v2/team/model/manifests/v1")
            assert answer.status_code == 401
            assert (
                'scope="repository:team/model:delete",error="insufficient_scope"' in answer.headers["www-authenticate"]
            )
            assert caller.get("/v2/public/model/tags/list").status_code == 401
            assert caller.get("/v2/_catalog").status_code == 401
        token = fetch_token(by_token.url, "registry:catalog:*", user="alice")
        with bearer(by_token.url, token) as caller:
            assert caller.get("/v2/_catalog").status_code == 200

    def test_denied_is_not_a_challenge(self, by_token: RunningRegistry) -> None:
        """No token would help: 403, so that clients do not ask in circles."""
        token = fetch_token(by_token.url, "repository:carol/x:pull", user="bob")
        with bearer(by_token.url, token) as caller:
            assert caller.get("/v2/carol/x/tags/list").status_code == 403

    def test_realm_is_not_what_a_client_makes_of_it(self, by_token: RunningRegistry) -> None:
        for host in ('evil" x="', "a b", "user@host", "host/path", ""):
            answer = client(by_token.url).get("/v2/", headers={"Host": host})
            assert answer.status_code == 400
            assert "www-authenticate" not in answer.headers
