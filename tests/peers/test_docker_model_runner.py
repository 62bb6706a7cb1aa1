"""What ``docker model pull`` asks of a registry, request by request, in both generations of its client.

Facts from Docker Model Runner's ``pkg/distribution/registry`` (the older one, on go-containerregistry) and
``pkg/distribution/oci/remote`` (the newer one, on containerd's resolver and fetcher, with resumed layers).
"""

from __future__ import annotations

import hashlib
from typing import Any

import httpx
import pytest

from tests.peers.mirrored import Model

pytestmark = pytest.mark.peer

OCI = "application/vnd.oci.image.manifest.v1+json"
GO_CONTAINERREGISTRY = (
    "application/vnd.docker.distribution.manifest.v2+json,application/vnd.oci.image.manifest.v1+json,"
    "application/vnd.docker.distribution.manifest.list.v2+json,application/vnd.oci.image.index.v1+json"
)
CONTAINERD = (
    "application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json, "
    "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, */*"
)
ENCODINGS = {"Accept-Encoding": "zstd;q=1.0, gzip;q=0.8, deflate;q=0.5"}


def check_model(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """What the runner needs in order to load it, and every descriptor in it."""
    assert manifest["mediaType"] == OCI
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    paths = [layer["annotations"]["org.cncf.model.filepath"] for layer in manifest["layers"]]
    assert len(paths) == len(set(paths)) and sum(path.endswith(".gguf") for path in paths) == 1
    assert all(layer["mediaType"].endswith(".raw") for layer in manifest["layers"])
    return [manifest["config"], *manifest["layers"]]


def test_the_older_client(model: Model) -> None:
    with httpx.Client(base_url=model.server.url, headers={"User-Agent": "model-distribution"}) as client:
        assert client.get("/v2/").status_code == 200
        answer = client.get(f"/v2/{model.name}/manifests/{model.tag}", headers={"Accept": GO_CONTAINERREGISTRY})
        assert answer.headers["content-type"] == OCI
        assert answer.headers["docker-content-digest"] == str(model.descriptor.digest)
        assert answer.content == model.manifest
        for item in check_model(answer.json()):
            blob = client.get(f"/v2/{model.name}/blobs/{item['digest']}", follow_redirects=True)
            assert blob.status_code == 200 and int(blob.headers["content-length"]) == item["size"]
            assert f"sha256:{hashlib.sha256(blob.content).hexdigest()}" == item["digest"]


def test_the_newer_client_with_an_interrupted_layer(model: Model) -> None:
    with httpx.Client(base_url=model.server.url, headers={"User-Agent": "model-runner"}) as client:
        path = f"/v2/{model.name}/manifests"
        head = client.head(f"{path}/{model.tag}", headers={"Accept": CONTAINERD})
        assert (head.status_code, head.headers["content-type"]) == (200, OCI)
        assert int(head.headers["content-length"]) == len(model.manifest)
        digest = head.headers["docker-content-digest"]
        assert digest == str(model.descriptor.digest)
        manifest = client.get(f"{path}/{digest}", headers={"Accept": f"{OCI}, */*", **ENCODINGS})
        assert manifest.content == model.manifest and "content-encoding" not in manifest.headers
        for item in check_model(manifest.json()):
            accept = {"Accept": f"{item['mediaType']}, */*", **ENCODINGS}
            begun, blob = item["size"] // 3, f"/v2/{model.name}/blobs/{item['digest']}"
            content = b""
            with client.stream("GET", blob, headers=accept) as answer:
                assert answer.status_code == 200 and "content-encoding" not in answer.headers
                for piece in answer.iter_raw(max(begun, 1)):
                    content += piece
                    break  # the connection breaks
            rest = client.get(blob, headers={**accept, "Range": f"bytes={len(content)}-"})
            if len(content) == item["size"]:
                continue
            assert rest.status_code == 206
            assert rest.headers["content-range"] == f"bytes {len(content)}-{item['size'] - 1}/{item['size']}"
            assert f"sha256:{hashlib.sha256(content + rest.content).hexdigest()}" == item["digest"]
