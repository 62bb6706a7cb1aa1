"""What Harbor's ``docker-registry`` adapter sends, with ours as source and as target; and Artifactory's listing.

Facts from Harbor's ``src/pkg/registry/client.go`` (its six Accept types, each a header of its own, catalog and tags by
Link, chunked copies with a last chunk by PUT) and ``src/pkg/registry/auth/bearer`` (scopes by path and method).
"""

from __future__ import annotations

import hashlib
import re
import secrets
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import httpx
import pytest

from artifact.progress import Quiet
from artifact.reference import referrers_tag
from artifact.remote import RemoteRepository
from artifact.remote.credentials import Credentials
from artifact.transfer import copy_artifact
from supplychain.evidence import signature_tag
from tests.peers.mirrored import Model
from tests.registry.pushing import push_image
from tests.registry.secured import AUTH, PASSWORDS, RULES, TOKEN, configure
from tests.registry.servers import RunningRegistry, StartRegistry

pytestmark = pytest.mark.peer

ACCEPTS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
    "application/vnd.docker.distribution.manifest.v1+json",
)
INDEXES = ACCEPTS[:2]
_ACTIONS = {"GET": "pull", "HEAD": "pull", "POST": "pull,push", "PUT": "pull,push", "PATCH": "pull,push", "DELETE": "*"}
_LINK = re.compile(r'<([^>]+)>;\s*rel="next"')


