"""Checkpoints as fixtures."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints.smollm2 import checkpoint


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real SmolLM2-135M-Instruct as a Hugging Face checkpoint folder, shared: not to be written to."""
    return checkpoint()
