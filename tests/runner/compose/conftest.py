"""Small models in a layout, and a project folder whose gateway is stopped when the test is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runner.state import running, stop
from tests.checkpoints.tiny import write_tiny_llama
from tests.runner.commands import packager, processes_in, wait_until


@pytest.fixture(scope="session")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layout with one tiny model in two precisions, under the tags ``one`` and ``two``. Not to be written to."""
    folder = tmp_path_factory.mktemp("small")
    checkpoint = write_tiny_llama(folder / "tiny")
    for tag, precision in (("one", "F16"), ("two", "F32")):
        reference = f"oci:{folder}/layout:{tag}"
        packager(folder / "store", "pack", str(checkpoint), reference, "--format", "gguf", "--precision", precision)
    return folder / "layout"


@pytest.fixture
def compose(tmp_path: Path, store: Path) -> Iterator[Callable[[str], Path]]:
    """Writes the project's Compose file; afterwards its gateway is stopped."""
    (tmp_path / "project").mkdir()

    def write(text: str) -> Path:
        path = tmp_path / "project" / "compose.yaml"
        path.write_text(text)
        return path

    yield write
    for run in running(store):
        stop(run)
    wait_until(lambda: not processes_in(store))