class Harbor:
    """The adapter, for one registry."""

    def __init__(self, url: str, user: str | None = None, token_field: str = "token") -> None:
        self.url, self.user, self.token_field = url, user, token_field
        self.http = httpx.Client(timeout=60)
        challenge = self.http.get(f"{url}/v2/").headers.get("www-authenticate", "")
        self.scheme = challenge.partition(" ")[0].lower()
        self.challenge = dict(re.findall(r'(\w+)="([^"]*)"', challenge))

    def close(self) -> None:
        self.http.close()

    def send(self, method: str, url: str, headers: list[tuple[str, str]] | None = None, **more) -> httpx.Response:
        headers = [("User-Agent", "harbor-registry-client"), *(headers or [])]
        if self.scheme == "bearer":
            headers.append(("Authorization", f"Bearer {self.token(method, url)}"))
        elif self.scheme == "basic":
            more["auth"] = (self.user, PASSWORDS[self.user or ""])
        del self.http.headers["accept-encoding"], self.http.headers["accept"]
        try:
            answer = self.http.request(method, url, headers=headers, **more)
        finally:
            self.http.headers.update({"accept": "*/*", "accept-encoding": "identity"})
        return answer

    def token(self, method: str, url: str) -> str:
        query = [("service", self.challenge["service"]), *(("scope", scope) for scope in scopes(method, url))]
        auth = (self.user, PASSWORDS[self.user]) if self.user else None
        answer = self.http.get(f"{self.challenge['realm']}?{urlencode(query)}", auth=auth)
        assert answer.status_code == 200, answer.text
        return answer.json()[self.token_field]

    def pages(self, path: str, key: str, accept: str | None = None) -> list[str]:
        found: list[str] = []
        url = f"{self.url}{path}"
        while url:
            answer = self.send("GET", url, [("Accept", accept)] if accept else None)
            assert answer.status_code == 200, answer.text
            found += answer.json()[key] or []
            link = _LINK.search(answer.headers.get("link", ""))
            url = "" if link is None else link[1] if "://" in link[1] else f"{self.url}{link[1]}"
        return found

    def catalog(self) -> list[str]:
        return self.pages("/v2/_catalog?n=1000", "repositories")

    def tags(self, repo: str) -> list[str]:
        return self.pages(f"/v2/{repo}/tags/list", "tags")

    def manifest(self, method: str, repo: str, reference: str) -> httpx.Response:
        return self.send(method, f"{self.url}/v2/{repo}/manifests/{reference}", [("Accept", kind) for kind in ACCEPTS])

    def has_blob(self, repo: str, digest: str) -> bool:
        return self.send("HEAD", f"{self.url}/v2/{repo}/blobs/{digest}").status_code == 200

    def pull(self, repo: str, digest: str, part: tuple[int, int] | None = None) -> bytes:
        headers = [("Accept-Encoding", "identity")]
        if part is not None:
            headers.append(("Range", f"bytes={part[0]}-{part[1]}"))
        answer = self.send("GET", f"{self.url}/v2/{repo}/blobs/{digest}", headers, follow_redirects=True)
        assert answer.status_code == (206 if part else 200) and "content-encoding" not in answer.headers
        assert int(answer.headers["content-length"]) == len(answer.content)
        return answer.content

    def upload(self, repo: str) -> str:
        answer = self.send("POST", f"{self.url}/v2/{repo}/blobs/uploads/", [("Content-Length", "0")])
        assert answer.status_code == 202 and answer.headers["docker-upload-uuid"]
        return answer.headers["location"]

    def absolute(self, location: str, digest: str | None) -> str:
        parts = urlsplit(location if "://" in location else f"{self.url}{location}")
        query = dict(parse_qsl(parts.query)) | ({"digest": digest} if digest else {})
        return urlunsplit(parts._replace(query=urlencode(query)))

    def push(self, repo: str, digest: str, data: bytes) -> None:
        answer = self.send("PUT", self.absolute(self.upload(repo), digest), content=data)
        assert answer.status_code == 201, answer.text

    def push_chunk(self, repo: str, digest: str, data: bytes, start: int, end: int, location: str) -> httpx.Response:
        """One chunk; the last one closes the upload."""
        last = end == len(data) - 1
        url = self.absolute(self.upload(repo) if start == 0 else location, digest if last else None)
        headers = [("Content-Range", f"{start}-{end}")]
        self.last_url = url
        return self.send("PUT" if last else "PATCH", url, headers, content=data[start : end + 1])

    def copy(self, source: Harbor, repo: str, reference: str, chunk: int = 0) -> None:
        """Replicate one artifact into this registry: manifest, its parts, its members."""
        pulled = source.manifest("GET", repo, reference)
        assert pulled.status_code == 200
        kind, digest = pulled.headers["content-type"], pulled.headers["docker-content-digest"]
        there = self.manifest("HEAD", repo, reference)
        if there.status_code == 200 and there.headers["docker-content-digest"] == digest:
            return
        document = pulled.json()
        if kind in INDEXES:
            for member in document["manifests"]:
                self.copy(source, repo, member["digest"], chunk)
        else:
            for item in (document["config"], *document["layers"]):
                if not self.has_blob(repo, item["digest"]):
                    self._copy_blob(source, repo, item["digest"], item["size"], chunk)
        url = f"{self.url}/v2/{repo}/manifests/{reference}"
        answer = self.send("PUT", url, [("Content-Type", kind)], content=pulled.content)
        assert answer.status_code == 201 and answer.headers["docker-content-digest"] == digest, answer.text

    def _copy_blob(self, source: Harbor, repo: str, digest: str, size: int, chunk: int) -> None:
        if not chunk or size <= chunk:
            self.push(repo, digest, source.pull(repo, digest))
            return
        data, location = b"", ""
        for start in range(0, size, chunk):
            end = min(start + chunk, size) - 1
            data += source.pull(repo, digest, (start, end))
            answer = self.push_chunk(repo, digest, data + bytes(size - len(data)), start, end, location)
            assert answer.status_code == (201 if end == size - 1 else 202), answer.text
            location = answer.headers["location"]


def scopes(method: str, url: str) -> list[str]:
    parts = urlsplit(url)
    path = parts.path.rstrip("/")
    if path == "/v2/_catalog":
        return ["registry:catalog:*"]
    found = re.fullmatch(r"/v2/(.+?)/(?:manifests/.+|blobs/.+|tags/list)", path)
    if found is None:
        return []
    mount = dict(parse_qsl(parts.query)).get("from")
    return [*([f"repository:{mount}:pull"] if mount else []), f"repository:{found[1]}:{_ACTIONS[method]}"]


