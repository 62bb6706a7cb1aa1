"""The specification holds for one registry and for three behind nginx, round-robin by request."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.registry.replicas import Replicas, replicas
from tests.registry.servers import RunningRegistry, StartRegistry

_ACROSS_REQUESTS = ("uploads", "mount", "referrers", "delete")
"""Modules whose tests are about what one request leaves for the next: replicas must not get between them."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "topology" in metafunc.fixturenames:
        both = metafunc.module.__name__.rpartition("test_")[2] in _ACROSS_REQUESTS
        metafunc.parametrize("topology", ["alone", "replicas"] if both else ["alone"], scope="session")


@pytest.fixture(scope="session")
def server(
    driver: str,
    topology: str,
    request: pytest.FixtureRequest,
    session_registries: StartRegistry,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[RunningRegistry | Replicas]:
    """One registry for each driver, and three replicas over one store for each, shared by the session."""
    if driver == "filesystem":
        storage, env = str(tmp_path_factory.mktemp("storage")), {}
    else:
        s3 = request.getfixturevalue("s3")
        storage, env = s3.storage(), s3.env
    if topology == "alone":
        yield session_registries(storage, env=env)
        return
    with replicas(session_registries, tmp_path_factory.mktemp("nginx"), storage, env) as these:
        yield these
