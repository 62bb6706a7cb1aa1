"""Models with a tensor index, and registries of the tests' own that hand them out and misbehave."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.layout import LayoutRepository
from artifact.manifest import Manifest
from artifact.tensorindex import Chunker, FileIndex, TensorIndex
from artifact.tensorindex.attach import annotated, push_index, push_referrer
from artifact.weights import safetensors

MIB = 1024 * 1024
TAG = "v1"


def indexed(layout: LayoutRepository, manifest: Manifest, spoil: str = "") -> Digest:
    """Store `manifest` once more, with an index of its safetensors files, as the tag `TAG`. With `spoil`, the index
    names another digest for the last chunk of the file of that path."""
    files = []
    for layer in manifest.layers:
        path = layer.annotations[mediatypes.FILEPATH]
        if path.endswith(".safetensors"):
            files.append(index_of(layout.blob_path(layer.digest), layer, path))
            if path == spoil:
                *chunks, last = files[-1].chunks
                files[-1] = replace(files[-1], chunks=(*chunks, last._replace(digest=bytes(32))))
    raw = TensorIndex(tuple(sorted(files, key=lambda file: file.path))).to_bytes()
    blob = push_index(layout, raw)
    subject = replace(manifest, annotations=annotated(manifest.annotations, raw))
    descriptor = layout.push_manifest(subject.to_bytes(), mediatypes.IMAGE_MANIFEST, TAG)
    push_referrer(layout, descriptor, blob)
    return descriptor.digest


def index_of(file: Path, layer: Descriptor, path: str) -> FileIndex:
    """What an index says of a safetensors file."""
    tensors = safetensors.read_header(file).tensors
    chunker = Chunker(tensors, layer.size, name=path)
    with file.open("rb") as stream:
        while data := stream.read(MIB):
            chunker.update(data)
    return FileIndex(path, layer.digest, layer.size, tensors, chunker.finish())


class Registry(ThreadingHTTPServer):
    """A registry that hands out the models of a layout. Who asks for a range is handed to `fault` first, which answers
    by itself and returns True, or leaves it. With `away`, ranges are at another address for as many requests as that
    says, then at the next."""

    daemon_threads = True

    def __init__(self, layout: LayoutRepository) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.layout = layout
        self.fault: Callable[[_Answer, int, int], bool] = lambda *_: False
        self.away = 0
        self.sent: list[tuple[int, int]] = []
        self.expired = 0
        self.followed: dict[str, int] = {}
        self.lock = threading.Lock()
        self.host = f"127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are what the tests are about."""


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Registry

    def do_GET(self) -> None:
        layout, name = self.server.layout, self.path.partition("?")[0].rpartition("/")[2]
        if "/manifests/" in self.path:
            try:
                descriptor, raw = layout.manifest(Digest.parse(name) if ":" in name else name)
            except Exception:
                return self.answer(404, b"{}")
            return self.answer(200, raw, Content_Type=descriptor.media_type)
        if "/blobs/" not in self.path or not (path := layout.blob_path(Digest.parse(name))).is_file():
            return self.answer(404, b"{}")
        data = path.read_bytes()
        asked = re.fullmatch(r"bytes=([0-9]+)-([0-9]+)", self.headers.get("Range", ""))
        if asked is None:
            return self.answer(200, data)
        start, end = int(asked[1]), int(asked[2]) + 1
        if not self._is_here():
            return None
        if not self.server.fault(self, start, end):
            self.send_range(data, start, end)
        return None

    do_HEAD = do_GET  # noqa: N815

    def _is_here(self) -> bool:
        """Whether the weights are at this address; else it has been answered where they are, or that it is over."""
        server, (place, _, ticket) = self.server, self.path.partition("?ticket=")
        if not server.away:
            return True
        with server.lock:
            if not ticket:
                ticket = str(len(server.followed))
                server.followed[ticket] = 0
                self.answer(307, b"", Location=f"{place}?ticket={ticket}")
                return False
            server.followed[ticket] += 1
            over = server.followed[ticket] > server.away
            server.expired += over
        if over:
            self.answer(403, b"expired")
        return not over

    def send_range(self, data: bytes, start: int, end: int) -> None:
        with self.server.lock:
            self.server.sent.append((start, end))
        self.answer(206, data[start:end], Content_Range=f"bytes {start}-{end - 1}/{len(data)}")

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def registry(layout: LayoutRepository) -> Iterator[Registry]:
    """Such a registry, running."""
    server = Registry(layout)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
