"""Referrers listed under the fallback tag too, where the store holds what today's rules do not take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from registry import keys
from registry.config.sections import Config, Referrers
from registry.http.app import create_app
from registry.manifests import read_manifest
from registry.store.filesystem import FilesystemStore
from tests.registry.pushing import MANIFEST, descriptor, manifest_of, push_blob, put_manifest, sha256

SUBJECT = descriptor(b"a manifest that is pushed later, or never", MANIFEST)


@pytest.mark.parametrize("tagged", [False, True])
def test_a_referrer_with_half_a_character_stops_no_other(tmp_path: Path, tagged: bool) -> None:
    """It was stored before such manifests were refused; it can be deleted."""
    store = FilesystemStore(tmp_path)
    client = TestClient(create_app(store, Config(referrers=Referrers(fallback_tags=tagged))))
    push_blob(client, "fa/ll", b"{}")
    raw = manifest_of([], subject=SUBJECT, annotations={"half": "\ud800"})
    stored = read_manifest(raw, MANIFEST, None)
    store.put(keys.manifest("fa/ll", stored.digest), stored.to_object())
    listed = json.dumps(descriptor(raw, MANIFEST, annotations={"half": "\ud800"})).encode()
    subject = read_manifest(b"a manifest that is pushed later, or never", MANIFEST, None).digest
    store.put(keys.referrer("fa/ll", subject, stored.digest), listed)

    good = [manifest_of([], subject=SUBJECT, annotations={"number": str(number)}) for number in range(2)]
    for manifest in good:
        assert put_manifest(client, "fa/ll", manifest).status_code == 201
    paths = [f"referrers/{subject}"] + ([f"manifests/{str(subject).replace(':', '-')}"] if tagged else [])
    for path in paths:
        found = client.get(f"/v2/fa/ll/{path}").json()["manifests"]
        assert {item["digest"] for item in found} == set(map(sha256, good))
    assert client.delete(f"/v2/fa/ll/manifests/{stored.digest}").status_code == 202
    assert client.get(f"/v2/fa/ll/manifests/{stored.digest}").status_code == 404
