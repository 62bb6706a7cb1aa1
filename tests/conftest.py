"""Fixtures that tests of every folder use."""

from __future__ import annotations

from tests.checkpoints.fixtures import smollm2  # noqa: F401
from tests.registry.servers import registry_server, s3, session_registries  # noqa: F401
from tests.runner.engines import llama_cpp_python  # noqa: F401
