"""The other commands: inspect, push and copy, sign, keygen, login and logout."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifact.descriptor import Descriptor
from artifact.layout import LayoutRepository
from artifact.manifest import Manifest
from artifact.progress import Quiet
from artifact.source import bytes_source
from artifact.version import __version__
from supplychain.keys import PrivateKey
from tests.packager.conftest import attached

TAG = "95K-BF16-safetensors"


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a registry on an empty folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    storage = tmp_path_factory.mktemp("registry")
    command = [sys.executable, "-c", "from registry.cli import main; main()", "serve", "--storage", str(storage)]
    with (storage.parent / "registry.log").open("wb") as log:
        server = subprocess.Popen([*command, "--listen", host], stdout=log, stderr=log)
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(f"http://{host}/v2/", timeout=1)
                break
            except (urllib.error.URLError, OSError):
                assert server.poll() is None, "the registry ended at once"
                time.sleep(0.1)
        yield host
    finally:
        server.terminate()
        server.wait(timeout=20)


def test_inspect_a_checkpoint(packager, tiny: Path) -> None:
    card = json.loads(packager("inspect", tiny, "--json").stdout)
    assert card["architecture"] == "llama"
    assert card["parameters"] == 94528
    assert card["precision"] == "BF16"
    assert card["shares"] == [{"type": "BF16", "share": 1.0}]
    assert card["tag"] == TAG
    assert card["contextLength"] == 256
    assert card["licenses"] == ["Apache-2.0"]
    assert card["tensors"] == 20
    assert card["chatTemplate"] is True
    assert card["findings"] == []
    assert {"path": "config.json", "kind": "weight.config", "size": (tiny / "config.json").stat().st_size} in card[
        "files"
    ]
    shown = packager("inspect", tiny).stdout
    for part in ("94,528 in 20 tensors", TAG, "256 tokens", "Apache-2.0", "100.00%", "config.json"):
        assert part in shown


def test_inspect_reports_findings_and_does_not_refuse(packager, tiny: Path) -> None:
    (tiny / "modeling.py").write_text("1")
    (tiny / "README.md").unlink()
    (tiny / "tokenizer.json").unlink()
    (tiny / "tokenizer_config.json").unlink()
    (tiny / "notes.xyz").write_text("1")
    result = packager("inspect", tiny, "--json")
    assert result.status == 0
    found = {(item["code"], item["severity"], item["path"]) for item in json.loads(result.stdout)["findings"]}
    assert found == {
        ("python-code", "error", "modeling.py"), ("license-missing", "warning", ""),
        ("tokenizer-missing", "warning", ""), ("chat-template-missing", "warning", ""),
        ("file-skipped", "info", "notes.xyz"),
    }  # fmt: skip
    assert "python-code" in packager("inspect", tiny).stdout


def test_inspect_a_gguf_file(packager, tiny_gguf: Path) -> None:
    card = json.loads(packager("inspect", tiny_gguf, "--json").stdout)
    assert (card["format"], card["precision"], card["architecture"]) == ("gguf", "F16", "llama")
    assert {item["type"] for item in card["shares"]} == {"F16", "F32"}


def test_inspect_an_artifact_says_the_same_as_its_checkpoint(
    packager, tiny: Path, tmp_path: Path, registry: str
) -> None:
    before = json.loads(packager("inspect", tiny, "--json").stdout)
    for place, flags in ((f"oci:{tmp_path}/out", ()), (f"{registry}/inspect/tiny", ("--push",)), ("tiny", ())):
        line = packager.ok("pack", tiny, place, *flags)
        after = json.loads(packager("inspect", line, "--json").stdout)
        assert after["digest"] == line.rpartition("@")[2]
        for key in before.keys() - {"source", "digest", "files", "index"}:
            assert after[key] == before[key], key
        assert [(file["path"], file["size"]) for file in after["files"]] == [
            (file["path"], file["size"]) for file in before["files"]
        ]


def test_inspect_tells_when_an_artifact_does_not_hold_what_its_tag_says(packager, tiny: Path, tmp_path: Path) -> None:
    packager.ok("pack", tiny, f"oci:{tmp_path}/out")
    repository = LayoutRepository(tmp_path / "out")
    descriptor, raw = repository.manifest(TAG)
    repository.push_manifest(raw, descriptor.media_type, "95K-Q8_0")
    findings = json.loads(packager("inspect", f"oci:{tmp_path}/out:95K-Q8_0", "--json").stdout)["findings"]
    assert [item["code"] for item in findings] == ["tag-mismatch"]


def test_inspect_what_is_not_there(packager, tiny: Path, tmp_path: Path) -> None:
    assert "no such file or folder" in packager.fails(1, "inspect", "./nowhere")
    assert "no such file or folder" in packager.fails(1, "inspect", "nowhere")
    assert f"{tmp_path}/none" in packager.fails(1, "inspect", f"oci:{tmp_path}/none:tag")
    packager.ok("pack", tiny, "tiny")
    assert f"it has {TAG}" in packager.fails(1, "inspect", "tiny:other")


def test_inspect_shows_nothing_that_steers_the_terminal(packager, tiny: Path) -> None:
    (tiny / "README.md").write_text("# Evil\x1b[2J\x07 name\n")
    assert "\x1b" not in packager("inspect", tiny).stdout


def test_pack_and_push_at_once_and_by_hand_are_the_same(packager, tiny: Path, registry: str) -> None:
    at_once = packager.ok("pack", tiny, f"{registry}/one/tiny", "--push")
    assert packager.stored == []
    packager.ok("pack", tiny, f"{registry}/two/tiny")
    by_hand = packager.ok("push", f"{registry}/two/tiny:{TAG}")
    assert by_hand == at_once.replace("/one/", "/two/")
    assert packager.ok("push", f"{registry}/two/tiny:{TAG}") == by_hand


def test_copy_keeps_the_digest(packager, tiny: Path, tmp_path: Path, registry: str) -> None:
    line = packager.ok("pack", tiny, f"oci:{tmp_path}/a")
    digest = line.rpartition("@")[2]
    assert (
        packager.ok("copy", f"oci:{tmp_path}/a:{TAG}", f"{registry}/copy/tiny")
        == f"{registry}/copy/tiny:{TAG}@{digest}"
    )
    assert (
        packager.ok("copy", f"{registry}/copy/tiny@{digest}", f"oci:{tmp_path}/b:x") == f"oci:{tmp_path}/b:x@{digest}"
    )
    assert packager.ok("push", f"{registry}/copy/tiny:{TAG}@{digest}", "tiny") == f"tiny:{TAG}@{digest}"
    assert LayoutRepository(tmp_path / "b").manifest("x") == LayoutRepository(tmp_path / "a").manifest(TAG)
    wrong = "sha256:" + "0" * 64
    assert "states" in packager.fails(3, "copy", f"oci:{tmp_path}/a:{TAG}", f"{registry}/copy/tiny:x@{wrong}")
    assert "moved" in packager.fails(3, "copy", f"oci:{tmp_path}/a:{TAG}@{wrong}", f"{registry}/copy/tiny")
    assert "neither a tag nor a digest" in packager.fails(2, "copy", f"oci:{tmp_path}/a", f"{registry}/copy/tiny")
    assert "names no registry" in packager.fails(2, "push", f"tiny:{TAG}")


def test_a_registry_that_is_down(packager, tiny: Path) -> None:
    message = packager.fails(1, "pack", tiny, "127.0.0.1:9/ai/tiny", "--push")
    assert "127.0.0.1:9" in message
    assert packager.stored == []


def test_keys_and_signatures(packager, tiny: Path, tmp_path: Path, registry: str) -> None:
    result = packager("keygen", tmp_path / "release")
    assert result.status == 0 and result.last == str(tmp_path / "release.pub")
    assert (tmp_path / "release.key").stat().st_mode & 0o777 == 0o600
    key = tmp_path / "release.key"
    assert "exists" in packager.fails(2, "keygen", tmp_path / "release")
    line = packager.ok("pack", tiny, f"oci:{tmp_path}/out", "--sign", key)
    repository, digest = LayoutRepository(tmp_path / "out"), line.rpartition("@")[2]
    subject = repository.resolve(TAG)
    legacy = digest.replace(":", "-") + ".sig"
    assert len(attached(repository, subject.digest)) == 5  # signature, three attestations, and the bare bill
    assert repository.tags() == [TAG, legacy]
    copied = packager.ok("copy", f"oci:{tmp_path}/out:{TAG}", f"{registry}/signed/tiny", "--all-referrers")
    assert packager.ok("copy", f"{registry}/signed/tiny:{legacy}", f"oci:{tmp_path}/sig")
    assert packager.ok("sign", copied, "--key", key) == copied
    assert packager.ok("copy", copied, f"oci:{tmp_path}/plain") and LayoutRepository(tmp_path / "plain").tags() == [TAG]
    assert PrivateKey.load(str(key), lambda: b"").public.pem == (tmp_path / "release.pub").read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        ("--sign", ""), ("--sign-keyless", "--identity-token", ""), ("--identity-token", ""), ("--precision", ""),
        ("--identity-token", "given without --sign-keyless"),
        ("--format", "gguf", "--precision", ""), ("--base", ""), ("--created", ""), ("--builder", ""),
        ("--push", "--delta-from", ""), ("--sign-keyless", "--trust-config", "", "--identity-token", "x"),
    ],
)  # fmt: skip
def test_an_option_that_is_empty_or_alone_is_no_option_left_out(packager, tiny: Path, options: tuple[str, ...]) -> None:
    """A variable that a script did not set must not end in an unsigned artifact, or in another one."""
    packager.fails(2, "pack", tiny, "127.0.0.1:9/ai/tiny", *options)
    assert packager.stored == []


def test_names_that_are_empty(packager, tiny: Path, tmp_path: Path) -> None:
    assert "the source is empty" in packager.fails(2, "pack", "", "tiny")
    line = packager.ok("pack", tiny, f"oci:{tmp_path}/out")
    assert "--key (with pack --sign) is empty" in packager.fails(2, "sign", line, "--key", "")


def test_a_token_variable_that_is_empty_is_none(packager, tiny: Path, monkeypatch) -> None:
    monkeypatch.setenv("SIGSTORE_ID_TOKEN", "")
    packager.ok("pack", tiny, "tiny")


def test_a_wrong_password_is_found_out_before_anything_is_packed(
    packager, tiny: Path, tmp_path: Path, monkeypatch
) -> None:
    packager.ok("keygen", tmp_path / "release")
    monkeypatch.setenv("COSIGN_PASSWORD", "wrong")
    assert "wrong password" in packager.fails(2, "pack", tiny, "tiny", "--sign", tmp_path / "release.key")
    monkeypatch.delenv("COSIGN_PASSWORD")
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert "COSIGN_PASSWORD" in packager.fails(2, "pack", tiny, "tiny", "--sign", tmp_path / "release.key")
    assert packager.stored == []


def test_login_and_logout(packager, tmp_path: Path, registry: str, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("secret\n"))
    assert packager("login", registry, "-u", "ci", "--password-stdin").status == 0
    config = tmp_path / "docker" / "config.json"
    assert config.stat().st_mode & 0o777 == 0o600
    assert json.loads(config.read_text()) == {"auths": {registry: {"auth": base64.b64encode(b"ci:secret").decode()}}}
    assert "removed" in packager("logout", registry).stderr
    assert json.loads(config.read_text()) == {"auths": {}}
    assert "was not there" in packager("logout", registry).stderr
    assert "not a registry host" in packager.fails(2, "login", "https://example.com", "-u", "ci", "--password-stdin")
    assert "--username" in packager.fails(2, "login", registry, "--password-stdin")
    monkeypatch.setattr(sys, "stdin", io.StringIO("secret\n"))
    assert packager("login", "127.0.0.1:9", "-u", "ci", "--password-stdin").status == 1
    assert json.loads(config.read_text()) == {"auths": {}}


def test_version_and_usage(packager) -> None:
    assert packager("--version").stdout == f"packager {__version__}\n"
    assert packager("pack").status == 2
    assert packager("nonsense").status == 2
    for command in ("inspect", "pack", "push", "copy", "sign", "attest", "keygen", "login", "logout"):
        assert "Example: packager" in packager(command, "--help").stdout, command


def test_an_interrupted_pack_ends_at_once_and_leaves_no_artifact(tiny: Path, tmp_path: Path) -> None:
    """Ctrl-C while a large file is hashed: exit status 130, nothing named in the store."""
    path = tiny / "notes.txt"
    with path.open("wb") as stream:
        stream.truncate(40 * 1000**3)  # sparse: takes long to hash, and nothing on disk
    environment = {**os.environ, "STOWAGE_STORE": str(tmp_path / "store")}
    code = "from packager.cli import main; main()"
    running = subprocess.Popen(
        [sys.executable, "-c", code, "pack", str(tiny), "tiny"], env=environment, stderr=subprocess.PIPE, text=True
    )
    assert running.stderr is not None
    assert re.search("packed as it is", running.stderr.readline())
    time.sleep(0.5)
    running.send_signal(2)
    assert running.wait(timeout=20) == 130
    assert "Traceback" not in running.stderr.read()
    assert not (tmp_path / "store" / "index.json").exists()


def test_a_foreign_artifact_is_not_taken_for_a_model(packager, tmp_path: Path) -> None:
    repository = LayoutRepository(tmp_path / "out")
    config = Descriptor.of(b"{}", "application/vnd.oci.image.config.v1+json")
    repository.push_blob(config, bytes_source(b"{}"), Quiet())
    raw = json.dumps({"schemaVersion": 2, "config": config.to_json(), "layers": []}).encode()
    repository.push_manifest(raw, "application/vnd.oci.image.manifest.v1+json", "image")
    assert "not a model artifact" in packager.fails(1, "inspect", f"oci:{tmp_path}/out:image")


def test_inspect_an_artifact_of_docker_without_file_paths(packager, tiny_gguf: Path, tmp_path: Path) -> None:
    repository = LayoutRepository(tmp_path / "out")
    config = json.dumps({"config": {"format": "gguf", "quantization": "MOSTLY_F16", "architecture": "llama"}}).encode()
    blobs = [
        (config, "application/vnd.docker.ai.model.config.v0.1+json"),
        (tiny_gguf.read_bytes(), "application/vnd.docker.ai.gguf.v3"),
        (b"text", "application/vnd.docker.ai.license"),
    ]
    descriptors = [Descriptor.of(data, media_type) for data, media_type in blobs]
    for descriptor, (data, _) in zip(descriptors, blobs, strict=True):
        repository.push_blob(descriptor, bytes_source(data), Quiet())
    raw = Manifest(descriptors[0], descriptors[1:]).to_bytes()
    repository.push_manifest(raw, "application/vnd.oci.image.manifest.v1+json", "95K-F16")
    card = json.loads(packager("inspect", f"oci:{tmp_path}/out:95K-F16", "--json").stdout)
    assert (card["precision"], card["parameters"], card["findings"]) == ("F16", 94528, [])
    assert [file["path"] for file in card["files"]] == ["model.gguf", "LICENSE"]
