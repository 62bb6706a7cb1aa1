"""Fixtures that tests of every folder use."""

from __future__ import annotations

import signal

from tests.checkpoints.fixtures import smollm2  # noqa: F401
from tests.registry.servers import registry_server, s3, session_registries  # noqa: F401
from tests.runner.engines import llama_cpp_python  # noqa: F401

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what runs in the background deaf to Ctrl-C, and every program the tests start would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
