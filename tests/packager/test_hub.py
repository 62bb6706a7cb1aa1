"""Models on a hub, against a small server that answers as the Hugging Face hub does."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from artifact.errors import InvalidInput
from artifact.layout import LayoutRepository
from artifact.manifest import Manifest
from artifact.version import __version__
from artifact.weights.gguf import read_header
from packager.hub import HubModel
from supplychain.attest import attestations
from supplychain.keys import PublicKey, generate
from supplychain.predicate import PROVENANCE
from supplychain.provenance import Provenance
from tests.checkpoints.families import write_tiny
from tests.checkpoints.tiny import write_tiny_llama

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TAG = "95K-BF16-safetensors"


class Hub:
    """One model, ``org/tiny``, at one commit. `requests` are the paths that were asked for, `agents` who asked; files
    in `damaged` arrive with another last byte than the hub knows them by."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[str] = []
        self.agents: set[str] = set()
        self.damaged: set[str] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.requests.append(self.path)
                if "org/tiny" in self.path:  # the hub's client asks for things of its own besides
                    hub.agents.add(self.headers["User-Agent"])
                path = self.path.partition("?")[0]
                if path.startswith(("/api/models/org/tiny/revision/main", f"/api/models/org/tiny/revision/{COMMIT}")):
                    siblings = [hub.sibling(name) for name in hub.files()]
                    self._send(json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": siblings}).encode())
                elif path.startswith("/api/models/org/tiny/tree/"):
                    files = [
                        {"type": "file", "path": name, "size": (hub.folder / name).stat().st_size, "oid": "0" * 40}
                        for name in hub.files()
                    ]
                    self._send(json.dumps(files).encode())
                elif path.startswith("/api/models/org/tiny/revision/"):
                    self._send(b"{}", 404, {"X-Error-Code": "RevisionNotFound"})
                elif (name := path.removeprefix(f"/org/tiny/resolve/{COMMIT}/")) != path and name in hub.files():
                    data = (hub.folder / name).read_bytes()
                    etag = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
                    if name in hub.damaged:
                        data = data[:-1] + bytes([data[-1] ^ 1])
                    self._send(data, 200, etag)
                else:
                    self._send(b"{}", 401, {"X-Error-Code": "RepoNotFound"})

            do_HEAD = do_GET  # noqa: N815

            def _send(self, data: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
                self.send_response(status)
                for key, value in (headers or {}).items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(data)

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def files(self) -> list[str]:
        """The files of the model, with those of its subfolders."""
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())

    def sibling(self, name: str) -> dict[str, object]:
        """A file as the hub lists it: large ones by the SHA-256 of their content."""
        data = (self.folder / name).read_bytes()
        listed: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": "0" * 40}
        if name.endswith(".safetensors"):
            digest = hashlib.sha256(data).hexdigest()
            listed["lfs"] = {"size": len(data), "sha256": digest, "pointerSize": 134}
        return listed


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = write_tiny_llama(tmp_path / "hosted", shards=2)
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    (folder / "README.md").write_text("---\nlicense: mit\n---\nNo heading.\n")
    hub = Hub(folder)
    thread = threading.Thread(target=hub.server.serve_forever, daemon=True)
    thread.start()
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def packager(hub_url: str, tmp_path: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: the hub's client reads its settings when it is loaded."""
    environment = {
        **os.environ, "HF_ENDPOINT": hub_url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1", "STOWAGE_STORE": str(tmp_path / "store"), "NO_PROXY": "127.0.0.1",
        "COSIGN_PASSWORD": "",
    }  # fmt: skip
    environment.pop("HF_HUB_OFFLINE", None)
    code = "from packager.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *args], env=environment, capture_output=True, text=True)


def test_a_model_is_fetched_by_commit_and_its_origin_recorded(hub: Hub, tmp_path: Path) -> None:
    done = packager(hub.url, tmp_path, "pack", "hf://org/tiny@main", f"oci:{tmp_path}/out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"oci:{tmp_path}/out:{TAG}@sha256:")
    repository = LayoutRepository(tmp_path / "out")
    manifest = Manifest.parse(repository.manifest(TAG)[1])
    config = json.loads(repository.read_blob(manifest.config))
    assert config["descriptor"] == {
        "createdAt": "1970-01-01T00:00:00Z", "family": "llama", "name": "tiny", "sourceURL": f"{hub.url}/org/tiny",
        "revision": COMMIT, "licenses": ["MIT"],
    }  # fmt: skip
    assert manifest.annotations["org.opencontainers.image.revision"] == COMMIT
    assert not [path for path in hub.requests if "pytorch_model.bin" in path]
    assert all(f"stowage/{__version__}" in agent for agent in hub.agents), hub.agents
    assert hub.agents
    # Another program may have fetched the pickle into the same cache: the model is the same model.
    (cached,) = (tmp_path / "hf").rglob("config.json")
    cached.with_name("pytorch_model.bin").write_bytes(b"PK\x03\x04")
    assert packager(hub.url, tmp_path, "pack", "hf://org/tiny", f"oci:{tmp_path}/out").stdout == done.stdout


def test_provenance_names_the_commit(hub: Hub, tmp_path: Path) -> None:
    private, public = generate(tmp_path / "release", b"")
    arguments = ("--format", "gguf", "--precision", "F16", "--file-filter", "!generation*")
    out = f"oci:{tmp_path}/out"
    done = packager(hub.url, tmp_path, "pack", "hf://org/tiny@main", out, "--sign", str(private), *arguments)
    assert done.returncode == 0, done.stderr
    repository = LayoutRepository(tmp_path / "out")
    keys = [PublicKey.load(str(public))]
    found = attestations(repository, repository.resolve("95K-F16").digest, keys)
    (statement,) = [item.statement for item in found if item.predicate_type == PROVENANCE]
    assert statement is not None
    made = Provenance.parse(statement.predicate)
    assert (made.source, made.source_url, made.revision) == ("hf://org/tiny", f"{hub.url}/org/tiny", COMMIT)
    assert made.file_filter == ("!generation*",)
    named = {item.path: item.digest for item in made.files}
    assert named.keys() >= {"config.json", "tokenizer.json", "model-00001-of-00002.safetensors", "README.md"}
    assert "generation_config.json" not in named
    for name, digest in named.items():
        assert digest.matches((hub.folder / name).read_bytes())
    dependencies = statement.predicate["buildDefinition"]["resolvedDependencies"]
    assert dependencies[0] == {"uri": f"{hub.url}/org/tiny", "digest": {"gitCommit": COMMIT}}
    assert {item["uri"] for item in dependencies[1:]} == {
        f"{hub.url}/org/tiny/resolve/{COMMIT}/{name}" for name in named
    }


@pytest.mark.parametrize("options", [(), ("--format", "gguf", "--precision", "F16", "--sign", "{key}")])
def test_large_files_are_checked_against_what_the_hub_knows(hub: Hub, tmp_path: Path, options: tuple[str, ...]) -> None:
    private, _ = generate(tmp_path / "release", b"")
    options = tuple(option.format(key=private) for option in options)
    hub.damaged.add("model-00002-of-00002.safetensors")
    done = packager(hub.url, tmp_path, "pack", "hf://org/tiny", f"oci:{tmp_path}/out", *options)
    assert done.returncode == 3, done.stderr
    assert "model-00002-of-00002.safetensors: not the bytes the hub has" in done.stderr
    assert not (tmp_path / "out" / "index.json").exists()


def test_a_licence_file_is_kept(hub: Hub, tmp_path: Path) -> None:
    (hub.folder / "LICENSE.txt").write_text("Terms")
    assert packager(hub.url, tmp_path, "pack", "hf://org/tiny", f"oci:{tmp_path}/out").returncode == 0
    manifest = Manifest.parse(LayoutRepository(tmp_path / "out").manifest(TAG)[1])
    assert "LICENSE.txt" in [layer.annotations["org.cncf.model.filepath"] for layer in manifest.layers]


def test_one_of_several_gguf_models_is_chosen_before_any_is_fetched(hub: Hub, tmp_path: Path, tiny_gguf: Path) -> None:
    for path in hub.folder.glob("*.safetensors*"):
        path.unlink()
    for name in ("model-F16.gguf", "model-copy.gguf"):
        shutil.copyfile(tiny_gguf, hub.folder / name)
    done = packager(hub.url, tmp_path, "pack", "hf://org/tiny", f"oci:{tmp_path}/out")
    assert done.returncode == 2 and "several models (model-F16.gguf, model-copy.gguf)" in done.stderr
    assert not [path for path in hub.requests if "/resolve/" in path]
    done = packager(hub.url, tmp_path, "pack", "hf://org/tiny", f"oci:{tmp_path}/out", "--file-filter", "!*copy*")
    assert done.returncode == 0 and ":95K-F16@" in done.stdout, done.stderr
    assert not [path for path in hub.requests if "model-copy.gguf" in path]


def test_a_hub_model_is_rebuilt_from_its_provenance_alone(hub: Hub, tmp_path: Path) -> None:
    private, _ = generate(tmp_path / "release", b"")
    options = ("--format", "gguf", "--precision", "F16", "--sign", str(private))
    line = packager(hub.url, tmp_path, "pack", "hf://org/tiny", f"oci:{tmp_path}/out", *options).stdout.strip()
    done = packager(hub.url, tmp_path, "verify", line, "--rebuild")
    assert (done.returncode, done.stdout.strip()) == (0, line), done.stderr
    assert packager("http://127.0.0.1:9", tmp_path / "elsewhere", "verify", line, "--rebuild").returncode == 1


def test_the_modules_of_an_embedding_model_come_along(hub: Hub, tmp_path: Path) -> None:
    """In the hub client's cache every file is a link, the list of modules too."""
    for path in hub.folder.iterdir():
        path.unlink()
    write_tiny(hub.folder, "bert")
    options = ("--file-filter", "!README.md")
    done = packager(hub.url, tmp_path, "pack", "hf://org/tiny", f"oci:{tmp_path}/out:v1", *options)
    assert done.returncode == 0 and "subfolder" not in done.stderr, done.stderr
    manifest = Manifest.parse(LayoutRepository(tmp_path / "out").manifest("v1")[1])
    names = {layer.annotations["org.cncf.model.filepath"] for layer in manifest.layers}
    assert {"modules.json", "1_Pooling/config.json"} <= names
    convert = ("--format", "gguf", "--precision", "F16")
    done = packager(hub.url, tmp_path, "pack", "hf://org/tiny", f"oci:{tmp_path}/out:v2", *convert)
    assert done.returncode == 0, done.stderr
    blobs = LayoutRepository(tmp_path / "out")
    weights = Manifest.parse(blobs.manifest("v2")[1]).layers[0]
    assert read_header(blobs.blob_path(weights.digest)).metadata["bert.pooling_type"] == 1


@pytest.mark.parametrize(
    ("source", "told"), [("hf://org/tiny@nope", "no such revision"), ("hf://org/other", "no such model")]
)
def test_what_the_hub_does_not_have(hub: Hub, tmp_path: Path, source: str, told: str) -> None:
    done = packager(hub.url, tmp_path, "pack", source, "tiny")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and told in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "store").exists()


def test_a_hub_that_is_down(tmp_path: Path) -> None:
    done = packager("http://127.0.0.1:9", tmp_path, "pack", "hf://org/tiny", "tiny")
    assert done.returncode == 1
    assert "the hub cannot be reached" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "text", ["hf://", "hf://org", "hf://a/b/c", "hf://a/b@", "hf://../b", "hf://a/b@x/../y", "hf://a/b?c"]
)
def test_names_that_are_none(text: str) -> None:
    with pytest.raises(InvalidInput):
        HubModel.parse(text)


def test_names() -> None:
    assert HubModel.parse("hf://org/name") == HubModel("org/name", "main")
    assert HubModel.parse("hf://org/name@refs/pr/3") == HubModel("org/name", "refs/pr/3")
