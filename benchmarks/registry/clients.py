"""What the contestants are asked to do, by clients that treat them all alike."""

from __future__ import annotations

import hashlib
import json
import selectors
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from benchmarks.registry.contestants import Contestant

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_MIB = 1024 * 1024


@dataclass(frozen=True)
class Blob:
    """Random bytes in a file, so that nothing compresses them or finds them twice."""

    path: Path
    digest: str
    size: int

    @classmethod
    def make(cls, path: Path, size: int) -> Blob:
        hasher = hashlib.sha256()
        with path.open("wb") as file, Path("/dev/urandom").open("rb") as source:
            left = size
            while left:
                data = source.read(min(_MIB, left))
                hasher.update(data)
                file.write(data)
                left -= len(data)
        return cls(path, f"sha256:{hasher.hexdigest()}", size)


def location(contestant: Contestant, repository: str) -> str:
    """Begin an upload; where its bytes go, ready for a further parameter."""
    answer = httpx.post(f"{contestant.url}/v2/{repository}/blobs/uploads/", timeout=60)
    answer.raise_for_status()
    url = str(httpx.URL(contestant.url).join(answer.headers["location"]))
    return url + ("&" if "?" in url else "?")


def push(contestant: Contestant, repository: str, blob: Blob) -> float:
    """Push a blob with curl in one PUT; the seconds it took."""
    begun = time.perf_counter()
    _curl("-T", str(blob.path), f"{location(contestant, repository)}digest={blob.digest}", want="201")
    return time.perf_counter() - begun


def push_many(contestant: Contestant, repository: str, blobs: list[Blob]) -> None:
    """Push blobs at the same time."""
    commands = [
        _command("-T", str(blob.path), f"{location(contestant, f'{repository}{number}')}digest={blob.digest}")
        for number, blob in enumerate(blobs)
    ]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    for process in running:
        code = process.communicate()[0]
        assert code == "201", f"a push was answered {code}"


def finish(contestant: Contestant, repository: str, blob: Blob) -> float:
    """Send a blob by PATCH, then close the upload; the seconds that closing took."""
    begun = location(contestant, repository)
    sent = subprocess.run(
        [
            "curl", "-s", "-S", "-o", "/dev/null", "-D", "-", "-X", "PATCH", "-H", "Expect:",
            "-H", "Content-Type: application/octet-stream", "-T", str(blob.path), begun.rstrip("?&"),
        ],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    after = next(line.split()[1] for line in sent.splitlines() if line.lower().startswith("location:"))
    url = str(httpx.URL(contestant.url).join(after))
    start = time.perf_counter()
    answer = httpx.put(f"{url}{'&' if '?' in url else '?'}digest={blob.digest}", timeout=600)
    assert answer.status_code == 201, answer.text
    return time.perf_counter() - start


def pull(url: str) -> float:
    """Get a blob with curl, to nowhere and unverified: the seconds it took."""
    begun = time.perf_counter()
    _curl(url, want="200")
    return time.perf_counter() - begun


def discard(url: str) -> float:
    """Get a blob with a client that never looks at the bytes (MSG_TRUNC), so that the server is what is measured."""
    parts = urlsplit(url)
    begun = time.perf_counter()
    with socket.create_connection((str(parts.hostname), parts.port or 80)) as connection:
        connection.sendall(f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(1)
        lines = head.decode("latin-1").lower().splitlines()
        assert " 200 " in lines[0], lines[0]
        left = int(next(line.split(":")[1] for line in lines if line.startswith("content-length:")))
        room = bytearray(4 * _MIB)
        while left:
            count = connection.recv_into(room, min(len(room), left), socket.MSG_TRUNC)
            assert count, "the answer is short"
            left -= count
    return time.perf_counter() - begun


def push_manifest(contestant: Contestant, repository: str, tag: str) -> str:
    """Push an image of one small layer; the digest of its manifest."""
    described = []
    for data in (b"{}", b"layer"):
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        answer = httpx.put(f"{location(contestant, repository)}digest={digest}", content=data, timeout=60)
        answer.raise_for_status()
        described.append({"mediaType": "application/octet-stream", "digest": digest, "size": len(data)})
    described[0]["mediaType"] = "application/vnd.oci.empty.v1+json"
    value = {"schemaVersion": 2, "mediaType": MANIFEST, "config": described[0], "layers": described[1:]}
    raw = json.dumps(value).encode()
    url = f"{contestant.url}/v2/{repository}/manifests/{tag}"
    httpx.put(url, content=raw, headers={"Content-Type": MANIFEST}, timeout=60).raise_for_status()
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def requests_per_second(url: str, seconds: float, connections: int = 16) -> float:
    """How often a small document can be had, over connections that are kept."""
    if shutil.which("wrk") is None:
        return _requests_per_second(url, seconds, connections)
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "-H", f"Accept: {MANIFEST}", url]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in text, text
    return float(next(line.split()[1] for line in text.splitlines() if line.startswith("Requests/sec:")))


def _requests_per_second(url: str, seconds: float, connections: int) -> float:
    """The same where wrk is not installed; this client is the slower one, so ratios come out smaller."""
    parts = urlsplit(url)
    request = f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nAccept: {MANIFEST}\r\n\r\n".encode()
    count, deadline = 0, time.perf_counter() + seconds
    with selectors.DefaultSelector() as selector:
        for _ in range(connections):
            connection = socket.create_connection((str(parts.hostname), parts.port or 80))
            selector.register(connection, selectors.EVENT_READ, bytearray())
            connection.sendall(request)
        while time.perf_counter() < deadline:
            for key, _ in selector.select(1):
                key.data.extend(key.fileobj.recv(65536))  # type: ignore[union-attr]
                head, end, body = bytes(key.data).partition(b"\r\n\r\n")
                length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
                if end and len(body) >= int(length):
                    assert b" 200 " in head.split(b"\r\n")[0], head
                    count += 1
                    key.data.clear()
                    key.fileobj.sendall(request)  # type: ignore[union-attr]
        for key in list(selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
    return count / seconds


def _command(*arguments: str) -> list[str]:
    return ["curl", "-s", "-S", "-o", "/dev/null", "-w", "%{http_code}", "-H", "Expect:", *arguments]


def _curl(*arguments: str, want: str) -> None:
    done = subprocess.run(_command(*arguments), capture_output=True, text=True)
    assert done.stdout == want, f"{arguments[-1]}: {done.stdout} {done.stderr}"
