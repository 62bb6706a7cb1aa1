"""``python -m benchmarks.audit``: how long an audit of many artifacts takes, the first time and later.

A real ``registry serve`` over a folder is filled with small artifacts: eight of ten signed in both forms by the key
that the policy names, one by another key, one not at all. Then ``registry audit`` walks it: for the first time, again
with what it remembers, under another policy, and after one in a hundred has got a further signature.
"""

from __future__ import annotations

import argparse
import base64
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import urllib3

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.manifest import EMPTY_CONFIG, Manifest, canonical_json
from artifact.remote import RemoteRepository
from benchmarks import machine, report
from benchmarks.cost import Cost, measure
from supplychain.bundle import Bundle
from supplychain.dsse import Envelope, pae
from supplychain.evidence import signature_tag
from supplychain.keys import PrivateKey
from supplychain.sign import sign
from supplychain.simplesigning import SIGNATURE, SimpleSigning
from supplychain.statement import COSIGN_SIGN, Statement

_BIN = Path(sys.executable).parent
_RESULTS = Path(__file__).parent / "results"
_POLICY = """version: 1
authorities: {{release: {{key: "{key}"}}}}
rules:
  - match: ["{match}"]
    require: {{any-of: [release]}}
    mode: warn
"""


def main() -> None:
    """Take what is asked for from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audit", description=__doc__)
    parser.add_argument("--artifacts", type=int, default=10_000, help="how many (10000)")
    parser.add_argument("--repositories", type=int, default=100, help="in how many repositories (100)")
    parser.add_argument("--concurrency", type=int, default=8, help="requests at a time (8)")
    parser.add_argument("--out", type=Path, default=_RESULTS, help="where the results go")
    parser.add_argument("--scratch", help="where the registry keeps its folder; a disk, not a tmpfs")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the registry is stopped
    about = machine.describe()
    with tempfile.TemporaryDirectory(prefix="bench-audit-", dir=options.scratch) as scratch:
        folder = Path(scratch)
        with _registry(folder) as host:
            series = _measure(host, folder, options)
    for item in series:
        print("\n".join(report.rows(item)))
    settings: dict[str, object] = {
        "artifacts": options.artifacts, "repositories": options.repositories, "concurrency": options.concurrency,
    }  # fmt: skip
    report.write(options.out, "audit", series, settings, about)
    print(f"written: {options.out / 'audit.md'}")


def _measure(host: str, folder: Path, options: argparse.Namespace) -> list[report.Series]:
    release, stranger = PrivateKey.new(), PrivateKey.new()
    (folder / "release.pub").write_bytes(release.public.pem)
    (folder / "stranger.pub").write_bytes(stranger.public.pem)
    (folder / "policy.yaml").write_text(_POLICY.format(key=folder / "release.pub", match="**"))
    (folder / "other.yaml").write_text(_POLICY.format(key=folder / "stranger.pub", match="**"))
    began = time.monotonic()
    _fill(host, options.artifacts, options.repositories, release, stranger)
    print(f"filled in {time.monotonic() - began:.0f} s", flush=True)
    spent = report.Series(f"audit of {options.artifacts} artifacts", "s", more_is_better=False)
    used = report.Series("processor time of the audit", "s", more_is_better=False)
    asked = report.Series("requests", "1", more_is_better=False)
    memory = report.Series("most memory of the audit", "MiB", more_is_better=False)
    rounds = [("first walk", "policy.yaml"), ("nothing changed", "policy.yaml"), ("another policy", "other.yaml")]
    for name, policy in (*rounds, ("one in a hundred changed", "policy.yaml")):
        if name.startswith("one"):
            _change(host, options.artifacts, options.repositories, stranger)
        cost, requests = _audit(host, folder, policy, options)
        for item, value in ((spent, cost.seconds), (used, cost.processor), (asked, requests), (memory, cost.peak)):
            item.add(name, value)
        shown = f"{cost.seconds:.1f} s, {cost.processor:.1f} s of a processor, {requests} requests, {cost.peak:.0f} MiB"
        print(f"{name}: {shown}", flush=True)
    return [spent, used, asked, memory]


def _audit(host: str, folder: Path, policy: str, options: argparse.Namespace) -> tuple[Cost, int]:
    command = [
        str(_BIN / "registry"), "audit", host, "--policy", str(folder / policy), "--state", str(folder / "state"),
        "--output", f"jsonl={folder / 'audit.jsonl'}", "--concurrency", str(options.concurrency),
    ]  # fmt: skip
    cost = measure(command)
    records = [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]
    counts = {status: sum(record["status"] == status for record in records) for status in ("signed", "unknown")}
    assert len(records) == options.artifacts, cost.said
    assert sum(counts.values()) == options.artifacts - len(range(9, options.artifacts, 10)), counts
    return cost, int(cost.said.rpartition(" requests")[0].rpartition(" ")[2])


def _fill(host: str, artifacts: int, repositories: int, release: PrivateKey, stranger: PrivateKey) -> None:
    filler = _Filler(host)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(filler.prepare, range(repositories)))
        keys = (stranger if number % 10 == 8 else None if number % 10 == 9 else release for number in range(artifacts))
        for _ in pool.map(lambda item: filler.add(item[0], item[0] % repositories, item[1]), enumerate(keys)):
            pass


def _change(host: str, artifacts: int, repositories: int, key: PrivateKey) -> None:
    for number in range(0, artifacts, 100):
        repository = RemoteRepository(host, _name(number % repositories))
        sign(repository, repository.resolve(f"v{number}"), key)


def _name(number: int) -> str:
    return f"team-{number % 10}/model-{number}"


class _Filler:
    """Sends artifacts with as few requests as the protocol allows."""

    def __init__(self, host: str) -> None:
        self._base = f"http://{host}/v2"
        self._pool = urllib3.PoolManager(maxsize=8)

    def prepare(self, repository: int) -> None:
        """What all artifacts of a repository share."""
        for content in (EMPTY_CONFIG, b"weights"):
            self._blob(_name(repository), content, "application/octet-stream")

    def add(self, number: int, repository: int, key: PrivateKey | None) -> None:
        """One artifact, signed in both forms if there is a key."""
        name = _name(repository)
        config = Descriptor.of(EMPTY_CONFIG, mediatypes.MODEL_CONFIG)
        manifest = Manifest(
            config, (Descriptor.of(b"weights", mediatypes.MODEL_WEIGHT),), mediatypes.MODEL_MANIFEST,
            annotations={"number": str(number)},
        )  # fmt: skip
        subject = self._manifest(name, manifest, f"v{number}")
        if key is None:
            return
        payload = Statement.about(subject.digest, COSIGN_SIGN).to_bytes()
        envelope = Envelope(payload, mediatypes.IN_TOTO, (key.sign(pae(mediatypes.IN_TOTO, payload)),))
        layer = self._blob(name, Bundle(envelope, hint=key.public.hint).to_bytes(), mediatypes.SIGSTORE_BUNDLE)
        empty = Descriptor.of(EMPTY_CONFIG, mediatypes.EMPTY)
        self._manifest(name, Manifest(empty, (layer,), mediatypes.SIGSTORE_BUNDLE, subject), None)
        signed = SimpleSigning(subject.digest, name).to_bytes()
        blob = self._blob(name, signed, mediatypes.SIMPLE_SIGNING)
        layer = Descriptor(
            blob.media_type, blob.digest, blob.size, {SIGNATURE: base64.b64encode(key.sign(signed)).decode()}
        )
        image = self._blob(name, canonical_json({"rootfs": {"diff_ids": [str(blob.digest)]}}), mediatypes.IMAGE_CONFIG)
        self._manifest(name, Manifest(image, (layer,)), signature_tag(subject.digest))

    def _blob(self, name: str, content: bytes, media_type: str) -> Descriptor:
        descriptor = Descriptor.of(content, media_type)
        self._send("POST", f"{name}/blobs/uploads/?digest={descriptor.digest}", content, "application/octet-stream")
        return descriptor

    def _manifest(self, name: str, manifest: Manifest, tag: str | None) -> Descriptor:
        raw = manifest.to_bytes()
        descriptor = Descriptor.of(raw, manifest.media_type)
        self._send("PUT", f"{name}/manifests/{tag or descriptor.digest}", raw, manifest.media_type)
        return descriptor

    def _send(self, method: str, path: str, body: bytes, kind: str) -> None:
        answer = self._pool.request(method, f"{self._base}/{path}", body=body, headers={"Content-Type": kind})
        assert answer.status == 201, answer.data


@contextmanager
def _registry(folder: Path) -> Iterator[str]:
    command = [str(_BIN / "registry"), "serve", "--storage", str(folder / "storage"), "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield line.split("listening on http://")[1].split()[0]
    finally:
        process.terminate()
        process.wait(60)


if __name__ == "__main__":
    main()
