"""``runner pull``: what arrives, what is refused, and what is left then."""

from __future__ import annotations

import http.server
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from artifact import mediatypes
from artifact.layout import LayoutRepository
from artifact.manifest import Index, Manifest
from artifact.moved import size_text
from artifact.reference import Reference
from supplychain import keys
from supplychain.keys import PrivateKey
from supplychain.sign import sign
from tests.runner.commands import BIN, call, environment, error_line, json_of, packager, wait_until
from tests.runner.crafted import blob, flip_byte, model_of, safetensors_bytes


def nothing_in(store: Path) -> bool:
    """Whether a refused pull left nothing: no model, no blob, no files laid out."""
    listed = json_of(call(store, "list", "--json"))
    return listed == [] and not list(store.glob("blobs/*/*")) and not list(store.glob("bundles/*/*"))


def writable(layout: Path, target: Path) -> Path:
    """A copy of a layout that a test may damage."""
    return Path(shutil.copytree(layout, target))


def key_policy(folder: Path) -> tuple[PrivateKey, Path]:
    """A fresh key, and a policy that requires it for everything."""
    private, public = keys.generate(folder / "team", b"")
    policy = folder / "policy.yaml"
    policy.write_text(
        f"version: 1\nauthorities:\n  team:\n    key: {public.name}\n"
        'rules:\n  - match: ["**"]\n    require:\n      any-of: [team]\n'
    )
    return PrivateKey.load(str(private), lambda: b""), policy


def test_a_pull_lays_the_files_out_under_their_names(store, gguf_reference, layout):
    result = call(store, "pull", gguf_reference)
    pinned = result.stdout.splitlines()
    assert len(pinned) == 1
    digest = Reference.parse(pinned[0]).digest
    assert pinned[0].startswith(f"oci:{layout}@sha256:")
    (bundle,) = (store / "bundles" / "sha256").iterdir()
    assert bundle.name == digest.hex
    manifest = Manifest.parse(LayoutRepository(layout).manifest(digest)[1])
    files = {layer.annotations[mediatypes.FILEPATH]: layer for layer in manifest.layers}
    assert {path.name for path in bundle.iterdir()} == set(files)
    for name, layer in files.items():
        blob_file = store / "blobs" / "sha256" / layer.digest.hex
        assert (bundle / name).stat().st_ino == blob_file.stat().st_ino  # one copy on disk
        assert (bundle / name).stat().st_mode & 0o222 == 0
        assert layer.digest.matches((bundle / name).read_bytes())
    size = sum(layer.size for layer in (manifest.config, *manifest.layers))
    assert f"moved {size_text(size)} of {size_text(size)}" in result.stderr
    again = call(store, "pull", gguf_reference)
    assert f"moved 0 B of {size_text(size)}" in again.stderr
    assert again.stdout == result.stdout


def test_without_a_policy_the_user_is_told_so_once(store, gguf_reference):
    assert call(store, "pull", gguf_reference).stderr.count("no policy is stated") == 1


def test_tag_and_digest_must_agree(store, gguf_reference, safetensors_reference):
    digest = call(store, "pull", safetensors_reference).stdout.strip().rpartition("@")[2]
    refused = call(store, "pull", f"{gguf_reference}@{digest}", status=3)
    assert "the tag has moved" in error_line(refused)
    place = gguf_reference.rpartition(":")[0]
    assert call(store, "pull", f"{place}@{digest}").stdout.strip() == f"{place}@{digest}"
    assert "neither a tag nor a digest" in error_line(call(store, "pull", place, status=2))


def test_unknown_tag_and_no_layout(store, layout, tmp_path):
    assert "has no tag 'v9'" in error_line(call(store, "pull", f"oci:{layout}:v9", status=1))
    assert "not an OCI image layout" in error_line(call(store, "pull", f"oci:{tmp_path}/no:v9", status=1))
    assert nothing_in(store)


def test_a_flipped_byte_is_refused_and_leaves_nothing(store, layout, gguf_reference, tmp_path):
    damaged = writable(layout, tmp_path / "damaged")
    tag = gguf_reference.rpartition(":")[2]
    manifest = Manifest.parse(LayoutRepository(damaged).manifest(tag)[1])
    largest = max(manifest.layers, key=lambda layer: layer.size)
    flip_byte(damaged / "blobs" / "sha256" / largest.digest.hex)
    refused = call(store, "pull", f"oci:{damaged}:{tag}", status=3)
    assert str(largest.digest) in error_line(refused)
    assert nothing_in(store)


def test_a_flipped_byte_in_manifest_or_config_is_refused(store, layout, gguf_reference, tmp_path):
    tag = gguf_reference.rpartition(":")[2]
    descriptor, raw = LayoutRepository(layout).manifest(tag)
    for number, digest in enumerate((descriptor.digest, Manifest.parse(raw).config.digest)):
        damaged = writable(layout, tmp_path / f"damaged{number}")
        flip_byte(damaged / "blobs" / "sha256" / digest.hex, 20)
        assert str(digest) in error_line(call(store, "pull", f"oci:{damaged}:{tag}", status=3))
    assert nothing_in(store)