@pytest.fixture(scope="module")
def secured(session_registries: StartRegistry, tmp_path_factory: pytest.TempPathFactory) -> RunningRegistry:
    """Ours, with tokens, and referrers listed under tags."""
    folder = tmp_path_factory.mktemp("harbor")
    config = configure(folder, AUTH + TOKEN + RULES + "[referrers]\nfallback-tags = true\n")
    return session_registries(folder / "secured", "--config", str(config))


@pytest.fixture
def harbor(secured: RunningRegistry):
    client = Harbor(secured.url, "alice")
    yield client
    client.close()


def as_alice(server: RunningRegistry, name: str, folder: Path) -> RemoteRepository:
    login = {"auths": {server.host: {"username": "alice", "password": PASSWORDS["alice"]}}}
    return RemoteRepository(server.host, name, credentials=Credentials(folder / "config.json", login))


@pytest.mark.parametrize("chunk", [0, 20_000], ids=["whole", "chunks"])
def test_a_model_goes_from_ours_to_another_and_back(
    model: Model, harbor: Harbor, docker_registry: str, secured: RunningRegistry, registry_server: StartRegistry,
    tmp_path: Path, chunk: int,
) -> None:  # fmt: skip
    """Tag by tag, as Harbor does it: the fallback tag brings along what only the referrers API lists."""
    ours = as_alice(secured, model.name, tmp_path)
    copy_artifact(model.repository, ours, model.descriptor.digest, tag=model.tag, progress=Quiet(), referrers=True)
    ours.delete_tag(signature_tag(model.descriptor.digest))  # the bundle alone shall do
    assert model.name in harbor.catalog()
    listing = referrers_tag(model.descriptor.digest)
    assert harbor.tags(model.name) == [model.tag, listing]
    other = Harbor(f"http://{docker_registry}")
    last_server = registry_server(tmp_path / "last")
    last = Harbor(last_server.url)
    try:
        for tag in harbor.tags(model.name):
            other.copy(harbor, model.name, tag, chunk)
        for tag in other.tags(model.name):
            last.copy(other, model.name, tag, chunk)
    finally:
        other.close()
        last.close()
    model.assert_trusted(RemoteRepository(docker_registry, model.name))
    back = RemoteRepository(last_server.host, model.name)
    model.assert_trusted(back)
    assert [item.digest for item in back.referrers(model.descriptor.digest)] == [
        item.digest for item in ours.referrers(model.descriptor.digest)
    ]


def test_catalog_and_tags_by_their_links(harbor: Harbor, secured: RunningRegistry) -> None:
    with httpx.Client(base_url=secured.url, auth=("alice", PASSWORDS["alice"])) as client:
        for number in range(5):
            push_image(client, f"many/r{number}", "v1")
            push_image(client, "many/r0", f"t{number}", bytes([number]))
    listed = harbor.pages("/v2/_catalog?n=2", "repositories")
    assert [name for name in listed if name.startswith("many/")] == [f"many/r{number}" for number in range(5)]
    assert harbor.pages("/v2/many/r0/tags/list?n=2", "tags") == ["t0", "t1", "t2", "t3", "t4", "v1"]
    # Artifactory sends the Accept header of a manifest with a tag listing.
    for accept in ACCEPTS:
        assert len(harbor.pages("/v2/many/r0/tags/list", "tags", accept)) == 6


def test_the_token_under_its_other_name_and_basic_logins(
    harbor: Harbor, secured: RunningRegistry, registry_server: StartRegistry, tmp_path: Path
) -> None:
    azure = Harbor(secured.url, "alice", token_field="access_token")
    assert azure.catalog() == harbor.catalog()
    azure.close()
    (tmp_path / "basic").mkdir()
    server = registry_server(tmp_path / "basic/s", "--config", str(configure(tmp_path / "basic")))
    basic = Harbor(server.url, "alice")
    assert basic.scheme == "basic" and basic.catalog() == []
    basic.push("team/x", f"sha256:{hashlib.sha256(b'x').hexdigest()}", b"x")
    assert basic.has_blob("team/x", f"sha256:{hashlib.sha256(b'x').hexdigest()}")
    basic.close()


