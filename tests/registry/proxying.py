"""Caches for tests: how one is configured, and what it holds."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.registry.secured import PASSWORDS
from tests.registry.servers import RunningRegistry


def proxied(folder: Path, upstream: RunningRegistry | str, ttl: str = "1s", more: str = "") -> Path:
    """A configuration of a cache of `upstream` below ``up/``."""
    host = upstream if isinstance(upstream, str) else upstream.host
    (folder / "password").write_text(PASSWORDS["alice"] + "\n")
    file = folder / "proxy.toml"
    file.write_text(
        f'[proxy]\ntag-ttl = "{ttl}"\n{more}\n[[proxy.upstreams]]\nprefix = "up"\nurl = "http://{host}"\n'
        'namespaces = ["models.example.org"]\nusername = "alice"\npassword-file = "password"\n'
    )
    return file


def eventually(check: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not (found := check()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def is_stored(cache: RunningRegistry, repo: str, digest: str) -> bool:
    algorithm, _, hex_ = digest.partition(":")
    return (Path(cache.storage) / "repos" / repo / "_blobs" / algorithm / hex_).exists()
