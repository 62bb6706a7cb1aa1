"""A registry over each driver; tests share it and take a repository name of their own."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from registry.store.open import open_store
from registry.store.protocol import ObjectStore
from tests.registry.servers import RunningRegistry, StartRegistry


@dataclass(frozen=True)
class Backend:
    """One driver's storage, and the environment that a process needs to use it."""

    driver: str
    storage: str
    env: dict[str, str] = field(default_factory=dict)

    def open(self) -> ObjectStore:
        """The store, opened in this process."""
        with environment(self.env):
            return open_store(self.storage)


@contextmanager
def environment(env: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in env}
    os.environ.update(env)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@pytest.fixture(scope="session", params=["filesystem", pytest.param("s3", marks=pytest.mark.s3)])
def driver(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def backend(driver: str, request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    """Empty storage of the test's own."""
    if driver == "filesystem":
        return Backend(driver, str(tmp_path / "storage"))
    s3 = request.getfixturevalue("s3")
    return Backend(driver, s3.storage(), s3.env)


@pytest.fixture(scope="session")
def server(
    driver: str,
    request: pytest.FixtureRequest,
    session_registries: StartRegistry,
    tmp_path_factory: pytest.TempPathFactory,
) -> RunningRegistry:
    """One registry for each driver, shared by the session."""
    if driver == "filesystem":
        return session_registries(tmp_path_factory.mktemp("storage"))
    s3 = request.getfixturevalue("s3")
    return session_registries(s3.storage(), env=s3.env)


@pytest.fixture
def client(server: RunningRegistry) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture
def repo() -> str:
    """A repository nobody else uses."""
    return f"test/{secrets.token_hex(6)}"
