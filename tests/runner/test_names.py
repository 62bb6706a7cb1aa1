"""One model under several names: what was verified under which, and whose signatures stay when one goes."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from artifact.digest import Digest
from artifact.layout import LayoutRepository
from artifact.layout.index import ref_name
from supplychain.keys import PrivateKey, generate
from supplychain.sign import sign
from tests.runner.commands import call, json_of
from tests.runner.crafted import model_of


@pytest.fixture
def names(tmp_path: Path) -> tuple[str, str]:
    """Two references of one signed model; `policy.yaml` beside them requires its signature for all."""
    digest = model_of(tmp_path / "one", {"config.json": b"{}"})
    generate(tmp_path / "key", b"")
    layout = LayoutRepository(tmp_path / "one")
    sign(layout, layout.resolve(digest), PrivateKey.load(f"{tmp_path}/key.key", lambda: b""))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    (tmp_path / "policy.yaml").write_text(
        "version: 1\nauthorities: {release: {key: key.pub}}\nrules: [{match: ['**'], require: {any-of: [release]}}]\n"
    )
    return f"oci:{tmp_path}/one:v1", f"oci:{tmp_path}/two:v1"


def verified(store: Path) -> dict[str, Any]:
    """What `list` says of each name."""
    return {item["name"]: item["verified"] for item in json_of(call(store, "list", "--json"))}


def signature_tags(store: Path) -> list[str]:
    """The repositories in which the store has a signature under a tag."""
    entries = (ref_name(entry) or "" for entry in LayoutRepository(store).entries())
    return sorted(name.rpartition(":")[0] for name in entries if name.endswith(".sig"))


def test_what_was_verified_is_said_of_the_name_it_was_verified_under(store, names, tmp_path):
    one, two = names
    call(store, "pull", one, "--policy", str(tmp_path / "policy.yaml"))
    call(store, "pull", two)
    told = verified(store)
    assert (told[one]["signers"], told[two]) == (["release"], None)
    assert json_of(call(store, "inspect", one, "--json"))["verified"]["signers"] == ["release"]
    assert json_of(call(store, "inspect", two, "--json"))["verified"] is None
    rows = {line.split()[0]: line.split()[-1] for line in call(store, "list").stdout.splitlines()}
    assert (rows[one], rows[two]) == ("release", "-")
    call(store, "rm", one)
    shutil.copytree(tmp_path / "two", tmp_path / "three")
    call(store, "pull", f"oci:{tmp_path}/three:v1", "--policy", str(tmp_path / "policy.yaml"))
    assert [row and row["signers"] for row in verified(store).values()] == [["release"], None]


def test_records_of_earlier_versions_speak_of_one_name(store, names, tmp_path):
    one, two = names
    call(store, "pull", one)
    call(store, "pull", two)
    (record,) = (store / "records" / "sha256").iterdir()
    old = {"name": two, "digest": "sha256:0", "from": "x", "verified": {"signers": ["team"], "code": "allowed"}}
    record.write_text(json.dumps(old))
    assert verified(store) == {one: None, two: old["verified"]}
    for damaged in ("[]", "{", '{"names": []}', '{"names": {"x": 1}}', '{"name": []}'):
        record.write_text(damaged)
        assert verified(store) == {one: None, two: None}


def test_signatures_go_with_the_last_name_in_their_repository(store, names, tmp_path):
    one, two = names
    for name in names:
        call(store, "pull", name)
    assert signature_tags(store) == [f"oci:{tmp_path}/one", f"oci:{tmp_path}/two"]
    call(store, "rm", one)
    assert signature_tags(store) == [f"oci:{tmp_path}/two"]
    call(store, "verify", two, "--policy", str(tmp_path / "policy.yaml"))
    call(store, "rm", two)
    assert LayoutRepository(store).entries() == []
    assert not list(store.glob("blobs/*/*"))
    call(store, "pull", one)
    call(store, "prune", "--keep-size", "0")
    assert LayoutRepository(store).entries() == []
    assert not list(store.glob("blobs/*/*"))


def test_a_second_tag_keeps_the_signatures_of_its_repository(store, names, tmp_path):
    one, _ = names
    layout = LayoutRepository(tmp_path / "one")
    descriptor, raw = layout.manifest("v1")
    layout.push_manifest(raw, descriptor.media_type, "v2")
    other = one.replace(":v1", ":v2")
    call(store, "pull", one)
    call(store, "pull", other)
    call(store, "rm", one)
    assert signature_tags(store) == [f"oci:{tmp_path}/one"]
    call(store, "verify", other, "--policy", str(tmp_path / "policy.yaml"))


def test_signatures_that_were_left_behind_are_pruned_once_they_are_old(store, names):
    one, _ = names
    digest = call(store, "pull", one).stdout.strip().rpartition("@")[2]
    LayoutRepository(store).drop(Digest.parse(digest))
    assert json_of(call(store, "prune", "--json"))["leftovers"] == [f"bundle {digest.partition(':')[2]}"]
    long_ago = time.time() - 86400
    for path in store.glob("blobs/*/*"):
        os.utime(path, (long_ago, long_ago))
    would = json_of(call(store, "prune", "--dry-run", "--json"))
    assert json_of(call(store, "prune", "--json")) == would
    assert signature_tags(store) == []
    assert not list(store.glob("blobs/*/*"))
