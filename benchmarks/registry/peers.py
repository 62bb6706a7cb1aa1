"""Other registries that are on PATH, and how each is configured."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

KEY, SECRET = "bench-access", "bench-secret"

_NAMES = ("docker-registry", "registry", "distribution", "zot", "zot-minimal")


@dataclass(frozen=True)
class S3:
    """A running S3 service."""

    endpoint: str
    bucket: str

    @property
    def env(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@dataclass(frozen=True)
class Peer:
    """A program. `kind` is ``distribution`` or ``zot``, `name` has its version too."""

    kind: str
    name: str
    program: str


def peers() -> list[Peer]:
    """Every build of distribution and of zot on PATH, each version once; of the same version the first."""
    found: dict[str, Peer] = {}
    ours = Path(sys.executable).resolve().parent
    for name in _NAMES:
        for folder in os.environ.get("PATH", "").split(os.pathsep):
            program = shutil.which(name, path=folder)
            if program is None or Path(program).parent.resolve() in (ours, Path(sys.executable).parent.resolve()):
                continue
            peer = _recognised(program)
            if peer is not None:
                found.setdefault(peer.name, peer)
    return list(found.values())


def _recognised(program: str) -> Peer | None:
    """What a program says it is: distribution prints ``NAME MODULE VERSION``, zot a line of JSON."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    for line in (done.stdout + done.stderr).splitlines():
        if "distribution/distribution" in line or "docker/distribution" in line:
            return Peer("distribution", f"distribution {line.split()[-1]}", program)
        if line.startswith("{") and "distribution-spec" in line:
            version = str(json.loads(line).get("commit") or "unknown")
            return Peer("zot", f"zot {version}", program)
    return None


def configuration(peer: Peer, port: int, folder: Path, s3: S3 | None) -> dict[str, object]:
    """What the program reads: a listener on loopback, and its storage in `folder` or, under its name, in the bucket."""
    return (_distribution if peer.kind == "distribution" else _zot)(port, folder, s3)


def _distribution(port: int, folder: Path, s3: S3 | None) -> dict[str, object]:
    storage: dict[str, object] = {"filesystem": {"rootdirectory": str(folder)}}
    if s3 is not None:
        storage = {
            "s3": {
                "accesskey": KEY, "secretkey": SECRET, "region": "us-east-1", "regionendpoint": s3.endpoint,
                "forcepathstyle": True, "bucket": s3.bucket, "secure": False, "v4auth": True,
                "rootdirectory": f"/{folder.name}",
            }
        }  # fmt: skip
    return {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {**storage, "redirect": {"disable": True}, "delete": {"enabled": True}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }


def _zot(port: int, folder: Path, s3: S3 | None) -> dict[str, object]:
    # Without deduplication, for which its S3 driver needs a database beside it.
    storage: dict[str, object] = {"rootDirectory": str(folder), "gc": False, "dedupe": False}
    if s3 is not None:
        storage["storageDriver"] = {
            "name": "s3", "rootdirectory": f"/{folder.name}", "region": "us-east-1", "bucket": s3.bucket,
            "regionendpoint": urlsplit(s3.endpoint).netloc, "forcepathstyle": True, "secure": False,
            "skipverify": False, "accesskey": KEY, "secretkey": SECRET,
        }  # fmt: skip
    return {
        "distSpecVersion": "1.1.1",
        "storage": storage,
        "http": {"address": "127.0.0.1", "port": str(port)},
        "log": {"level": "error"},
    }
