"""The servers that are measured, and the S3 service some of them use; all on loopback."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import boto3
import httpx
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from benchmarks.memory import peak
from benchmarks.registry.peers import KEY, S3, SECRET, Peer, configuration

_ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Contestant:
    """A running registry."""

    name: str
    url: str
    process: subprocess.Popen[bytes]

    def _pids(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [self.process.pid, *map(int, children)]

    def cpu_seconds(self) -> float:
        """Processor time used so far, in user and system mode."""
        total = 0
        for pid in self._pids():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / os.sysconf("SC_CLK_TCK")

    def peak_mib(self) -> float:
        """Most resident memory there was since the last `reset_peak`."""
        return sum(map(peak, self._pids()))

    def reset_peak(self) -> None:
        """Begin a new peak."""
        for pid in self._pids():
            Path(f"/proc/{pid}/clear_refs").write_text("5")


@contextmanager
def ours(
    folder: Path, s3: S3 | None, workers: int, *, redirect: bool = False, prefix: str = "ours"
) -> Iterator[Contestant]:
    """This registry, with no line for each request, and unless `redirect` without redirects, as its peer."""
    storage = f"s3://{s3.bucket}/{prefix}" if s3 else str(folder / prefix)
    port = _port()
    config = folder / f"registry-{port}.toml"
    config.write_text(
        f'[server]\nstorage = "{storage}"\nlisten = "127.0.0.1:{port}"\nworkers = {workers}\n'
        f"redirect = {str(redirect).lower()}\n"
        '[log]\nformat = "none"\n'
    )
    command = [sys.executable, "-c", "from registry.cli import main; main()", "serve", "--config", str(config)]
    with _running("stowage", command, port, s3, folder) as contestant:
        yield contestant


@contextmanager
def peer(rival: Peer, folder: Path, s3: S3 | None) -> Iterator[Contestant]:
    """Another registry, configured as its documentation has it, without redirects."""
    port = _port()
    config = folder / f"peer-{port}.yml"
    config.write_text(json.dumps(configuration(rival, port, folder / f"peer-{port}", s3)))  # JSON is YAML
    with _running(rival.name, [rival.program, "serve", str(config)], port, s3, folder) as contestant:
        yield contestant


@contextmanager
def _running(name: str, command: list[str], port: int, s3: S3 | None, folder: Path) -> Iterator[Contestant]:
    # Everything is on loopback and in the clear; distribution's S3 driver does not start where this is set.
    env = {key: value for key, value in os.environ.items() if key != "AWS_CA_BUNDLE"}
    log = folder / f"{name.replace(' ', '-')}-{port}.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            command, cwd=_ROOT, stdout=out, stderr=out, env={**env, **(s3.env if s3 else {})}
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            with suppress(httpx.TransportError):
                if httpx.get(f"{url}/v2/", timeout=10).status_code == 200:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name} did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield Contestant(name, url, process)
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def seaweedfs(folder: Path) -> Iterator[S3]:
    """SeaweedFS with one bucket."""
    data = folder / "seaweedfs"
    data.mkdir()
    master, volume, filer, port = (_port(10_000) for _ in range(4))
    identity = {
        "name": "bench",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    command = [
        str(Path(sysconfig.get_path("scripts")) / "weed"), "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        f"-dir={data}", f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", "-filer", "-s3",
        f"-s3.port={port}", f"-s3.config={folder}/s3.json", "-master.volumeSizeLimitMB=1024", "-volume.max=60",
        "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false",
    ]  # fmt: skip
    service = S3(f"http://127.0.0.1:{port}", "models")
    with (folder / "weed.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            _make_bucket(service)
            yield service
        finally:
            process.kill()


def _make_bucket(service: S3) -> None:
    client = boto3.client(
        "s3", endpoint_url=service.endpoint, aws_access_key_id=KEY, aws_secret_access_key=SECRET,
        region_name="us-east-1", config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while True:
        try:
            client.create_bucket(Bucket=service.bucket)
            client.put_object(Bucket=service.bucket, Key="started", Body=b"")
            return
        except (BotoCoreError, ClientError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _port(beside: int = 0) -> int:
    """A free port; with `beside`, one whose neighbour that far above is free too."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as one, socket.socket() as other:
            try:
                one.bind(("127.0.0.1", port))
                other.bind(("127.0.0.1", port + beside) if beside else ("127.0.0.1", 0))
            except OSError:
                continue
            return port
