"""Four rights, none of which implies another, on the repositories a rule names and no others."""

from __future__ import annotations

import secrets

import pytest

from tests.registry.pushing import (
    MANIFEST,
    begin,
    error_code,
    manifest_of,
    push_blob,
    push_image,
    put_manifest,
    sha256,
)
from tests.registry.secured import bearer, client, fetch_token
from tests.registry.servers import RunningRegistry


@pytest.fixture
def team() -> str:
    return f"team/{secrets.token_hex(6)}"


READS = [
    ("GET", "manifests/v1"),
    ("HEAD", "manifests/v1"),
    ("GET", "tags/list"),
    ("GET", "referrers/" + sha256(b"")),
    ("GET", "blobs/" + sha256(b"team layer")),
    ("HEAD", "blobs/" + sha256(b"team layer")),
]


@pytest.mark.parametrize(("method", "path"), READS)
def test_pull(guarded: RunningRegistry, method: str, path: str) -> None:
    """A reader reads; who has another right, or rights elsewhere, or says nothing, does not."""
    expected = {"reader": 200, "bob": 200, "alice": 200, "remover": 403, "carol": 403, None: 401}
    for user, wanted in expected.items():
        with client(guarded.url, user) as caller:
            assert caller.request(method, f"/v2/team/model/{path}").status_code == wanted, user


def test_nothing_is_told_of_what_may_not_be_read(guarded: RunningRegistry) -> None:
    """The same answer whether repository, tag or blob exist or not."""
    for user in ("carol", None):
        with client(guarded.url, user) as caller:
            for path in ("manifests/v1", "blobs/" + sha256(b"team layer"), "tags/list"):
                there = caller.get(f"/v2/team/model/{path}")
                not_there = caller.get(f"/v2/team/absent/{path}")
                assert there.status_code == not_there.status_code
                assert there.text.replace("team/model", "X") == not_there.text.replace("team/absent", "X")


def test_push(guarded: RunningRegistry, team: str) -> None:
    with client(guarded.url, "bob") as bob:
        push_image(bob, team)
    for user, wanted in {"reader": 403, "remover": 403, "carol": 403, None: 401}.items():
        with client(guarded.url, user) as caller:
            assert caller.post(f"/v2/{team}/blobs/uploads/").status_code == wanted
            answer = put_manifest(caller, team, manifest_of([b"layer"]), "v2")
            assert answer.status_code == wanted
    with client(guarded.url, "bob") as bob:
        assert bob.post("/v2/carol/model/blobs/uploads/").status_code == 403
        assert bob.get(f"/v2/{team}/tags/list").json()["tags"] == ["v1"]


def test_overwrite_is_not_push(guarded: RunningRegistry, team: str) -> None:
    """Who may create may not move a tag, by either way of naming it; the same digest again is fine."""
    with client(guarded.url, "bob") as bob:
        first = push_image(bob, team, layer=b"one")
        assert put_manifest(bob, team, first, "v1").status_code == 201
        push_blob(bob, team, b"two")
        second = manifest_of([b"two"])
        for answer in (
            put_manifest(bob, team, second, "v1"),
            put_manifest(bob, team, second, sha256(second), tag=["new", "v1"]),
        ):
            assert (answer.status_code, error_code(answer)) == (403, "DENIED")
        assert bob.get(f"/v2/{team}/manifests/v1").content == first
        assert bob.get(f"/v2/{team}/tags/list").json()["tags"] == ["v1"]
        assert bob.head(f"/v2/{team}/manifests/{sha256(second)}").status_code == 404
        assert put_manifest(bob, team, second, "v2").status_code == 201
    with client(guarded.url, "alice") as alice:
        assert put_manifest(alice, team, second, "v1").status_code == 201


def test_the_type_of_a_manifest_is_not_overwritten(guarded: RunningRegistry, team: str) -> None:
    """The digest stays; what it is served as would not."""
    docker = "application/vnd.docker.distribution.manifest.v2+json"
    with client(guarded.url, "bob") as bob:
        push_blob(bob, team, b"{}")
        push_blob(bob, team, b"layer")
        raw = manifest_of([b"layer"]).replace(f'"mediaType": "{MANIFEST}", '.encode(), b"", 1)
        assert put_manifest(bob, team, raw, "v1").status_code == 201
        assert put_manifest(bob, team, raw, "v2", docker).status_code == 403
        assert bob.get(f"/v2/{team}/manifests/v1").headers["content-type"] == MANIFEST


def test_delete(guarded: RunningRegistry, team: str) -> None:
    with client(guarded.url, "bob") as bob:
        raw = push_image(bob, team, layer=b"to be deleted")
        for path in ("manifests/v1", f"manifests/{sha256(raw)}", f"blobs/{sha256(b'to be deleted')}"):
            answer = bob.delete(f"/v2/{team}/{path}")
            assert (answer.status_code, error_code(answer)) == (403, "DENIED")
    with client(guarded.url, "remover") as remover:
        assert remover.delete(f"/v2/{team}/manifests/v1").status_code == 202
        assert remover.delete(f"/v2/{team}/manifests/{sha256(raw)}").status_code == 202
        assert remover.delete(f"/v2/{team}/blobs/{sha256(b'to be deleted')}").status_code == 202
        assert remover.delete("/v2/carol/x/manifests/v1").status_code == 403


