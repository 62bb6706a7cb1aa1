"""Real servers for tests: an S3 service (SeaweedFS) and the registry itself, on loopback and free ports."""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import boto3
import httpx
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

ROOT = Path(__file__).resolve().parents[2]
_KEY, _SECRET = "test-access-key", "test-secret-key"


@dataclass(frozen=True)
class S3:
    """A running S3 service with one bucket. `env` holds the AWS variables that point any SDK at it."""

    endpoint: str
    bucket: str
    env: dict[str, str]

    def storage(self) -> str:
        """A ``--storage`` value with a prefix of its own."""
        return f"s3://{self.bucket}/{secrets.token_hex(6)}"


@dataclass
class RunningRegistry:
    """A registry process. `host` is ``127.0.0.1:PORT``, `url` the same with ``http://``, or ``https://`` if it speaks
    TLS."""

    process: subprocess.Popen[str]
    host: str
    storage: str
    log: Path
    scheme: str = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}"

    def kill(self) -> None:
        """End it the hard way, workers included."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM, and its exit status."""
        self.process.terminate()
        return self.process.wait(timeout=60)


def _ports(count: int) -> list[int]:
    """Free ports whose neighbours 10 000 above are free too, where SeaweedFS puts its gRPC servers."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(20000, 32000)
        if port not in found and all(map(_is_free, (port, port + 10000))):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A real S3 service for the whole session; use `S3.storage` for a prefix of your own."""
    folder = tmp_path_factory.mktemp("seaweedfs")
    master, volume, filer, port = _ports(4)
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    identity = {"name": "t", "credentials": [{"accessKey": _KEY, "secretKey": _SECRET}], "actions": actions}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    command = [
        str(Path(sysconfig.get_path("scripts")) / "weed"), "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        f"-dir={folder}", f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", "-filer", "-s3",
        f"-s3.port={port}", f"-s3.config={folder}/s3.json", "-master.volumeSizeLimitMB=512", "-volume.max=20",
        # These two have fixed ports, on which a second test session would fail; and tests call nobody outside.
        "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false",
    ]  # fmt: skip
    env = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": _KEY,
        "AWS_SECRET_ACCESS_KEY": _SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            _make_bucket(process, env, "models", folder / "log")
            yield S3(env["AWS_ENDPOINT_URL"], "models", env)
        finally:
            process.kill()
            for number in (master, volume, filer, port):  # sockets it would have removed itself, given half a minute
                for left in Path(tempfile.gettempdir()).glob(f"seaweedfs-*-grpc-{number + 10000}.sock"):
                    left.unlink(missing_ok=True)


def s3_test_client(env: dict[str, str]):
    """A boto3 client of the test's own."""
    return boto3.client(
        "s3",
        endpoint_url=env["AWS_ENDPOINT_URL"],
        aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
        region_name=env["AWS_REGION"],
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            retries={"total_max_attempts": 1},
            connect_timeout=2,
            read_timeout=10,
        ),
    )


def _make_bucket(process: subprocess.Popen[bytes], env: dict[str, str], bucket: str, log: Path) -> None:
    client, deadline = s3_test_client(env), time.monotonic() + 60
    while True:
        try:
            client.create_bucket(Bucket=bucket)
            client.put_object(Bucket=bucket, Key="started", Body=b"")
            return
        except (BotoCoreError, ClientError):
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError(f"SeaweedFS did not start:\n{log.read_text()[-3000:]}") from None
            time.sleep(0.3)


StartRegistry = Callable[..., RunningRegistry]


@pytest.fixture(scope="session")
def session_registries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartRegistry]:
    """As `registry_server`, for servers that live as long as the session."""
    yield from _starter(tmp_path_factory.mktemp("registries"))


@pytest.fixture
def registry_server(tmp_path: Path) -> Iterator[StartRegistry]:
    """Starts registries that end with the test: ``registry_server(storage, *options, env=...)`` returns a
    `RunningRegistry`. For ``s3://`` storage pass ``env=s3.env``; `first` is Python that the process runs first."""
    folder = tmp_path / "registry-logs"
    folder.mkdir()
    yield from _starter(folder)


def _starter(folder: Path) -> Iterator[StartRegistry]:
    started: list[RunningRegistry] = []

    def start(
        storage: str | Path, *options: str, env: dict[str, str] | None = None, first: str = ""
    ) -> RunningRegistry:
        log = folder / f"{len(started)}.log"
        program = f"{first}\nfrom registry.cli import main; main()"
        command = [sys.executable, "-c", program, "serve", "--storage", str(storage)]
        with log.open("w") as stderr:
            process = subprocess.Popen(
                [*command, "--listen", "127.0.0.1:0", *options],
                cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True, env={**os.environ, **(env or {})},
                start_new_session=True,
            )  # fmt: skip
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            process.kill()
            process.wait()
            raise RuntimeError(f"the registry did not start:\n{log.read_text()}")
        scheme, _, rest = line.split("listening on ")[1].partition("://")
        running = RunningRegistry(process, rest.split()[0], str(storage), log, scheme)
        started.append(running)
        _wait(running)
        return running

    try:
        yield start
    finally:
        for running in started:
            running.kill()
            if running.process.stdout:
                running.process.stdout.close()


def _wait(running: RunningRegistry) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            if httpx.get(f"{running.url}/healthz", timeout=5, verify=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        if time.monotonic() > deadline or running.process.poll() is not None:
            raise RuntimeError(f"the registry did not answer:\n{running.log.read_text()}")
        time.sleep(0.05)
