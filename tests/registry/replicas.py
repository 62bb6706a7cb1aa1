"""Several registries behind nginx, with the configuration that `deploy/nginx` ships."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.registry.servers import ROOT, RunningRegistry, StartRegistry

CONFIGURATION = ROOT / "deploy" / "nginx" / "registry.conf"

_NGINX = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/registry.conf;
}}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Replicas:
    """Replicas that can be killed and started again, each at its own address, and nginx before them."""

    start: StartRegistry
    storage: str
    env: dict[str, str]
    options: tuple[str, ...]
    host: str
    addresses: list[str]
    running: list[RunningRegistry] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def revive(self, number: int) -> None:
        """Start a replica at its address."""
        listen = ("--listen", self.addresses[number])
        self.running[number] = self.start(self.storage, *listen, *self.options, env=self.env)

    def __getattr__(self, name: str) -> object:  # `log` and `process`, as of a single registry: of the first
        return getattr(self.running[0], name)


@contextmanager
def replicas(
    start: StartRegistry, folder: Path, storage: str, env: dict[str, str], *options: str, count: int = 3
) -> Iterator[Replicas]:
    """nginx in front of `count` registries over one store. Skips the test where nginx is not installed."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed (apt-get install nginx): NOTHING ABOUT REPLICAS BEHIND IT WAS TESTED")
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(count)]
    these = Replicas(start, storage, env, options, f"127.0.0.1:{free_port()}", addresses)
    for address in addresses:
        these.running.append(start(storage, "--listen", address, *options, env=env))
    (folder / "nginx.conf").write_text(_NGINX.format(folder=folder))
    shutil.copy(CONFIGURATION, folder / "registry.conf")
    lines = [f"server {address} max_fails=1 fail_timeout=1s;\n" for address in addresses]
    (folder / "registry-replicas.conf").write_text("".join(lines))
    (folder / "registry-listen.conf").write_text(f"listen {these.host};\n")
    with subprocess.Popen([program, "-p", str(folder), "-c", "nginx.conf", "-e", str(folder / "error.log")]) as nginx:
        try:
            _wait(these.url, nginx, folder)
            yield these
        finally:
            nginx.kill()


def _wait(url: str, nginx: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            if httpx.get(f"{url}/healthz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        if nginx.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"nginx did not start:\n{(folder / 'error.log').read_text()}")
        time.sleep(0.05)