def test_catalog_shows_what_may_be_read(guarded: RunningRegistry) -> None:
    with client(guarded.url, "carol") as carol:
        push_image(carol, "carol/own")
    shown = {}
    for user in ("alice", "reader", "carol", "remover", None):
        with client(guarded.url, user) as caller:
            names = []
            path = "/v2/_catalog?n=1"
            while path:
                answer = caller.get(path)
                assert answer.status_code == 200
                names += answer.json()["repositories"]
                path = answer.headers.get("link", "").partition(">")[0].removeprefix("<")
            shown[user] = set(names)
    assert {"team/model", "public/model", "carol/own"} <= shown["alice"]
    assert shown["carol"] == {"carol/own"}
    assert "team/model" in shown["reader"]
    assert all(name.startswith("team/") for name in shown["reader"])
    assert shown["remover"] == set()
    assert shown[None] == {"public/model"}


def test_anonymous_reads_what_is_public_and_no_more(guarded: RunningRegistry) -> None:
    with client(guarded.url) as anyone:
        assert anyone.get("/v2/public/model/manifests/v1").status_code == 200
        assert anyone.get("/v2/team/model/manifests/v1").status_code == 401
        assert anyone.post("/v2/public/model/blobs/uploads/").status_code == 401
        assert anyone.delete("/v2/public/model/manifests/v1").status_code == 401


def test_bad_credentials_are_not_anonymous(guarded: RunningRegistry) -> None:
    """Whoever says who they are and cannot show it is refused even what everybody may read."""
    for user, password in (("alice", "wrong"), ("nobody", "x"), ("anonymous", ""), ("", ""), ("robot+x", "y")):
        with client(guarded.url, user, password) as caller:
            assert caller.get("/v2/public/model/manifests/v1").status_code == 401
    for header in ("Basic !!!", "Basic", "Bearer", "Bearer x.y.z", "Digest a=b", "Basic " + "A" * 40000):
        answer = client(guarded.url).get("/v2/public/model/manifests/v1", headers={"Authorization": header})
        assert answer.status_code in (400, 401, 431)
    twice = [("Authorization", "Bearer a"), ("Authorization", "Basic b")]
    assert client(guarded.url).get("/v2/public/model/tags/list", headers=twice).status_code == 401


def test_base_asks_for_a_login(guarded: RunningRegistry) -> None:
    """GET /v2/ is how clients find out whether their login is good."""
    with client(guarded.url) as anyone:
        answer = anyone.get("/v2/")
    assert (answer.status_code, error_code(answer)) == (401, "UNAUTHORIZED")
    assert answer.headers["www-authenticate"].split()[0] in ("Basic", "Bearer")
    with client(guarded.url, "reader") as reader:
        assert reader.get("/v2/").status_code == 200


def test_uploads_belong_to_one_principal(guarded: RunningRegistry, team: str) -> None:
    with client(guarded.url, "bob") as bob, client(guarded.url, "alice") as alice:
        location = begin(bob, team)
        assert bob.patch(location, content=b"mine").status_code == 202
        for method in ("GET", "PATCH", "PUT", "DELETE"):
            answer = alice.request(method, f"{location}?digest={sha256(b'mine')}")
            assert (answer.status_code, error_code(answer)) == (404, "BLOB_UPLOAD_UNKNOWN")
        assert bob.put(f"{location}?digest={sha256(b'mine')}").status_code == 201


class TestMount:
    def test_from_a_repository_that_may_be_read(self, guarded: RunningRegistry, team: str) -> None:
        query = {"mount": sha256(b"team layer"), "from": "team/model"}
        with client(guarded.url, "bob") as bob:
            assert bob.post(f"/v2/{team}/blobs/uploads/", params=query).status_code == 201

    def test_not_from_one_that_may_not(self, guarded: RunningRegistry) -> None:
        """202 and an upload, as if the blob were not there."""
        digest = sha256(b"team layer")
        with client(guarded.url, "carol") as carol:
            for query in ({"mount": digest, "from": "team/model"}, {"mount": digest}):
                assert carol.post("/v2/carol/own/blobs/uploads/", params=query).status_code == 202
            assert carol.head(f"/v2/carol/own/blobs/{digest}").status_code == 404

    def test_without_from_only_who_may_read_everything(self, guarded: RunningRegistry, team: str) -> None:
        digest = sha256(b"team layer")
        with client(guarded.url, "alice") as alice:
            assert alice.post(f"/v2/{team}/blobs/uploads/", params={"mount": digest}).status_code == 201

    def test_a_token_without_pull_on_the_origin(self, by_token: RunningRegistry, team: str) -> None:
        """The token bounds what its holder may do elsewhere."""
        with client(by_token.url, "alice") as alice:
            push_blob(alice, "team/origin", b"origin")
        token = fetch_token(by_token.url, f"repository:{team}:pull,push", user="bob")
        query = {"mount": sha256(b"origin"), "from": "team/origin"}
        with bearer(by_token.url, token) as caller:
            assert caller.post(f"/v2/{team}/blobs/uploads/", params=query).status_code == 202
        token = fetch_token(by_token.url, f"repository:{team}:pull,push", "repository:team/origin:pull", user="bob")
        with bearer(by_token.url, token) as caller:
            assert caller.post(f"/v2/{team}/blobs/uploads/", params=query).status_code == 201