def test_a_tag_that_disagrees_with_the_bytes_is_refused(store, layout, gguf_reference, tmp_path):
    renamed = writable(layout, tmp_path / "renamed")
    repository = LayoutRepository(renamed)
    descriptor, raw = repository.manifest(gguf_reference.rpartition(":")[2])
    repository.push_manifest(raw, descriptor.media_type, "4B-Q8_0")
    refused = call(store, "pull", f"oci:{renamed}:4B-Q8_0", status=3)
    assert "says Q8_0, the bytes are F16" in error_line(refused)
    assert nothing_in(store)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"precision": "bfloat16"}, "the config says|config says BF16"),
        ({"annotations": {mediatypes.PARAMETERS: "7"}}, "say 7 parameters"),
        ({"format_": "gguf"}, "no .gguf file"),
        ({"annotations": {mediatypes.PRECISION: "Q4_0"}}, "says 'Q4_0'"),
    ],
)
def test_claims_that_the_bytes_do_not_hold_are_refused(store, tmp_path, options, why):
    model_of(tmp_path / "l", {}, **options)
    result = subprocess.run(
        [BIN / "runner", "pull", f"oci:{tmp_path}/l:v1"],
        env=environment(store),
        text=True,
        capture_output=True,
        check=False,
    )
    assert result.returncode in (1, 3)
    assert any(part in error_line(result) for part in why.split("|"))
    assert nothing_in(store)


def test_a_missing_shard_is_refused(store, tmp_path):
    index = b'{"weight_map": {"w": "a.safetensors", "v": "b.safetensors"}}'
    model_of(tmp_path / "l", {"a.safetensors": safetensors_bytes(), "model.safetensors.index.json": index})
    assert "'b.safetensors'" in error_line(call(store, "pull", f"oci:{tmp_path}/l:v1", status=3))
    assert nothing_in(store)


def test_an_index_is_never_a_model(store, tmp_path):
    digest = model_of(tmp_path / "l", {})
    repository = LayoutRepository(tmp_path / "l")
    index = Index([repository.resolve(digest)])
    repository.push_manifest(index.to_bytes(), index.media_type, "both")
    assert "never an index" in error_line(call(store, "pull", f"oci:{tmp_path}/l:both", status=1))
    image = Manifest(blob(repository, b"{}", mediatypes.IMAGE_CONFIG), [blob(repository, b"x", mediatypes.IMAGE_LAYER)])
    repository.push_manifest(image.to_bytes(), image.media_type, "image")
    assert "is not a model" in error_line(call(store, "pull", f"oci:{tmp_path}/l:image", status=1))
    assert nothing_in(store)


def test_docker_layout_without_file_names(store, tmp_path):
    """Docker Model Runner tells files by their media types alone."""
    repository = LayoutRepository(tmp_path / "l")
    config = b'{"config":{"format":"safetensors"},"descriptor":{"created":"2026-01-01T00:00:00Z"}}'
    layers = [
        blob(repository, safetensors_bytes("a"), mediatypes.DOCKER_SAFETENSORS),
        blob(repository, safetensors_bytes("b"), mediatypes.DOCKER_SAFETENSORS),
        blob(repository, b"Apache", mediatypes.DOCKER_LICENSE),
        blob(repository, b"{}", mediatypes.DOCKER_MODEL_FILE, org__opencontainers__image__title="config.json"),
    ]
    manifest = Manifest(blob(repository, config, mediatypes.DOCKER_MODEL_CONFIG_V01), layers)
    repository.push_manifest(manifest.to_bytes(), manifest.media_type, "v1")
    call(store, "pull", f"oci:{tmp_path}/l:v1")
    (bundle,) = (store / "bundles" / "sha256").iterdir()
    assert sorted(path.name for path in bundle.iterdir()) == [
        "LICENSE", "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
    ]  # fmt: skip