def test_the_scope_of_everything_deletes(harbor: Harbor, secured: RunningRegistry) -> None:
    with httpx.Client(base_url=secured.url, auth=("alice", PASSWORDS["alice"])) as client:
        push_image(client, "team/gone", "v1")
    digest = harbor.manifest("HEAD", "team/gone", "v1").headers["docker-content-digest"]
    answer = harbor.send("DELETE", f"{secured.url}/v2/team/gone/manifests/{digest}")
    assert answer.status_code == 202
    assert harbor.manifest("HEAD", "team/gone", "v1").status_code == 404
    reader = Harbor(secured.url, "reader")
    assert reader.send("DELETE", f"{secured.url}/v2/team/gone/manifests/{digest}").status_code in (401, 403)
    reader.close()


def test_a_mount_asks_for_both_repositories(harbor: Harbor, secured: RunningRegistry) -> None:
    digest = f"sha256:{hashlib.sha256(b'shared').hexdigest()}"
    harbor.push("team/one", digest, b"shared")
    url = f"{secured.url}/v2/team/two/blobs/uploads/?mount={digest}&from=team/one"
    answer = harbor.send("POST", url, [("Content-Length", "0")])
    assert answer.status_code == 201 and harbor.has_blob("team/two", digest)


def test_a_chunk_that_failed_is_recovered_by_asking(harbor: Harbor) -> None:
    """On any failure the adapter asks the upload, at the URL it sent to, for its new place and end."""
    data = secrets.token_bytes(50_000)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    first = harbor.push_chunk("team/c", digest, data, 0, 19_999, "")
    assert first.status_code == 202
    wrong = harbor.push_chunk("team/c", digest, data, 30_000, 39_999, first.headers["location"])
    assert wrong.status_code == 416
    status = harbor.send("GET", harbor.last_url)
    assert status.status_code == 204
    start, end = map(int, status.headers["range"].split("-"))
    assert (start, end) == (0, 19_999)
    early = harbor.push_chunk("team/c", digest, data, 40_000, 49_999, status.headers["location"])
    assert early.status_code == 416  # the last chunk, out of order
    status = harbor.send("GET", harbor.last_url)
    last = harbor.push_chunk("team/c", digest, data, 20_000, 49_999, status.headers["location"])
    assert last.status_code == 201, last.text
    assert harbor.pull("team/c", digest) == data


def test_the_fallback_tag_follows_what_comes_and_goes(harbor: Harbor, secured: RunningRegistry) -> None:
    with httpx.Client(base_url=secured.url, auth=("alice", PASSWORDS["alice"])) as client:
        subject = push_image(client, "team/f", "v1")
        about = {
            "mediaType": ACCEPTS[2], "digest": f"sha256:{hashlib.sha256(subject).hexdigest()}", "size": len(subject),
        }  # fmt: skip
        notes = [push_image(client, "team/f", None, note, subject=about) for note in (b"one", b"two")]
        tag = about["digest"].replace(":", "-")
        digests = {f"sha256:{hashlib.sha256(raw).hexdigest()}" for raw in notes}
        listed = harbor.manifest("GET", "team/f", tag)
        assert listed.headers["content-type"] == ACCEPTS[0]
        assert {item["digest"] for item in listed.json()["manifests"]} == digests
        gone = digests.pop()
        assert client.delete(f"/v2/team/f/manifests/{gone}").status_code == 202
        listed = harbor.manifest("GET", "team/f", tag)
        assert {item["digest"] for item in listed.json()["manifests"]} == digests
        assert {
            item["digest"] for item in client.get(f"/v2/team/f/referrers/{about['digest']}").json()["manifests"]
        } == digests


def test_ours_keeps_no_such_tag_unless_told_to(registry_server: StartRegistry, tmp_path: Path) -> None:
    server = registry_server(tmp_path / "plain")
    with httpx.Client(base_url=server.url) as client:
        subject = push_image(client, "team/f", "v1")
        about = {
            "mediaType": ACCEPTS[2],
            "digest": f"sha256:{hashlib.sha256(subject).hexdigest()}",
            "size": len(subject),
        }
        push_image(client, "team/f", None, b"note", subject=about)
        assert client.get("/v2/team/f/tags/list").json()["tags"] == ["v1"]
