"""The distribution specification holds for a registry that keeps a log as it does for one that keeps none: the same
tests again, of what the log has a hand in."""

from __future__ import annotations

import pytest

from tests.registry.conformance.test_delete import *  # noqa: F403
from tests.registry.conformance.test_manifests import *  # noqa: F403
from tests.registry.conformance.test_referrers import *  # noqa: F403
from tests.registry.conformance.test_tags import *  # noqa: F403
from tests.registry.conftest import Backend
from tests.registry.logged import logged
from tests.registry.servers import RunningRegistry, StartRegistry


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, session_registries: StartRegistry) -> RunningRegistry:
    folder = tmp_path_factory.mktemp("logged")
    return logged(Backend("filesystem", str(folder / "storage")), folder, session_registries).serve()
