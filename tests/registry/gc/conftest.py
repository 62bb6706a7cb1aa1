"""Registries over a store with a clock of the test's own."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from registry.blobs import PRESIGNED_SECONDS
from registry.gc.collector import Collector
from registry.gc.report import Report
from registry.http.app import create_app
from registry.store.filesystem import FilesystemStore
from registry.store.protocol import ObjectStore
from tests.registry.conftest import Backend
from tests.registry.gc.clocked import Clock, ClockedStore
from tests.registry.pushing import MANIFEST, descriptor, manifest_of, push_blob, put_manifest

GRACE = float(2 * PRESIGNED_SECONDS)
LAYER = b"layer"


class Place:
    """A registry over a store with a clock of the test's own."""

    def __init__(self, store: ObjectStore) -> None:
        self.clock = Clock()
        self.store = ClockedStore(store, self.clock)
        self.client = TestClient(create_app(self.store))

    def collector(self, **options: Any) -> Collector:
        return Collector(self.store, **{"grace": GRACE, "clock": self.clock, **options})

    def collect(self, cycles: int = 2, **options: Any) -> list[Report]:
        """Whole cycles, more than a grace period before each."""
        reports = []
        for _ in range(cycles):
            self.clock.now += GRACE + 1
            reports.append(self.collector(**options).run())
        return reports

    def stored(self) -> set[str]:
        return {entry.key for entry in self.store._inner.list("", limit=10**6)}


@pytest.fixture
def fresh(backend: Backend) -> Iterator[Callable[[], Place]]:
    """Makes empty places; in memory where the driver is the folder's."""
    made: list[Path] = []

    def place() -> Place:
        if backend.driver == "filesystem" and Path("/dev/shm").is_dir():
            made.append(Path(f"/dev/shm/gc-{secrets.token_hex(8)}"))
            return Place(FilesystemStore(made[-1]))
        return Place(Backend(backend.driver, f"{backend.storage}/{secrets.token_hex(4)}", backend.env).open())

    yield place
    for folder in made:
        subprocess.run(["rm", "-rf", str(folder)], check=True)


@pytest.fixture
def place(fresh: Callable[[], Place]) -> Place:
    return fresh()


def push(client: httpx.Client, tag: str | None = "v1", layer: bytes = LAYER, repo: str = "r", **more: Any) -> bytes:
    for data in (b"{}", layer):
        push_blob(client, repo, data)
    raw = manifest_of([layer], **more)
    assert put_manifest(client, repo, raw, tag).status_code == 201
    return raw


def subject_of(raw: bytes) -> dict[str, Any]:
    return {"subject": descriptor(raw, MANIFEST)}
