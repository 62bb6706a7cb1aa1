"""Registries with access control: by Basic, and by tokens."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.registry.pushing import push_image
from tests.registry.secured import AUTH, RULES, TOKEN, client, configure
from tests.registry.servers import RunningRegistry, StartRegistry


@pytest.fixture(scope="package")
def by_password(session_registries: StartRegistry, tmp_path_factory: pytest.TempPathFactory) -> RunningRegistry:
    """Logs in with Basic."""
    return start(session_registries, tmp_path_factory.mktemp("by-password"), AUTH + RULES)


@pytest.fixture(scope="package")
def by_token(session_registries: StartRegistry, tmp_path_factory: pytest.TempPathFactory) -> RunningRegistry:
    """Logs in with Docker's token flow."""
    return start(session_registries, tmp_path_factory.mktemp("by-token"), AUTH + TOKEN + RULES)


@pytest.fixture(scope="package", params=["password", "token"])
def guarded(request: pytest.FixtureRequest) -> RunningRegistry:
    """Each of the two, with an image in ``team/model`` and one in ``public/model``."""
    server: RunningRegistry = request.getfixturevalue(f"by_{request.param}")
    with client(server.url, "alice") as alice:
        push_image(alice, "team/model", layer=b"team layer")
        push_image(alice, "public/model", layer=b"public layer")
    return server


def start(registries: StartRegistry, folder: Path, text: str) -> RunningRegistry:
    return registries(folder / "storage", "--config", str(configure(folder, text)))


def status(answer: httpx.Response) -> tuple[int, str]:
    """Status and error code."""
    return answer.status_code, answer.json()["errors"][0]["code"] if answer.status_code >= 400 else ""
