"""Tokens of an OIDC issuer become registry tokens; what is wrong with one is found before it is anything."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from artifact.errors import Unauthorized, Unreachable
from registry.access import oidc
from registry.access.oidc import Issuers
from registry.access.rights import Principal
from registry.config.sections import OidcIssuer
from tests.registry.access.issuer import LocalIssuer, jwk, local_issuer
from tests.registry.pushing import push_image
from tests.registry.secured import AUTH, RULES, TOKEN, bearer, claims, client, configure, fetch_token
from tests.registry.servers import StartRegistry


@pytest.fixture
def issuer() -> Iterator[LocalIssuer]:
    with local_issuer() as issuer:
        yield issuer


def issuers(issuer: LocalIssuer, **changes: Any) -> Issuers:
    settings = {"claims": {"owner": ("acme",)}, "audience": "test-registry", **changes}
    return Issuers([OidcIssuer("ci", issuer.url, **settings)])


def test_principal(issuer: LocalIssuer) -> None:
    found = issuers(issuer).principal(issuer.token("k1"))
    assert found == Principal("oidc:ci:repo:acme/model:ref:refs/heads/main", frozenset({"oidc:ci"}))


def test_rsa_beside_ec(issuer: LocalIssuer) -> None:
    issuer.new_key("rsa", "RSA")
    for kid in ("k1", "rsa"):
        assert issuers(issuer).principal(issuer.token(kid))


@pytest.mark.parametrize(
    "changes",
    [{"aud": "elsewhere"}, {"aud": None}, {"iss": "http://127.0.0.1:9"}, {"iss": None}, {"exp": int(time.time()) - 60},
     {"exp": None}, {"nbf": int(time.time()) + 10**6}, {"sub": None}, {"sub": ""}, {"sub": "a\nb"}, {"owner": "acme2"},
     {"owner": None}, {"owner": 1}, {"owner": {"acme": 1}}, {"owner": True}],
)  # fmt: skip
def test_claims(issuer: LocalIssuer, changes: dict[str, Any]) -> None:
    with pytest.raises(Unauthorized):
        issuers(issuer).principal(issuer.token("k1", **changes))


def test_claims_that_are_lists_or_patterns(issuer: LocalIssuer) -> None:
    """Each claim must match one of its patterns; a claim with several values, by one of them."""
    found = issuers(issuer, claims={"owner": ("x", "ac*"), "groups": ("admins",)})
    assert found.principal(issuer.token("k1", groups=["users", "admins"]))
    with pytest.raises(Unauthorized, match="groups"):
        found.principal(issuer.token("k1", groups=["users"]))


def test_keys_come_from_the_issuer_alone(issuer: LocalIssuer) -> None:
    """Not from the token's header, whatever it says; and no algorithm is taken that is not configured."""
    mine = ec.generate_private_key(ec.SECP256R1())
    issuer.keys["k1"], theirs = mine, issuer.keys["k1"]
    public = jwk("k1", mine)
    forged = [
        issuer.token("k1", {"jwk": public}),
        issuer.token("k1", {"jku": f"{issuer.url}/keys"}),
        issuer.token("k1"),
    ]
    good = {"iss": issuer.url, "aud": "test-registry", "sub": "x", "owner": "acme", "exp": int(time.time()) + 60}
    forged += [jwt.encode(good, None, algorithm="none"), jwt.encode(good, "s" * 64, algorithm="HS256")]
    issuer.keys["k1"] = theirs
    found = issuers(issuer)
    for token in forged:
        with pytest.raises(Unauthorized):
            found.principal(token)
    with pytest.raises(Unauthorized, match="signed in a way"):
        issuers(issuer, algorithms=("RS256",)).principal(issuer.token("k1"))


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "\ud800", "x" * 20_000])
def test_rubbish(issuer: LocalIssuer, token: str) -> None:
    with pytest.raises(Unauthorized):
        issuers(issuer).principal(token)
    assert issuer.asked == []


