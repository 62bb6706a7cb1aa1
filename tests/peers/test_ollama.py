"""What ``ollama pull`` asks of a registry, request by request.

Facts from Ollama's ``server/images.go`` (pullModelManifest, makeRequestWithRetry) and ``server/download.go`` (Prepare,
run, downloadChunk); older releases read the Location of a plain 200, newer ones go back to the URL they asked.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest

from artifact import mediatypes
from artifact.manifest import Manifest
from artifact.progress import Quiet
from artifact.remote import RemoteRepository
from artifact.remote.credentials import Credentials
from artifact.transfer import copy_artifact
from tests.peers.mirrored import Model
from tests.registry.secured import AUTH, PASSWORDS, RULES, configure
from tests.registry.servers import RunningRegistry, StartRegistry

pytestmark = pytest.mark.peer

DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
OLLAMA = {"User-Agent": "ollama/0.12.0 (amd64 linux) Go/go1.24.1"}
PARTS = 16
LEAST_PART = 100_000_000


def pull_manifest(client: httpx.Client, name: str, tag: str) -> httpx.Response:
    answer = client.get(f"/v2/{name}/manifests/{tag}", headers={**OLLAMA, "Accept": DOCKER})
    assert answer.status_code == 200, answer.text
    return answer


def direct_url(client: httpx.Client, path: str) -> str:
    """Where the parts come from: the body is not read, the connection is given up."""
    with client.stream("GET", path, headers=OLLAMA) as answer:
        assert answer.status_code in (200, 307)
        return urljoin(str(answer.request.url), answer.headers["location"])


def pull_blob(client: httpx.Client, name: str, digest: str, least: int = LEAST_PART) -> bytes:
    path = f"/v2/{name}/blobs/{digest}"
    head = client.head(path, headers=OLLAMA)
    assert head.status_code == 200
    total = int(head.headers["content-length"])
    size = max(total // PARTS, least)
    url, content = direct_url(client, path), b""
    with httpx.Client(timeout=60) as plain:  # Go's default client: no Authorization, no User-Agent of Ollama's
        for start in range(0, total, size):
            stop = min(start + size, total)
            part = plain.get(url, headers={"Range": f"bytes={start}-{stop - 1}"})
            assert part.status_code == 206 and len(part.content) == stop - start
            content += part.content
    assert f"sha256:{hashlib.sha256(content).hexdigest()}" == digest
    return content


@pytest.mark.parametrize("least", [LEAST_PART, 10_000], ids=["one-part", "many-parts"])
def test_ollama_pull(model: Model, least: int) -> None:
    with httpx.Client(base_url=model.server.url, timeout=60) as client:
        answer = pull_manifest(client, model.name, model.tag)
        assert answer.headers["content-type"] == DOCKER
        manifest = answer.json()
        types = [layer["mediaType"] for layer in manifest["layers"]]
        assert types[0] == mediatypes.OLLAMA_MODEL
        contents = {
            item["digest"]: pull_blob(client, model.name, item["digest"], least)
            for item in [*manifest["layers"], manifest["config"]]
        }
    weights = manifest["layers"][0]["digest"]
    assert contents[weights].startswith(b"GGUF")
    # One copy of the weights serves both kinds of clients.
    assert weights in {str(layer.digest) for layer in Manifest.parse(model.manifest).layers}


@pytest.mark.s3
def test_ollama_pulls_from_s3_by_redirect(session_registries: StartRegistry, request: pytest.FixtureRequest) -> None:
    s3 = request.getfixturevalue("s3")
    server: RunningRegistry = session_registries(s3.storage(), env=s3.env)
    content = b"GGUF" + bytes(17 * 1024 * 1024)
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    with httpx.Client(base_url=server.url, timeout=60) as client:
        location = client.post("/v2/team/large/blobs/uploads/").headers["location"]
        assert client.put(location, params={"digest": digest}, content=content).status_code == 201
        assert not direct_url(client, f"/v2/team/large/blobs/{digest}").startswith(server.url)
        assert pull_blob(client, "team/large", digest, 4_000_000) == content


def test_a_public_model_of_a_registry_with_logins(
    model: Model,
    registry_server: StartRegistry,
    tmp_path: Path,
) -> None:
    """Ollama logs in nowhere but at its own registry: what it pulls is what `anonymous` may pull."""
    server = registry_server(tmp_path / "storage", "--config", str(configure(tmp_path, AUTH + RULES)))
    login = {"auths": {server.host: {"username": "alice", "password": PASSWORDS["alice"]}}}
    there = RemoteRepository(server.host, "public/model", credentials=Credentials(tmp_path / "config.json", login))
    for tag in (f"{model.tag}-ollama", model.tag):
        digest = model.repository.resolve(tag).digest
        copy_artifact(model.repository, there, digest, tag=tag, progress=Quiet())
    with httpx.Client(base_url=server.url, timeout=60) as client:
        manifest = pull_manifest(client, "public/model", model.tag).json()
        for item in [*manifest["layers"], manifest["config"]]:
            pull_blob(client, "public/model", item["digest"])
        assert client.get(f"/v2/team/x/manifests/{model.tag}", headers={"Accept": DOCKER}).status_code == 401


@pytest.mark.parametrize(
    ("accept", "ollama"),
    [
        ([DOCKER], True),
        ([f"{DOCKER};q=1"], True),
        ([f"{DOCKER}, application/vnd.docker.distribution.manifest.list.v2+json"], True),
        ([DOCKER, "application/vnd.docker.distribution.manifest.v1+prettyjws"], True),
        ([f"{DOCKER}, application/vnd.oci.image.manifest.v1+json"], False),
        ([DOCKER, "application/vnd.oci.image.index.v1+json"], False),
        ([f"{DOCKER}, */*"], False),
        (["*/*"], False),
        (["application/vnd.docker.distribution.manifest.list.v2+json"], False),
        ([""], False),
        ([], False),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_who_gets_which_manifest(model: Model, accept: list[str], ollama: bool, method: str) -> None:
    headers = [("Accept", value) for value in accept]
    with httpx.Client(base_url=model.server.url) as client:
        del client.headers["accept"]
        answer = client.request(method, f"/v2/{model.name}/manifests/{model.tag}", headers=headers)
        digest = answer.headers["docker-content-digest"]
        assert (answer.headers["content-type"] == DOCKER) is ollama
        assert (digest != str(model.descriptor.digest)) is ollama
        assert answer.headers["vary"] == "Accept"
        assert answer.headers["etag"] == f'"{digest}"'
        # What was negotiated is revalidated as itself.
        again = client.request(
            method, f"/v2/{model.name}/manifests/{model.tag}", headers=[*headers, ("If-None-Match", f'"{digest}"')]
        )
        assert (again.status_code, again.headers["vary"]) == (304, "Accept")
        if method == "GET":
            assert f"sha256:{hashlib.sha256(answer.content).hexdigest()}" == digest


def test_a_digest_is_answered_with_what_it_names(model: Model) -> None:
    answer = httpx.get(
        f"{model.server.url}/v2/{model.name}/manifests/{model.descriptor.digest}", headers={"Accept": DOCKER}
    )
    assert answer.content == model.manifest
    assert "vary" not in answer.headers


def test_a_model_that_was_not_packed_for_ollama_is_what_it_is(
    model: Model,
    registry_server: StartRegistry,
    tmp_path: Path,
) -> None:
    server = registry_server(tmp_path / "storage")
    there = RemoteRepository(server.host, "team/model")
    copy_artifact(model.repository, there, model.descriptor.digest, tag=model.tag, progress=Quiet())
    answer = httpx.get(f"{server.url}/v2/team/model/manifests/{model.tag}", headers={"Accept": DOCKER})
    assert answer.content == model.manifest
