"""``python -m benchmarks.transfers``: whole models pulled and pushed by us and by others, in turn, from one registry.

Every client ends with the files on disk. Of the others skopeo verifies what it fetches, oras (the Python client) and
curl do not: curl is the floor, the same bytes written to disk by a program that asks no questions.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx

from benchmarks import machine, report
from benchmarks.registry import contestants
from benchmarks.registry.contestants import Contestant
from benchmarks.registry.peers import peers
from benchmarks.report import Series
from tests.checkpoints.tiny import write_tiny_llama

_RESULTS = Path(__file__).parent / "results"
_GIB = 1024**3
_LAYER_BYTES = 2 * (4 * 2048**2 + 3 * 2048 * 8192)
"""Of one layer of the model that is moved, in BF16."""
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_OURS = str(Path(sys.executable).parent)

Start = Callable[[Path], AbstractContextManager[Contestant]]
"""Starts a registry that keeps everything in a folder, which it makes."""


@dataclass(frozen=True)
class Model:
    """A packed model: the layout it lies in, its bytes, and its tag."""

    layout: Path
    size: int
    tag: str = "v1"

    @classmethod
    def make(cls, folder: Path, size: int, shards: int) -> Model:
        """A Llama of about `size` bytes with random weights, in `shards` files."""
        checkpoint = folder / f"checkpoint-{shards}"
        write_tiny_llama(
            checkpoint, layers=max(1, size // _LAYER_BYTES), hidden=2048, heads=16, kv_heads=16, intermediate=8192,
            shards=shards,
        )  # fmt: skip
        layout = folder / f"layout-{shards}"
        _run([f"{_OURS}/packager", "pack", str(checkpoint), f"oci:{layout}:v1", "--format", "safetensors"])
        size = sum(path.stat().st_size for path in checkpoint.iterdir())
        shutil.rmtree(checkpoint)
        return cls(layout, size)


class Client(Protocol):
    """A program that moves models."""

    name: str

    def pull(self, source: str, out: Path) -> list[str]:
        """The command that brings ``HOST/NAME:TAG`` to the folder `out`."""

    def push(self, layout: Path, target: str) -> list[str] | None:
        """The command that brings the model in `layout` to ``HOST/NAME:TAG``; None if it cannot push layouts."""


class Stowage:
    name = "stowage"

    def pull(self, source: str, out: Path) -> list[str]:
        return [f"{_OURS}/runner", "pull", source, "--store", str(out)]

    def push(self, layout: Path, target: str) -> list[str] | None:
        return [f"{_OURS}/packager", "push", f"oci:{layout}:v1", target]


class Skopeo:
    _COPY = ("skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false", "--dest-tls-verify=false")

    def __init__(self) -> None:
        self.name = f"skopeo {machine.version('skopeo').split()[-1]}"

    def pull(self, source: str, out: Path) -> list[str]:
        return [*self._COPY, f"docker://{source}", f"oci:{out}:v1"]

    def push(self, layout: Path, target: str) -> list[str] | None:
        return [*self._COPY, f"oci:{layout}:v1", f"docker://{target}"]


class Oras:
    """The Python client, which checks no digests."""

    name = "oras-py, unverified"
    _PULL = "import sys, oras.client as c; c.OrasClient(insecure=True).pull(target=sys.argv[1], outdir=sys.argv[2])"

    def pull(self, source: str, out: Path) -> list[str]:
        return [sys.executable, "-c", self._PULL, source, str(out)]

    def push(self, layout: Path, target: str) -> list[str] | None:
        return None


class Curl:
    """One curl for all blobs, four at a time as we do it."""

    name = "curl, unverified"

    def pull(self, source: str, out: Path) -> list[str]:
        place, _, tag = source.rpartition(":")
        host, _, name = place.partition("/")
        url = f"http://{host}/v2/{name}"
        manifest = httpx.get(f"{url}/manifests/{tag}", headers={"Accept": _MANIFEST}, timeout=60).json()
        out.mkdir(parents=True, exist_ok=True)
        command = ["curl", "-s", "-S", "-f", "-L", "--parallel", "--parallel-max", "4"]
        for digest in {item["digest"] for item in (manifest["config"], *manifest["layers"])}:
            command += ["-o", str(out / digest.replace(":", "-")), f"{url}/blobs/{digest}"]
        return command

    def push(self, layout: Path, target: str) -> list[str] | None:
        return None


@dataclass(frozen=True)
class Cost:
    """What one command cost: seconds on the clock and of processors, and its largest resident set in MiB."""

    seconds: float
    processor: float
    peak: float


def clients() -> list[Client]:
    """Us, and whoever is installed."""
    found: list[Client] = [Stowage()]
    if machine.version("skopeo"):
        found.append(Skopeo())
    return [*found, Oras(), Curl()]


def measure(command: list[str]) -> Cost:
    """Run a command to its end. Raises `RuntimeError` if it fails."""
    begun = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        peak = 0
        while True:
            peak = max(peak, _peak(process.pid))
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            time.sleep(0.01)
        seconds = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise RuntimeError(f"{command[0]}: {log.read()[-2000:].decode(errors='replace')}")
    return Cost(seconds, usage.ru_utime + usage.ru_stime, peak / 1024)


def _peak(pid: int) -> int:
    """Largest resident set so far, in KiB; 0 once the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def pulls(model: Model, what: str, start: Start, rounds: int, folder: Path) -> Iterator[Series]:
    """A model from a registry to the disk."""
    with start(folder / "pulled") as rival:
        source = f"{rival.url.removeprefix('http://')}/bench/model:v1"
        _run([f"{_OURS}/packager", "push", f"oci:{model.layout}:v1", source])
        found = _Found(f"pull of {what}", model)
        for _ in range(rounds):
            for client in clients():
                out = folder / "out"
                found.add(client.name, measure(client.pull(source, out)))
                shutil.rmtree(out)
        yield from found.series
    shutil.rmtree(folder / "pulled")


