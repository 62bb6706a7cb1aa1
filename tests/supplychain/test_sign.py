from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import InvalidInput, Malformed, NotFound
from artifact.layout import LayoutRepository
from artifact.manifest import Manifest
from artifact.progress import Quiet
from artifact.source import bytes_source
from supplychain.keys import PrivateKey
from supplychain.sign import sign

Push = Callable[..., Descriptor]
Keys = dict[str, PrivateKey]


def document(repository: LayoutRepository, reference: str | Digest) -> dict[str, Any]:
    value = json.loads(repository.manifest(reference)[1])
    assert isinstance(value, dict)
    return value


def signature_tag(subject: Descriptor) -> str:
    return f"sha256-{subject.digest.hex}.sig"


def test_the_bundle_form(repository: LayoutRepository, subject: Descriptor, keys: Keys) -> None:
    bundle_manifest, _ = sign(repository, subject, keys["release"])
    assert [item.digest for item in repository.referrers(subject.digest)] == [bundle_manifest.digest]
    manifest = document(repository, bundle_manifest.digest)
    bundle_type = "application/vnd.dev.sigstore.bundle.v0.3+json"
    assert manifest["artifactType"] == bundle_type
    assert manifest["config"]["mediaType"] == "application/vnd.oci.empty.v1+json"
    assert manifest["config"]["size"] == 2
    assert manifest["subject"] == {
        "mediaType": subject.media_type,
        "digest": str(subject.digest),
        "size": subject.size,
    }
    assert manifest["annotations"] == {
        "dev.sigstore.bundle.content": "dsse-envelope",
        "dev.sigstore.bundle.predicateType": "https://sigstore.dev/cosign/sign/v1",
        "org.opencontainers.image.created": "1970-01-01T00:00:00Z",
    }
    (layer,) = manifest["layers"]
    assert layer["mediaType"] == bundle_type
    bundle = json.loads(repository.read_blob(Descriptor.from_json(layer)))
    assert bundle["mediaType"] == bundle_type
    assert bundle["verificationMaterial"] == {"publicKey": {"hint": keys["release"].public.hint}}
    envelope = bundle["dsseEnvelope"]
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    payload = base64.b64decode(envelope["payload"])
    assert json.loads(payload) == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"digest": {"sha256": subject.digest.hex}}],
        "predicateType": "https://sigstore.dev/cosign/sign/v1",
        "predicate": {},
    }
    (signature,) = envelope["signatures"]
    signed = f"DSSEv1 28 application/vnd.in-toto+json {len(payload)} ".encode() + payload
    assert keys["release"].public.verify(base64.b64decode(signature["sig"]), signed)


def test_the_legacy_form(repository: LayoutRepository, subject: Descriptor, keys: Keys) -> None:
    sign(repository, subject, keys["release"])
    manifest = document(repository, signature_tag(subject))
    assert manifest["mediaType"] == mediatypes.IMAGE_MANIFEST
    assert manifest["config"]["mediaType"] == "application/vnd.oci.image.config.v1+json"
    (layer,) = manifest["layers"]
    assert layer["mediaType"] == "application/vnd.dev.cosign.simplesigning.v1+json"
    config = json.loads(repository.read_blob(Descriptor.from_json(manifest["config"])))
    assert config["rootfs"]["diff_ids"] == [layer["digest"]]
    payload = repository.read_blob(Descriptor.from_json(layer))
    assert payload.decode() == (
        '{"critical":{"identity":{"docker-reference":"registry.example/acme/model"},'
        f'"image":{{"docker-manifest-digest":"{subject.digest}"}},'
        '"type":"cosign container image signature"},"optional":null}'
    )


def test_openssl_verifies_the_legacy_signature(
    repository: LayoutRepository, subject: Descriptor, keys: Keys, tmp_path: Path
) -> None:
    sign(repository, subject, keys["release"])
    (layer,) = document(repository, signature_tag(subject))["layers"]
    (tmp_path / "payload").write_bytes(repository.read_blob(Descriptor.from_json(layer)))
    signature = base64.b64decode(layer["annotations"]["dev.cosignproject.cosign/signature"])
    (tmp_path / "signature").write_bytes(signature)
    command = ["openssl", "dgst", "-sha256", "-verify", "key.pub", "-signature", "signature", "payload"]
    for name, status in (("release", 0), ("stranger", 1)):
        (tmp_path / "key.pub").write_bytes(keys[name].public.pem)
        assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == status


