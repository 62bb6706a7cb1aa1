"""Fixtures that tests of every folder use."""

from __future__ import annotations

import signal

from tests.checkpoints.fixtures import smollm2  # noqa: F401
from tests.registry.servers import registry_server, s3, session_registries  # noqa: F401
from tests.runner.engines import llama_cpp_python  # noqa: F401

# A shell starts what runs in the background deaf to Ctrl-C, and nohup makes it deaf to SIGHUP; every program that the
# tests start would inherit that.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)
