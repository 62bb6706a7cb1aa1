"""The log as the Go checksum database's own code reads it (golang.org/x/mod/sumdb: note, tlog)."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.registry.conftest import Backend
from tests.registry.logged import ORIGIN, client, fill, logged
from tests.registry.pushing import push_image
from tests.registry.servers import StartRegistry

PROGRAM = Path(__file__).parent / "tlogpeer" / "main.go"
GOPATH = os.environ.get("STOWAGE_TEST_GOPATH", "/usr/share/gocode")
"""Where Debian's golang-golang-x-mod-dev puts its sources."""


@pytest.mark.peer
def test_go_reads_the_log(tmp_path: Path, registry_server: StartRegistry) -> None:
    go = shutil.which("go")
    if go is None or not (Path(GOPATH) / "src/golang.org/x/mod/sumdb/tlog").is_dir():
        pytest.skip("no go with golang.org/x/mod (apt: golang-go golang-golang-x-mod-dev): THE GO PEER WAS NOT ASKED")
    these = logged(Backend("filesystem", str(tmp_path / "storage")), tmp_path, registry_server)
    server = these.serve()
    with client(server) as http:
        push_image(http, "team/model", "v1")
        fill(these.tags(), 600)
        push_image(http, "team/model", "v1", b"more")
    env = {**os.environ, "GO111MODULE": "off", "GOPATH": GOPATH, "GOCACHE": str(tmp_path / "cache"), "GOFLAGS": ""}
    program = str(tmp_path / "peer")
    subprocess.run([go, "build", "-o", program, str(PROGRAM)], env=env, check=True, timeout=280)
    command = [program, f"{server.url}/transparency/", Path(these.public).read_text().strip()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{ORIGIN} 604 entries\n"