def test_two_pulls_at_once_make_one_model(store, gguf_reference):
    command = [BIN / "runner", "pull", gguf_reference]
    pulls = [
        subprocess.Popen(command, env=environment(store), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    outputs = [pull.communicate(timeout=60) for pull in pulls]
    assert [pull.returncode for pull in pulls] == [0, 0, 0], outputs
    assert len({out for out, _ in outputs}) == 1
    assert len(json_of(call(store, "list", "--json"))) == 1
    assert len(list((store / "bundles" / "sha256").iterdir())) == 1
    assert not list((store / "ingest").iterdir())


class Halves(http.server.ThreadingHTTPServer):
    """A front of a registry that passes everything on, but while it `stalls` only the first half of what is large."""

    def __init__(self, registry: str) -> None:
        super().__init__(("127.0.0.1", 0), _Half)
        self.registry = registry
        self.stalls, self.stalled, self.go_on = True, threading.Event(), threading.Event()


class _Half(http.server.BaseHTTPRequestHandler):
    server: Halves

    def do_GET(self) -> None:
        asked = {name: value for name, value in self.headers.items() if name.lower() in ("accept", "range")}
        answer = httpx.request(self.command, f"{self.server.registry}{self.path}", headers=asked, timeout=60)
        self.send_response(answer.status_code)
        for name, value in answer.headers.items():
            if name not in ("connection", "date", "server", "transfer-encoding"):
                self.send_header(name, value)
        self.end_headers()
        data = answer.content
        if self.server.stalls and len(data) > 100_000:
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.server.stalled.set()
            self.server.go_on.wait(120)
        else:
            self.wfile.write(data)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def halves(session_registries: Callable[..., Any], tmp_path: Path) -> Iterator[Halves]:
    """A registry behind a front that stalls."""
    front = Halves(session_registries(tmp_path / "registry-data").url)
    thread = threading.Thread(target=front.serve_forever)
    thread.start()
    yield front
    front.go_on.set()
    front.shutdown()
    thread.join()
    front.server_close()


def test_a_pull_that_was_killed_can_be_done_again(store, gguf_reference, halves, tmp_path):
    tag = gguf_reference.rpartition(":")[2]
    name = f"{halves.registry.removeprefix('http://')}/team/model:{tag}"
    packager(tmp_path / "packing", "copy", gguf_reference, name)
    through = f"127.0.0.1:{halves.server_address[1]}/team/model:{tag}"
    first = subprocess.Popen([BIN / "runner", "pull", through], env=environment(store), stderr=subprocess.DEVNULL)
    assert halves.stalled.wait(60)
    wait_until(lambda: any(path.stat().st_size for path in (store / "ingest").iterdir()))
    first.kill()
    first.wait()
    assert json_of(call(store, "list", "--json")) == []
    halves.stalls = False
    assert call(store, "pull", through).stdout.startswith(through.removesuffix(f":{tag}") + "@sha256:")
    assert [item["name"] for item in json_of(call(store, "list", "--json"))] == [through]
    call(store, "fsck")
    assert not list((store / "ingest").iterdir())


def test_an_unsigned_model_is_refused_before_its_weights_move(store, gguf_reference, tmp_path):
    _, policy = key_policy(tmp_path)
    refused = call(store, "pull", gguf_reference, "--policy", str(policy), status=3)
    assert "unsigned" in error_line(refused)
    assert nothing_in(store)
    call(store, "pull", gguf_reference, status=3, STOWAGE_POLICY=str(policy))
    assert nothing_in(store)


def test_a_signed_model_is_verified_offline_from_the_store(store, layout, gguf_reference, tmp_path):
    key, policy = key_policy(tmp_path)
    signed = writable(layout, tmp_path / "signed")
    reference = f"oci:{signed}:{gguf_reference.rpartition(':')[2]}"
    repository = LayoutRepository(signed)
    sign(repository, repository.resolve(gguf_reference.rpartition(":")[2]), key)
    call(store, "pull", reference, "--policy", str(policy))
    assert json_of(call(store, "list", "--json"))[0]["verified"]["signers"] == ["team"]
    shutil.rmtree(signed)
    verified = json_of(call(store, "verify", reference, "--policy", str(policy), "--json"))
    assert (verified["allowed"], verified["code"]) == (True, "allowed")
    (tmp_path / "other").mkdir()
    _, stranger = key_policy(tmp_path / "other")
    refused = call(store, "verify", reference, "--policy", str(stranger), "--json", status=3)
    assert json_of(refused)["code"] == "unknown-signer"
    assert call(store, "serve", reference, "--policy", str(stranger), status=3)
    assert call(store, "run", reference, "hi", "--policy", str(stranger), status=3)


def test_disk_full_is_one_line_and_names_nothing_half(store, gguf_reference, tmp_path):
    """On a file system of its own that is too small, in a user and mount namespace."""
    store.mkdir()
    script = (
        f"mount -t tmpfs -o size=512k none {store} && "
        f"{{ {BIN}/runner pull {gguf_reference}; echo status $?; cat {store}/index.json; }}"
    )
    can = subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode == 0
    if not can:
        pytest.skip("this kernel lets nobody mount a file system of their own")
    result = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script], env=environment(store), capture_output=True, text=True, check=False
    )
    assert "status 1" in result.stdout, result.stderr
    assert error_line(result).startswith("error: disk full while storing sha256:")
    assert "ref.name" not in result.stdout  # the model has no name in the store


def test_rm_frees_what_nothing_else_needs(store, gguf_reference, safetensors_reference):
    call(store, "pull", gguf_reference)
    call(store, "pull", safetensors_reference)
    shared = {item["digest"] for item in json_of(call(store, "inspect", gguf_reference, "--json"))["files"]}
    kept = {item["digest"] for item in json_of(call(store, "inspect", safetensors_reference, "--json"))["files"]}
    assert shared & kept  # both hold the chat template
    call(store, "rm", gguf_reference)
    stored = {f"sha256:{path.name}" for path in (store / "blobs" / "sha256").iterdir()}
    assert kept <= stored
    assert not (shared - kept) & stored
    call(store, "rm", safetensors_reference)
    assert nothing_in(store)
    assert "is not in the store" in error_line(call(store, "rm", gguf_reference, status=1))
