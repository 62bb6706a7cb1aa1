"""``runner save`` and ``load``: a model travels with its signatures, and is verified where it arrives."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from artifact.layout import LayoutRepository
from supplychain.keyless import KeylessSigner
from supplychain.keys import PrivateKey, generate
from supplychain.sign import sign
from tests.runner.commands import BIN, call, environment, error_line, json_of
from tests.runner.crafted import model_of
from tests.supplychain.sigstore_services import Sigstore

POLICY = "version: 1\nauthorities: {release: {key: 'KEY'}}\nrules: [{match: ['**'], require: {any-of: [release]}}]\n"


@pytest.fixture
def signed(tmp_path: Path, store: Path) -> str:
    """The reference of a signed model in the store."""
    digest = model_of(tmp_path / "l", {"config.json": b"{}"})
    prefix = tmp_path / "keys" / "k"
    prefix.parent.mkdir()
    generate(prefix, b"")
    (tmp_path / "keys" / "policy.yaml").write_text(POLICY.replace("KEY", "k.pub"))
    layout = LayoutRepository(tmp_path / "l")
    sign(layout, layout.resolve(digest), PrivateKey.load(f"{prefix}.key", lambda: b""))
    call(store, "pull", f"oci:{tmp_path}/l:v1")
    return f"oci:{tmp_path}/l:v1"


def test_a_model_travels_with_its_signatures_and_the_policy(signed, store, tmp_path):
    other, policy = tmp_path / "elsewhere" / "store", tmp_path / "keys" / "policy.yaml"
    other.parent.mkdir()
    saved = call(store, "save", signed, str(tmp_path / "m.tar"), "--policy", str(policy)).stdout.strip()
    call(store, "save", signed, str(tmp_path / "again.tar"), "--policy", str(policy))
    assert (tmp_path / "m.tar").read_bytes() == (tmp_path / "again.tar").read_bytes()
    (tmp_path / "keys" / "k.pub").unlink()

    carried = other.parent / "policy.yaml"
    call(other, "load", str(tmp_path / "m.tar"), "--policy-to", str(carried))
    assert "BEGIN PUBLIC KEY" in carried.read_text()
    assert "exists already" in error_line(
        call(other, "load", str(tmp_path / "m.tar"), "--policy-to", str(carried), status=2)
    )
    assert call(other, "load", str(tmp_path / "m.tar"), "--policy", str(carried)).stdout.strip() == saved
    (listed,) = json_of(call(other, "list", "--json"))
    assert (listed["name"], listed["verified"]["signers"]) == (signed, ["release"])
    assert call(other, "verify", signed, "--policy", str(carried)).stdout.startswith("allowed")
    call(other, "save", signed, str(tmp_path / "third.tar"), "--policy", str(carried))
    with tarfile.open(tmp_path / "m.tar") as first, tarfile.open(tmp_path / "third.tar") as third:
        assert first.getnames() == third.getnames()


def test_a_keyless_signature_is_verified_where_there_is_no_network(store, tmp_path):
    """The trust root travels in the policy. The services that made the signature are gone by then."""
    if shutil.which("openssl") is None or shutil.which("unshare") is None:
        pytest.skip("openssl and unshare are not both installed")
    reference, other = f"oci:{tmp_path}/l:v1", tmp_path / "elsewhere" / "store"
    other.parent.mkdir()
    (tmp_path / "services").mkdir()
    digest = model_of(tmp_path / "l", {"config.json": b"{}"})
    layout = LayoutRepository(tmp_path / "l")
    with Sigstore.running(tmp_path / "services") as services:
        (tmp_path / "config.json").write_text(json.dumps(services.trust_config(2, tsa=True)))
        token = services.issuer.token("alice@example.com")
        sign(layout, layout.resolve(digest), KeylessSigner.open(tmp_path / "config.json", token))
    policy = tmp_path / "policy.yaml"
    who = f'identity: alice@example.com, issuer: "{services.issuer.url}", trust-root: config.json'
    policy.write_text(POLICY.replace("key: 'KEY'", f"keyless: {{{who}}}"))
    call(store, "pull", reference)
    call(store, "save", reference, str(tmp_path / "m.tar"), "--policy", str(policy))
    for name in ("config.json", "policy.yaml"):
        (tmp_path / name).unlink()

    carried = other.parent / "policy.yaml"
    call(other, "load", str(tmp_path / "m.tar"), "--policy-to", str(carried))
    for command in (["load", str(tmp_path / "m.tar")], ["verify", reference]):
        arguments = [str(BIN / "runner"), *command, "--policy", str(carried)]
        alone = subprocess.run(
            ["unshare", "--user", "--net", "--map-root-user", *arguments], env=environment(other), cwd=other.parent,
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        if "unshare" in alone.stderr:
            pytest.skip(f"no network namespaces here: {alone.stderr.strip()}")
        assert alone.returncode == 0, alone.stderr
    carried.write_text(carried.read_text().replace("alice@", "mallory@"))
    assert "unknown-signer" in error_line(call(other, "verify", reference, "--policy", str(carried), status=3))


def test_what_cannot_be_saved_is_said_before_anything_is_written(signed, store, tmp_path):
    refused = error_line(call(store, "save", signed, f"{tmp_path}/nowhere/m.tar", status=2))
    assert f"{tmp_path}/nowhere/m.tar: there is no folder {tmp_path}/nowhere" in refused
    policy = tmp_path / "keys" / "octal.yaml"
    text = POLICY.replace("KEY", "k.pub")
    policy.write_text(text.replace("any-of: [release]", "at-least: {count: 01, of: [release]}"))
    refused = error_line(call(store, "save", signed, str(tmp_path / "m.tar"), "--policy", str(policy), status=2))
    assert f"{policy}:3: " in refused and "must be a whole number" in refused
    assert not (tmp_path / "m.tar").exists()


def test_other_tools_read_it(signed, store, tmp_path):
    call(store, "save", signed, str(tmp_path / "m.tar"))
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-xf", tmp_path / "m.tar", "-C", tmp_path / "out"], check=True)
    layout = LayoutRepository(tmp_path / "out")
    model = LayoutRepository(tmp_path / "l").resolve("v1")
    assert len(layout.referrers(model.digest)) == 1
    assert layout.resolve(signed) == model


def test_a_policy_that_refuses_leaves_nothing(signed, store, tmp_path):
    call(store, "save", signed, str(tmp_path / "m.tar"))
    generate(tmp_path / "keys" / "other", b"")
    (tmp_path / "keys" / "strict.yaml").write_text(POLICY.replace("KEY", "other.pub"))
    other = tmp_path / "elsewhere"
    call(other, "load", str(tmp_path / "m.tar"), "--policy", str(tmp_path / "keys" / "strict.yaml"), status=3)
    assert not list(other.glob("blobs/*/*"))
    assert json_of(call(other, "list", "--json")) == []


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """A copy of an archive with `change` applied to each member's name and bytes; None leaves it out."""
    with tarfile.open(source) as old, tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as new:
        for info in old:
            stream = old.extractfile(info)
            assert stream is not None
            data = change(info.name, stream.read())
            if data is not None:
                info.size = len(data)
                new.addfile(info, io.BytesIO(data))
    return target