def test_signing_again_changes_nothing(repository: LayoutRepository, subject: Descriptor, keys: Keys) -> None:
    first = sign(repository, subject, keys["release"])
    assert sign(repository, subject, keys["release"]) == first
    assert len(repository.referrers(subject.digest)) == 1
    assert len(document(repository, signature_tag(subject))["layers"]) == 1


def test_a_second_key_adds_and_replaces_nothing(repository: LayoutRepository, subject: Descriptor, keys: Keys) -> None:
    sign(repository, subject, keys["release"])
    before = document(repository, signature_tag(subject))["layers"]
    sign(repository, subject, keys["ops"])
    sign(repository, subject, keys["release"])
    after = document(repository, signature_tag(subject))
    assert after["layers"][:1] == before
    assert len(after["layers"]) == 2
    config = json.loads(repository.read_blob(Descriptor.from_json(after["config"])))
    assert config["rootfs"]["diff_ids"] == [layer["digest"] for layer in after["layers"]]
    assert len(repository.referrers(subject.digest)) == 2


def test_a_form_that_was_lost_is_written_again(repository: LayoutRepository, subject: Descriptor, keys: Keys) -> None:
    first = sign(repository, subject, keys["release"])
    repository.delete_tag(signature_tag(subject))
    second = sign(repository, subject, keys["release"])
    assert second[0] == first[0]
    assert len(document(repository, signature_tag(subject))["layers"]) == 1


def test_everything_but_the_signature_is_reproducible(tmp_path: Path, push: Push, keys: Keys) -> None:
    found = []
    for folder in ("a", "b"):
        repository = LayoutRepository(tmp_path / folder, "acme/model")
        manifests = sign(repository, push(repository), keys["release"], created="2026-01-02T03:04:05Z")
        documents = [document(repository, item.digest) for item in manifests]
        assert documents[0]["annotations"]["org.opencontainers.image.created"] == "2026-01-02T03:04:05Z"
        for value in documents:
            for layer in value["layers"]:
                layer.pop("annotations", None)
        bundle = json.loads(repository.read_blob(Descriptor.from_json(documents[0].pop("layers")[0])))
        bundle["dsseEnvelope"].pop("signatures")
        found.append((documents, bundle))
    assert found[0] == found[1]


def test_source_date_epoch(
    repository: LayoutRepository, subject: Descriptor, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    manifest, _ = sign(repository, subject, keys["release"])
    created = document(repository, manifest.digest)["annotations"]["org.opencontainers.image.created"]
    assert created == "1970-01-02T00:00:00Z"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(InvalidInput, match="SOURCE_DATE_EPOCH"):
        sign(repository, subject, keys["ops"])


def test_a_layout_path_is_not_published(tmp_path: Path, push: Push, keys: Keys) -> None:
    repository = LayoutRepository(tmp_path / "secret-project")
    sign(repository, push(repository), keys["release"])
    for folder, _, names in os.walk(tmp_path / "secret-project" / "blobs"):
        for name in names:
            assert b"secret-project" not in (Path(folder) / name).read_bytes()


def test_what_is_not_there_is_not_signed(repository: LayoutRepository, subject: Descriptor, keys: Keys) -> None:
    missing = Descriptor(subject.media_type, Digest("sha256", "0" * 64), subject.size)
    with pytest.raises(NotFound):
        sign(repository, missing, keys["release"])


def test_a_signature_tag_that_holds_something_else_is_left_alone(
    repository: LayoutRepository, subject: Descriptor, keys: Keys
) -> None:
    blob = Descriptor.of(b"{}", mediatypes.EMPTY)
    repository.push_blob(blob, bytes_source(b"{}"), Quiet())
    inner = Manifest(blob, (blob,)).to_bytes()
    repository.push_manifest(inner, mediatypes.IMAGE_MANIFEST)
    index = json.dumps(
        {"schemaVersion": 2, "manifests": [Descriptor.of(inner, mediatypes.IMAGE_MANIFEST).to_json()]}
    ).encode()
    repository.push_manifest(index, mediatypes.IMAGE_INDEX, signature_tag(subject))
    with pytest.raises(Malformed, match="delete the tag first"):
        sign(repository, subject, keys["release"])
    assert repository.manifest(signature_tag(subject))[1] == index