def test_nobody_else_is_asked(issuer: LocalIssuer) -> None:
    """A discovery document cannot send us elsewhere; what the configuration states can."""
    with local_issuer() as other:
        issuer.document = {"jwks_uri": f"{other.url}/keys"}
        with pytest.raises(Unreachable, match="jwks-url"):
            issuers(issuer).principal(issuer.token("k1"))
        assert other.asked == []
        other.keys = issuer.keys
        assert issuers(issuer, jwks_url=f"{other.url}/keys").principal(issuer.token("k1"))
    issuer.document = {"issuer": "http://127.0.0.1:9"}
    with pytest.raises(Unreachable):
        issuers(issuer).principal(issuer.token("k1"))


def test_keys_are_kept_and_asked_for_seldom(issuer: LocalIssuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for many tokens; an unknown key makes us ask again, but not for every token that names one."""
    found = issuers(issuer)
    for _ in range(5):
        found.principal(issuer.token("k1"))
    assert len(issuer.asked) == 2
    issuer.new_key("k2")
    for _ in range(5):
        with pytest.raises(Unauthorized):
            found.principal(issuer.token("k2"))
    assert len(issuer.asked) == 2
    later = time.monotonic() + 31
    monkeypatch.setattr(oidc.time, "monotonic", lambda: later)
    assert found.principal(issuer.token("k2"))
    assert len(issuer.asked) == 4


def test_an_issuer_that_fails(issuer: LocalIssuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that are known and fresh go on being good; old ones do not."""
    found = issuers(issuer)
    found.principal(issuer.token("k1"))
    issuer.broken = True
    assert found.principal(issuer.token("k1"))
    later = time.monotonic() + 3601
    monkeypatch.setattr(oidc.time, "monotonic", lambda: later)
    with pytest.raises(Unreachable):
        found.principal(issuer.token("k1"))
    with pytest.raises(Unreachable):
        issuers(issuer).principal(issuer.token("k1"))


@pytest.mark.parametrize("service", [TOKEN, ""])
def test_a_job_pushes_without_a_stored_password(
    registry_server: StartRegistry, tmp_path: Path, issuer: LocalIssuer, service: str
) -> None:
    """As the password of the user oidc, as a bearer, and by the grant of RFC 7523."""
    rules = f"""
[[oidc]]
name = "ci"
issuer = "{issuer.url}"
audience = "test-registry"
claims = {{ owner = "acme" }}

[[access]]
principals = ["oidc:ci:repo:acme/model:ref:refs/heads/main"]
repositories = ["acme/**"]
rights = ["push"]

[[access]]
principals = ["oidc:ci"]
repositories = ["acme/**"]
rights = ["pull"]
"""
    server = registry_server(tmp_path / "s", "--config", str(configure(tmp_path, AUTH + service + rules + RULES)))
    with client(server.url, "oidc", issuer.token("k1")) as job:
        push_image(job, "acme/direct")
    if not service:
        return
    scope = "repository:acme/model:pull,push"
    token = fetch_token(server.url, scope, user="oidc", password=issuer.token("k1"))
    with bearer(server.url, token) as job:
        push_image(job, "acme/model")
        assert job.post("/v2/team/x/blobs/uploads/").status_code == 403
    with bearer(server.url, issuer.token("k1")) as job:
        assert claims(job.get("/token", params={"scope": scope}).json()["token"])["sub"].startswith("oidc:ci:")
        assert job.get("/v2/").status_code == 401  # an OIDC token is no registry token
    form = {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "scope": scope}
    with client(server.url) as job:
        answer = job.post("/token", data={**form, "assertion": issuer.token("k1", sub="repo:acme/other")})
        assert answer.json()["scope"] == "repository:acme/model:pull"
        assert job.post("/token", data={**form, "assertion": issuer.token("k1", owner="evil")}).status_code == 401
        assert job.post("/token", data={**form, "assertion": token}).status_code == 401