def without(prefix: str) -> Callable[[str, bytes], bytes | None]:
    """A change that leaves members out."""
    return lambda name, data: None if name.startswith(prefix) else data


def test_every_blob_is_checked_before_it_gets_its_name(signed, store, tmp_path):
    call(store, "save", signed, str(tmp_path / "m.tar"))
    other = tmp_path / "elsewhere"

    def flip(name: str, data: bytes) -> bytes:
        return data[:-1] + bytes([data[-1] ^ 1]) if len(data) == 216 or data == b"{}" else data

    damaged = rewritten(tmp_path / "m.tar", tmp_path / "damaged.tar", flip)
    assert "other bytes" in error_line(call(other, "load", str(damaged), status=3))
    for missing in ("index.json", "oci-layout", "blobs/"):
        partial = rewritten(
            tmp_path / "m.tar",
            tmp_path / "p.tar",
            lambda name, data, gone=missing: None if name.startswith(gone) else data,
        )
        assert "is not complete" in error_line(call(other, "load", str(partial), status=1))
    assert json_of(call(other, "list", "--json")) == []


def test_what_is_not_stored_or_damaged_is_not_saved(signed, store, tmp_path):
    assert "is not in the store" in error_line(call(store, "save", "a/b:v1", str(tmp_path / "m.tar"), status=1))
    weights = max(store.glob("blobs/sha256/*"), key=lambda path: path.stat().st_size)
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    call(store, "save", signed, str(tmp_path / "m.tar"), status=3)
    assert not (tmp_path / "m.tar").exists()
    assert not list(tmp_path.glob(".m.tar*"))
