"""A packed model, a store of one's own, and a runner that is stopped when the test is over."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.checkpoints.tiny import write_tiny_llama
from tests.runner.commands import Serving, packager, processes_in, wait_until


@pytest.fixture(scope="session")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OCI layout with a small Llama, slow enough to be watched, as GGUF and as safetensors. Not to be written to."""
    folder = tmp_path_factory.mktemp("packed")
    checkpoint = write_tiny_llama(folder / "tiny", layers=4, hidden=192, heads=4, intermediate=512, context=8192)
    for options in (["--format", "gguf", "--precision", "F16"], []):
        packager(folder / "store", "pack", str(checkpoint), f"oci:{folder}/layout", *options)
    return folder / "layout"


@pytest.fixture(scope="session")
def gguf_reference(layout: Path) -> str:
    """The reference of the GGUF model in the layout."""
    return f"oci:{layout}:{_tag(layout, False)}"


@pytest.fixture(scope="session")
def safetensors_reference(layout: Path) -> str:
    """The reference of the safetensors model in the layout."""
    return f"oci:{layout}:{_tag(layout, True)}"


def _tag(layout: Path, safetensors: bool) -> str:
    from artifact.layout import LayoutRepository

    (tag,) = (tag for tag in LayoutRepository(layout).tags() if tag.endswith("-safetensors") == safetensors)
    return tag


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Where this test's store is."""
    return tmp_path / "store"


@pytest.fixture
def echo_engine(tmp_path: Path) -> tuple[str, ...]:
    """Options for an engine that is there at once, and answers with what it was asked."""
    program = tmp_path / "llama-server"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("echo_engine.py")} "$@"\n')
    program.chmod(0o755)
    return "--engine-path", str(program), "--sandbox", "off"


@pytest.fixture
def serve(store: Path) -> Iterator[Callable[..., Serving]]:
    """Starts ``runner serve``; afterwards nothing of it may be left."""
    started: list[Serving] = []

    def start(*arguments: str, **environment: str) -> Serving:
        started.append(Serving(store, *arguments, **environment))
        return started[-1]

    yield start
    for serving in started:
        serving.stop()
    wait_until(lambda: not processes_in(store))
