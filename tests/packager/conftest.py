"""Checkpoints to pack, and the `packager` command run as a user runs it."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.layout import LayoutRepository
from artifact.manifest import Manifest
from artifact.remote import RemoteRepository
from artifact.repository import Repository
from packager import cli
from tests.checkpoints.tiny import write_tiny_llama


@dataclass(frozen=True)
class Result:
    status: int
    stdout: str
    stderr: str

    @property
    def last(self) -> str:
        """The last line of standard output: the command's result."""
        return self.stdout.splitlines()[-1]


class Packager:
    """Runs the command's own entry point in this process; `store` is its local store."""

    def __init__(self, store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.store = store
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *args: str | Path) -> Result:
        self._monkeypatch.setattr(sys, "argv", ["packager", *map(str, args)])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = self._capsys.readouterr()
        status = exit_.value.code
        assert isinstance(status, int)
        return Result(status, captured.out, captured.err)

    def ok(self, *args: str | Path) -> str:
        """Run a command that must succeed; its last line."""
        result = self(*args)
        assert result.status == 0, result.stderr
        return result.last

    def fails(self, status: int, *args: str | Path) -> str:
        """Run a command that must fail with `status`; its one line of error."""
        result = self(*args)
        assert result.status == status, (result.status, result.stderr)
        lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and "Traceback" not in result.stderr, result.stderr
        assert result.stdout == ""
        return lines[0]

    @property
    def stored(self) -> list[str]:
        """Every file in the local store."""
        return sorted(str(path.relative_to(self.store)) for path in self.store.rglob("*") if path.is_file())


@pytest.fixture
def packager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Packager:
    monkeypatch.setenv("STOWAGE_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("COSIGN_PASSWORD", "")
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    return Packager(tmp_path / "store", monkeypatch, capsys)


@pytest.fixture(scope="session")
def _tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("checkpoints") / "tiny", shards=2)


@pytest.fixture
def tiny(_tiny: Path, tmp_path: Path) -> Path:
    """A genuine, very small Llama checkpoint in two shards, BF16: the test's own copy."""
    return Path(shutil.copytree(_tiny, tmp_path / "tiny"))


@pytest.fixture(scope="session")
def tiny_gguf(_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as a GGUF file, F16. Shared: not to be written to."""
    from artifact.progress import Quiet
    from packager.convert import convert

    return convert(_tiny, "F16", tmp_path_factory.mktemp("gguf") / "tiny-F16.gguf", Quiet()).path


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The blobs whose bytes were asked for: digest and offset."""
    asked: list[tuple[str, int]] = []
    original = RemoteRepository.blob_source

    def blob_source(self: RemoteRepository, descriptor):
        source = original(self, descriptor)

        class Recorded:
            def __call__(self, offset: int):
                asked.append((str(descriptor.digest), offset))
                return source(offset)

            def range(self, start: int, length: int):
                asked.append((str(descriptor.digest), start))
                return source.range(start, length)

        return Recorded()

    monkeypatch.setattr(RemoteRepository, "blob_source", blob_source)
    monkeypatch.setattr("packager.content._SMALL", 2000)  # weights of tests are large
    return asked


def manifest_of(place: Path, tag: str, name: str | None = None) -> Manifest:
    """The manifest behind a tag of a layout folder."""
    return Manifest.parse(LayoutRepository(place, name).manifest(tag)[1])


def attached(repository: Repository, subject: Digest) -> list[Descriptor]:
    """What refers to a model, but for its tensor index, which every model has."""
    found = repository.referrers(subject)
    others = [item for item in found if item.artifact_type != mediatypes.TENSOR_INDEX]
    assert len(found) == len(others) + 1
    return others
