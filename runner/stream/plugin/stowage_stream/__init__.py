"""A vLLM plugin: the load format ``stowage_stream`` reads weight files while the runner still fills them.

It lives in the engine's process and depends on nothing of the runner's but a socket, whose name is in
``$STOWAGE_STREAM``. vLLM finds it by its entry point in the group ``vllm.general_plugins``.
"""

from __future__ import annotations

LOAD_FORMAT = "stowage_stream"
"""What ``--load-format`` calls it."""


def register() -> None:
    """Make the load format known; vLLM calls this in each of its processes, in some of them more than once."""
    from vllm.model_executor.model_loader import register_model_loader

    from .loader import StreamLoader

    register_model_loader(LOAD_FORMAT)(StreamLoader)
