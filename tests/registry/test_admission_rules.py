"""The optional checks: layout, file names, and quarantine until a policy allows what a tag points at."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from artifact import mediatypes
from artifact.digest import Digest
from artifact.progress import Quiet
from artifact.remote import RemoteRepository
from packager.pack import Options, pack
from packager.source import open_source
from supplychain.keys import PrivateKey
from supplychain.sign import sign
from tests.checkpoints.tiny import write_tiny_llama
from tests.registry.conftest import Backend
from tests.registry.pushing import MANIFEST, error_code, push_blob, push_image, put_manifest, sha256
from tests.registry.secured import configure
from tests.registry.servers import RunningRegistry, StartRegistry
from tests.registry.test_admission import CONFIG, MODEL

ADMISSION = """
[admission]
layout = true
refuse = ["*.bin", "*.zip", "secrets/**"]
refuse-kinds = ["code", "unsafe-weights"]

[[admission.quarantine]]
tags = ["prod/**:*"]
policy = "policy.yaml"
"""
POLICY = """
version: 1
authorities:
  release: {key: release.pub}
rules:
  - match: ["**"]
    require: {any-of: [release]}
"""
CONFIG_BLOB = {"format": "gguf", "quantization": "Q4_K_M", "paramSize": "4B"}
WEIGHT = "application/vnd.cncf.model.weight.v1.raw"


@pytest.fixture(scope="module")
def keys() -> dict[str, PrivateKey]:
    return {name: PrivateKey.new() for name in ("release", "other")}


@pytest.fixture(scope="module")
def server(
    session_registries: StartRegistry, tmp_path_factory: pytest.TempPathFactory, keys: dict[str, PrivateKey]
) -> RunningRegistry:
    folder = tmp_path_factory.mktemp("admission")
    (folder / "policy.yaml").write_text(POLICY)
    (folder / "release.pub").write_bytes(keys["release"].public.pem)
    return session_registries(folder / "s", "--config", str(configure(folder, ADMISSION)))


@pytest.fixture
def client(server: RunningRegistry) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def model(client: httpx.Client, repo: str, layers: list[dict[str, Any]], **changes: Any) -> httpx.Response:
    """A ModelPack artifact with these layers, each of them a type and a file name."""
    built, blobs = [], []
    for number, layer in enumerate(layers):
        data = b"content %d" % number
        blobs.append(data)
        annotations = {mediatypes.FILEPATH: layer["path"]} if "path" in layer else {}
        annotations |= layer.get("annotations", {})
        built.append({"mediaType": layer.get("type", WEIGHT), "digest": sha256(data), "size": len(data),
                      "annotations": annotations})  # fmt: skip
    modelfs = {"type": "layers", "diffIds": [layer["digest"] for layer in built]}
    config = json.dumps({"descriptor": {}, "config": CONFIG_BLOB, "modelfs": modelfs}).encode()
    for blob in (*blobs, config):
        push_blob(client, repo, blob)
    manifest = {
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": MODEL,
        "config": {"mediaType": CONFIG, "digest": sha256(config), "size": len(config)}, "layers": built, **changes,
    }  # fmt: skip
    manifest = {name: value for name, value in manifest.items() if value is not None}
    return put_manifest(client, repo, json.dumps(manifest).encode(), "latest")


GGUF = {"path": "model.gguf"}
DOC = {"path": "docs/README.md", "type": "application/vnd.cncf.model.doc.v1.raw"}


def test_a_good_model(client: httpx.Client, repo: str) -> None:
    assert model(client, repo, [GGUF, DOC]).status_code == 201


@pytest.mark.parametrize("precision", ["F16", None])
def test_what_we_pack_is_admitted(server: RunningRegistry, repo: str, tmp_path: Path, precision: str | None) -> None:
    remote = RemoteRepository(server.host, repo)
    options = Options("gguf" if precision else "safetensors", precision)
    pack(open_source(str(write_tiny_llama(tmp_path / "checkpoint"))), remote, "latest", options, Quiet())
    assert remote.tags() == ["latest"]


@pytest.mark.parametrize(
    ("layers", "changes", "said"),
    [
        ([DOC], {}, "weights"),
        ([], {}, "weights"),
        ([{}], {}, "filepath"),
        ([{"path": "../model.gguf"}], {}, "unsafe"),
        ([{"path": "/model.gguf"}], {}, "unsafe"),
        ([GGUF, GGUF], {}, "two files"),
        ([GGUF, {"path": "MODEL.gguf"}], {}, "two files"),
        ([GGUF, {"path": "x", "type": "application/octet-stream"}], {}, "type"),
        ([GGUF], {"artifactType": None}, "artifactType"),
        ([GGUF, {"path": "weights.PKL"}], {}, "unsafe weights"),
        ([GGUF, {"path": "run.Sh"}], {}, "no code"),
        ([GGUF, {"path": "data.ZIP"}], {}, "refused"),
        ([GGUF, {"path": "deep/er/pytorch_model.bin"}], {}, "refused"),
        ([GGUF, {"path": "modeling.py", "type": "application/vnd.cncf.model.code.v1.raw"}], {}, "refused"),
        ([GGUF, {"path": "secrets/a/b"}], {}, "refused"),
        ([GGUF, {"path": "fine", "annotations": {mediatypes.TITLE: "evil.pkl"}}], {}, "refused"),
        ([GGUF, {"path": "all.tar", "type": "application/vnd.cncf.model.code.v1.tar"}], {}, "archive"),
    ],
)
def test_refused(
    client: httpx.Client, repo: str, layers: list[dict[str, Any]], changes: dict[str, Any], said: str
) -> None:
    answer = model(client, repo, layers, **changes)
    assert (answer.status_code, error_code(answer)) == (400, "MANIFEST_INVALID")
    assert said in answer.text
    assert client.get(f"/v2/{repo}/tags/list").json()["tags"] == []


def test_a_model_by_its_artifact_type_alone(client: httpx.Client, repo: str) -> None:
    """Calling the config something else does not get round the checks."""
    push_blob(client, repo, b"{}")
    push_blob(client, repo, b"x")
    layer = {"mediaType": WEIGHT, "digest": sha256(b"x"), "size": 1, "annotations": {mediatypes.FILEPATH: "x.pkl"}}
    config = {"mediaType": mediatypes.EMPTY, "digest": sha256(b"{}"), "size": 2}
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": MODEL, "config": config, "layers": [layer]}
    assert put_manifest(client, repo, json.dumps(manifest).encode(), "latest").status_code == 400


def test_images_are_none_of_its_business(client: httpx.Client, repo: str) -> None:
    push_image(client, repo, "latest")


class TestQuarantine:
    def test_until_it_is_signed(
        self, client: httpx.Client, server: RunningRegistry, keys: dict[str, PrivateKey]
    ) -> None:
        """By tag 403, GET and HEAD; by digest it can be read, signed by someone else it stays, then it is out."""
        raw = push_image(client, "prod/a", "v1")
        for method in ("GET", "HEAD"):
            assert client.request(method, "/v2/prod/a/manifests/v1").status_code == 403
        assert error_code(client.get("/v2/prod/a/manifests/v1")) == "DENIED"
        assert client.get(f"/v2/prod/a/manifests/{sha256(raw)}").content == raw
        remote = RemoteRepository(server.host, "prod/a")
        subject = remote.resolve(Digest.parse(sha256(raw)))
        sign(remote, subject, keys["other"])
        assert client.get("/v2/prod/a/manifests/v1").status_code == 403
        sign(remote, subject, keys["release"])
        assert client.get("/v2/prod/a/manifests/v1").content == raw
        assert client.head("/v2/prod/a/manifests/v1").status_code == 200

    def test_what_the_tag_is_moved_to(
        self, client: httpx.Client, server: RunningRegistry, keys: dict[str, PrivateKey]
    ) -> None:
        """A signature is for one digest: the tag is in quarantine again when it points at another."""
        raw = push_image(client, "prod/b", "v1", b"one")
        remote = RemoteRepository(server.host, "prod/b")
        sign(remote, remote.resolve(Digest.parse(sha256(raw))), keys["release"])
        assert client.get("/v2/prod/b/manifests/v1").status_code == 200
        push_image(client, "prod/b", "v1", b"two")
        assert client.get("/v2/prod/b/manifests/v1").status_code == 403

    def test_signed_and_unsigned_on_another_replica(
        self,
        backend: Backend,
        tmp_path: Path,
        registry_server: StartRegistry,
        keys: dict[str, PrivateKey],
    ) -> None:
        """Both see it with the next request: the signature that comes, the one that goes, and which form it has."""
        (tmp_path / "policy.yaml").write_text(POLICY)
        (tmp_path / "release.pub").write_bytes(keys["release"].public.pem)
        config = str(configure(tmp_path, ADMISSION))
        one, two = (registry_server(backend.storage, "--config", config, env=backend.env) for _ in range(2))

        def answers() -> set[int]:
            return {httpx.get(f"{server.url}/v2/prod/r/manifests/v1", timeout=60).status_code for server in (one, two)}

        with httpx.Client(base_url=one.url, timeout=60) as client:
            raw = push_image(client, "prod/r", "v1")
        assert answers() == {403}
        for _ in range(2):
            remote = RemoteRepository(one.host, "prod/r")
            sign(remote, remote.resolve(Digest.parse(sha256(raw))), keys["release"])
            assert answers() == {200}
            with httpx.Client(base_url=two.url, timeout=60) as client:
                for tag in client.get("/v2/prod/r/tags/list").json()["tags"]:
                    if tag != "v1":
                        assert client.delete(f"/v2/prod/r/manifests/{tag}").status_code == 202
                assert answers() == {200}, "there is the other form still"
                for item in client.get(f"/v2/prod/r/referrers/{sha256(raw)}").json()["manifests"]:
                    assert client.delete(f"/v2/prod/r/manifests/{item['digest']}").status_code == 202
            assert answers() == {403}

    def test_other_repositories(self, client: httpx.Client) -> None:
        push_image(client, "dev/a", "v1")
        assert client.get("/v2/dev/a/manifests/v1").status_code == 200
