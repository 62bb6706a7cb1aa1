"""The programs that move models. Every one ends with the files on disk.

Of the others skopeo, crane and podman verify what they fetch; oras (the Python client) and curl do not: curl is the
floor, the same bytes moved by a program that asks no questions. curl followed by openssl is what a script would do to
be as sure as we are.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import httpx

from benchmarks import machine
from benchmarks.transfers.models import OURS

MANIFEST = "application/vnd.oci.image.manifest.v1+json"


class Puller(Protocol):
    """A program that fetches models."""

    name: str
    once: bool
    """Whether it has one turn only: it takes long, and is no rival."""

    def pull(self, source: str, out: Path) -> list[str]:
        """The command that brings ``HOST/NAME:TAG`` to the folder `out`."""


class Client(Puller, Protocol):
    """A program that moves models both ways."""

    def push(self, layout: Path, tag: str, target: str) -> list[str]:
        """The command that brings a model in `layout` to ``HOST/NAME:TAG``."""


class Stowage:
    name = "stowage"
    once = False

    def pull(self, source: str, out: Path) -> list[str]:
        return [f"{OURS}/runner", "pull", source, "--store", str(out)]

    def push(self, layout: Path, tag: str, target: str) -> list[str]:
        return [f"{OURS}/packager", "push", f"oci:{layout}:{tag}", target]


class Skopeo:
    once = False
    _COPY = ("skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false", "--dest-tls-verify=false")

    def __init__(self) -> None:
        self.name = f"skopeo {machine.version('skopeo').split()[-1]}"

    def pull(self, source: str, out: Path) -> list[str]:
        return [*self._COPY, f"docker://{source}", f"oci:{out}:v1"]

    def push(self, layout: Path, tag: str, target: str) -> list[str]:
        return [*self._COPY, f"oci:{layout}:{tag}", f"docker://{target}"]


class Crane:
    once = False

    def __init__(self) -> None:
        self.name = f"crane {machine.version('crane', 'version')}"

    def pull(self, source: str, out: Path) -> list[str]:
        return ["crane", "pull", "--insecure", "--format=oci", source, str(out)]

    def push(self, layout: Path, tag: str, target: str) -> list[str]:
        return ["crane", "push", "--insecure", str(layout), target]


class Podman:
    """Pulls images and unpacks them into a storage of its own."""

    once = True

    def __init__(self) -> None:
        self.name = f"podman {machine.version('podman').split()[-1]}, an image"

    def pull(self, source: str, out: Path) -> list[str]:
        image = f"{source.rpartition(':')[0]}:image"
        return [*self._command(out), "pull", "-q", "--tls-verify=false", image]

    @staticmethod
    def _command(out: Path) -> list[str]:
        places = ["--root", str(out / "root"), "--runroot", str(out / "run"), "--storage-driver", "vfs"]
        return ["podman", *places, "--cgroup-manager", "cgroupfs", "--events-backend", "none"]

    @classmethod
    def works(cls) -> bool:
        """Whether it is there, and runs here."""
        if not machine.version("podman"):
            return False
        with tempfile.TemporaryDirectory(prefix="podman-", ignore_cleanup_errors=True) as folder:
            return subprocess.run([*cls._command(Path(folder)), "info"], capture_output=True).returncode == 0


class Oras:
    """The Python client, which checks no digests."""

    name = "oras-py, unverified"
    once = True
    _PULL = "import sys, oras.client as c; c.OrasClient(insecure=True).pull(target=sys.argv[1], outdir=sys.argv[2])"
    _PUSH = (
        "import sys, oras.client as c; "
        "c.OrasClient(insecure=True).push(target=sys.argv[1], files=sys.argv[2:], disable_path_validation=True)"
    )

    def pull(self, source: str, out: Path) -> list[str]:
        return [sys.executable, "-c", self._PULL, source, str(out)]

    def push(self, layout: Path, tag: str, target: str) -> list[str]:
        files = [str(path) for path in blobs(layout, tag)[1:]]
        return [sys.executable, "-c", self._PUSH, target, *files]


class Curl:
    """One curl for all blobs, four at a time as we do it. A push is only the blobs, each in one PUT."""

    name = "curl, unverified"
    once = False

    def pull(self, source: str, out: Path) -> list[str]:
        out.mkdir(parents=True, exist_ok=True)
        return self._get(source, lambda digest: out / digest.replace(":", "-"))

    def read(self, source: str) -> list[str]:
        """The command that pulls, and keeps nothing."""
        return self._get(source, lambda _: Path("/dev/null"))

    @staticmethod
    def _get(source: str, place: Callable[[str], Path]) -> list[str]:
        repository, _, tag = source.rpartition(":")
        host, _, name = repository.partition("/")
        url = f"http://{host}/v2/{name}"
        manifest = httpx.get(f"{url}/manifests/{tag}", headers={"Accept": MANIFEST}, timeout=60).json()
        command = ["curl", "-s", "-S", "-f", "-L", "--parallel", "--parallel-max", "4"]
        for digest in {item["digest"] for item in (manifest["config"], *manifest["layers"])}:
            command += ["-o", str(place(digest)), f"{url}/blobs/{digest}"]
        return command

    def push(self, layout: Path, tag: str, target: str) -> list[str]:
        host, _, name = target.rpartition(":")[0].partition("/")
        command = ["curl", "-s", "-S", "-f", "--parallel", "--parallel-max", "4", "-H", "Expect:"]
        for path in blobs(layout, tag):
            begun = httpx.post(f"http://{host}/v2/{name}/blobs/uploads/", timeout=60)
            url = httpx.URL(f"http://{host}").join(begun.headers["location"])
            url = url.copy_add_param("digest", f"sha256:{path.name}")
            command += ["-o", "/dev/null", "-T", str(path), str(url)]
        return command


class CheckedCurl:
    """Curl, and then the SHA-256 of every file by openssl, four at a time."""

    name = "curl, then openssl"
    once = False
    _SCRIPT = (
        '"$@" && find "$OUT" -type f -printf "%f\\0" | xargs -0 -P 4 -I {} '
        'sh -c \'test "sha256-$(openssl dgst -sha256 -r "$OUT/$1" | cut -c 1-64)" = "$1"\' sh {}'
    )

    def pull(self, source: str, out: Path) -> list[str]:
        return ["env", f"OUT={out}", "sh", "-c", self._SCRIPT, "sh", *Curl().pull(source, out)]


def clients() -> list[Client]:
    """Us, and whoever is installed."""
    found: list[Client] = [Stowage()]
    if machine.version("skopeo"):
        found.append(Skopeo())
    if machine.version("crane", "version"):
        found.append(Crane())
    return [*found, Oras(), Curl()]


def blobs(layout: Path, tag: str) -> list[Path]:
    """The files of a model's blobs in a layout, the config's first."""
    index = json.loads((layout / "index.json").read_text())
    reference = "org.opencontainers.image.ref.name"
    entry = next(item for item in index["manifests"] if item.get("annotations", {}).get(reference) == tag)
    manifest = json.loads(_path(layout, entry["digest"]).read_text())
    return [_path(layout, item["digest"]) for item in (manifest["config"], *manifest["layers"])]


def _path(layout: Path, digest: str) -> Path:
    return layout / "blobs" / "sha256" / digest.removeprefix("sha256:")
