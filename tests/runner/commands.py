"""The runner as a user starts it, and what can be seen of it from outside."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx

BIN = Path(sys.executable).parent


def environment(store: Path, **more: str) -> dict[str, str]:
    """What a command of ours sees of this process's environment."""
    kept = {key: value for key, value in os.environ.items() if key in ("LANG", "LC_ALL", "TMPDIR")}
    return {**kept, "PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(store.parent), "STOWAGE_STORE": str(store), **more}


def call(
    store: Path, *arguments: str, status: int = 0, stdin: str = "", **more: str
) -> subprocess.CompletedProcess[str]:
    """Run the runner to its end, and expect its exit status and no traceback."""
    result = subprocess.run(
        [str(BIN / "runner"), *arguments], env=environment(store, **more), cwd=store.parent, text=True, timeout=120,
        capture_output=True, input=stdin, errors="replace", check=False,
    )  # fmt: skip
    assert result.returncode == status, f"{arguments}: exit {result.returncode}\n{result.stdout}\n{result.stderr}"
    assert "Traceback" not in result.stderr
    return result


def packager(store: Path, *arguments: str) -> str:
    """Run the packager; return the last line it prints."""
    result = subprocess.run(
        [str(BIN / "packager"), *arguments],
        env=environment(store),
        text=True,
        timeout=240,
        capture_output=True,
        check=True,
    )
    return result.stdout.splitlines()[-1]


def error_line(result: subprocess.CompletedProcess[str]) -> str:
    """The one line a failed command says why in."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    return lines[0]


def free_port() -> int:
    """A port nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(true: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for something to become so."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def processes_in(folder: Path) -> list[int]:
    """Ids of the processes whose working folder is in `folder`: a store's engines and their guards."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cwd").readlink().is_relative_to(folder):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def is_healthy(url: str) -> bool:
    """Whether a runner answers that all is well."""
    try:
        return httpx.get(f"{url}/healthz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


class Serving:
    """A ``runner serve`` under way."""

    def __init__(self, store: Path, *arguments: str, **more: str) -> None:
        self.store = store
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._stderr = (store.parent / f"serve-{self.port}.err").open("w+")
        self.process = subprocess.Popen(
            [str(BIN / "runner"), "serve", "--listen", f"127.0.0.1:{self.port}", *arguments],
            env=environment(store, **more), cwd=store.parent, text=True,
            stdout=subprocess.PIPE, stderr=self._stderr,
        )  # fmt: skip

    def wait_ready(self, seconds: float = 90) -> Serving:
        """Return when it answers that it is healthy."""
        wait_until(lambda: self.process.poll() is not None or is_healthy(self.url), seconds)
        assert self.process.poll() is None, self.stderr()
        return self

    def stderr(self) -> str:
        """What it has written for people so far."""
        return Path(self._stderr.name).read_text(errors="replace")

    def engine_metric(self, name: str) -> float:
        """A number its engine reports about itself, asked on the engine's own socket."""
        (sock,) = (self.store / "run").glob("*/engines/*/engine.sock")
        folder = os.open(sock.parent, os.O_PATH)
        try:
            transport = httpx.HTTPTransport(uds=f"/proc/self/fd/{folder}/engine.sock")
            with httpx.Client(transport=transport) as client:
                lines = client.get("http://engine/metrics").text.splitlines()
        finally:
            os.close(folder)
        return next(float(line.split()[1]) for line in lines if line.startswith(name))

    def stop(self) -> None:
        """Stop it, if it still runs, and whatever it left."""
        if self.process.poll() is None:
            self.process.terminate()
        self.process.communicate(timeout=30)
        self._stderr.close()


def json_of(result: subprocess.CompletedProcess[str]) -> Any:
    """A command's JSON."""
    return json.loads(result.stdout)


def chat_request(**more: Any) -> Mapping[str, Any]:
    """A chat completion request."""
    return {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, **more}