def pushes(model: Model, what: str, start: Start, rounds: int, folder: Path) -> Iterator[Series]:
    """A model from the disk to a registry that was started for it: skopeo remembers where blobs are, and would mount
    them from one repository to another."""
    found = _Found(f"push of {what}", model)
    for _ in range(rounds):
        for client in clients():
            with start(folder / "pushed") as rival:
                command = client.push(model.layout, f"{rival.url.removeprefix('http://')}/bench/model:v1")
                if command is not None:
                    found.add(client.name, measure(command))
            shutil.rmtree(folder / "pushed")
    yield from found.series


class _Found:
    """The measurements of one kind of transfer."""

    def __init__(self, what: str, model: Model) -> None:
        self._model = model
        self.series = (
            Series(what, "MB/s"),
            Series(f"{what}, processor time of the client", "s/GiB", more_is_better=False),
            Series(f"{what}, peak memory of the client", "MiB", more_is_better=False),
        )

    def add(self, name: str, cost: Cost) -> None:
        """Put down what one command cost, and wait until its pages are written: not at the next one's expense."""
        rates = (self._model.size / 1e6 / cost.seconds, cost.processor * _GIB / self._model.size, cost.peak)
        for series, value in zip(self.series, rates, strict=True):
            series.add(name, value)
        os.sync()


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")


def main() -> None:
    """Take what is asked for from the command line."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    about, series = machine.describe(), list[Series]()
    settings = {"size_mib": options.size, "rounds": options.rounds, "clients": [item.name for item in clients()]}
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.scratch) as scratch:
        folder = Path(scratch)
        for shards in (1, 4):
            model = Model.make(folder, options.size * 1024 * 1024, shards)
            for name, start in _registries().items():
                what = f"{model.size / 1e9:.2f} GB in {shards} file{'s' * (shards > 1)}, {name}"
                for made in (pulls, pushes):
                    for item in made(model, what, start, options.rounds, folder):
                        print("\n".join(report.rows(item)), flush=True)
                        series.append(item)
                        report.write(options.out, "transfers", series, settings, about)
            shutil.rmtree(model.layout)
    print(f"written: {options.out / 'transfers'}.md")


def _registries() -> dict[str, Start]:
    found: dict[str, Start] = {"stowage": lambda folder: contestants.ours(_made(folder), None, 1)}
    for peer in peers():
        found[peer.name] = lambda folder, peer=peer: contestants.peer(peer, _made(folder), None)
    return found


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transfers", description=__doc__)
    parser.add_argument("--size", type=int, default=2048, metavar="MIB", help="size of the model (2048)")
    parser.add_argument("--rounds", type=int, default=3, help="turns each client gets (3)")
    parser.add_argument("--out", type=Path, default=_RESULTS, help="where the results go")
    parser.add_argument("--scratch", help="where everything lies; a disk, not a tmpfs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
