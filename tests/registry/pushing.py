"""The shortest way to put things into a registry over plain HTTP."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import httpx

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
OCTETS = "application/octet-stream"


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def sha512(data: bytes) -> str:
    return f"sha512:{hashlib.sha512(data).hexdigest()}"


def descriptor(data: bytes, media_type: str = OCTETS, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": sha256(data), "size": len(data), **more}


def push_blob(client: httpx.Client, repo: str, data: bytes, digest: str | None = None) -> str:
    """POST then PUT; returns the digest."""
    digest = digest or sha256(data)
    location = begin(client, repo)
    answer = client.put(location, params={"digest": digest}, content=data)
    assert answer.status_code == 201, answer.text
    return digest


def begin(client: httpx.Client, repo: str, **query: str) -> str:
    """An upload's location."""
    answer = client.post(f"/v2/{repo}/blobs/uploads/", params=query)
    assert answer.status_code == 202, answer.text
    return answer.headers["location"]


def manifest_of(layers: list[bytes], config: bytes = b"{}", /, **more: Any) -> bytes:
    value = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(config, EMPTY),
        "layers": [descriptor(layer) for layer in layers],
        **more,
    }
    return json.dumps(value).encode()


def put_manifest(
    client: httpx.Client, repo: str, raw: bytes, reference: str | None = None, media_type: str = MANIFEST, **query: Any
) -> httpx.Response:
    return client.put(
        f"/v2/{repo}/manifests/{reference or sha256(raw)}",
        content=raw,
        headers={"Content-Type": media_type},
        params=query,
    )


def push_image(client: httpx.Client, repo: str, tag: str | None = "v1", layer: bytes = b"layer", **more: Any) -> bytes:
    """Blobs and a manifest; returns the manifest's bytes."""
    push_blob(client, repo, b"{}")
    push_blob(client, repo, layer)
    raw = manifest_of([layer], **more)
    answer = put_manifest(client, repo, raw, tag)
    assert answer.status_code == 201, answer.text
    return raw


def error_code(answer: httpx.Response) -> str:
    """The one error code of an error document, which must have the specification's shape."""
    body = answer.json()
    assert set(body) == {"errors"}
    assert all(item["message"] for item in body["errors"])
    return body["errors"][0]["code"]
