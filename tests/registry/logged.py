"""Registries with a transparency log, for tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import httpx
from typer.testing import CliRunner, Result

from artifact import merkle
from artifact.digest import Digest
from registry.cli import app
from registry.log.key import LogKey, generate
from registry.log.sequencer import Draft, Sequencer
from registry.log.state import State
from registry.log.tags import LoggedTags
from registry.log.tiles import LogTiles
from registry.store.protocol import ObjectStore
from supplychain.tlog.checkpoint import Checkpoint
from supplychain.tlog.entry import Entry, Replay
from supplychain.tlog.note import VerifierKey
from tests.registry.conftest import Backend
from tests.registry.servers import RunningRegistry, StartRegistry

ORIGIN = "registry.example.org/log"


@dataclass
class Logged:
    """A storage with a log: its key, its configuration, and ways to look at it."""

    backend: Backend
    folder: Path
    start: StartRegistry | None = None

    @property
    def key(self) -> LogKey:
        return LogKey.load(self.folder / "log.key", ORIGIN)

    @property
    def public(self) -> str:
        return str(self.folder / "log.key.pub")

    @property
    def verifier(self) -> VerifierKey:
        return VerifierKey.parse(Path(self.public).read_text())

    @property
    def config(self) -> Path:
        return self.folder / "registry.toml"

    def serve(self, *options: str, logged: bool = True) -> RunningRegistry:
        """A server over the storage."""
        assert self.start is not None
        config = ("--config", str(self.config)) if logged else ()
        return self.start(self.backend.storage, *config, *options, env=self.backend.env)

    def sequencer(self, store: ObjectStore | None = None) -> Sequencer:
        """The log as a process of its own would see it."""
        return Sequencer(store or self.backend.open(), self.key)

    def tags(self, store: ObjectStore | None = None) -> LoggedTags:
        return LoggedTags(self.sequencer(store))

    def state(self) -> State:
        return self.sequencer().read()

    def entries(self) -> list[Entry]:
        """Everything that is in the log."""
        log = self.sequencer()
        return [Entry.parse(raw) for raw in LogTiles(log.store, log.read).entries(log.read())]

    def replay(self) -> Replay:
        log = self.sequencer()
        replay = Replay()
        replay.take(LogTiles(log.store, log.read).entries(log.read()))
        return replay

    def command(self, *arguments: str) -> Result:
        """``registry transparency ...``"""
        return CliRunner().invoke(app, ["transparency", *arguments])

    def verify(self, host: str, *options: str) -> Result:
        return self.command("verify", host, "--key", self.public, *options)


def fill(tags: LoggedTags, count: int, name: str = "some/where") -> None:
    """Put entries of pushes into the log, by the hundred."""
    for first in range(0, count, 100):
        digest = Digest.of(str(first).encode())
        entries = [tags._entry("push", name, digest) for _ in range(min(100, count - first))]
        tags._journal.append([Draft(entry) for entry in entries])


def logged(backend: Backend, folder: Path, start: StartRegistry | None = None, more: str = "") -> Logged:
    """Make a key and a configuration; `more` are further sections of it, and settings of [transparency] first."""
    folder.mkdir(exist_ok=True)
    if not (folder / "log.key").exists():
        generate(folder / "log.key", ORIGIN)
    these = Logged(backend, folder, start)
    storage = backend.storage if "://" in backend.storage else str(Path(backend.storage).resolve())
    these.config.write_text(
        f'[server]\nstorage = "{storage}"\n[log]\nformat = "none"\n'
        f'[transparency]\nkey = "log.key"\norigin = "{ORIGIN}"\n{more}'
    )
    return these


def client(server: RunningRegistry) -> httpx.Client:
    return httpx.Client(base_url=server.url, timeout=60)


def held(these: Logged) -> dict[str, Digest]:
    """What follows from the log."""
    replay = these.replay()
    assert replay.problems == []
    return {tag: digest for (_, tag), (digest, _) in replay.tags.items()}


def one_log(these: Logged, heads: list[Checkpoint]) -> None:
    """Every head that anybody saw is the beginning of the log as it is."""
    state = these.state()
    leaves = [merkle.leaf_hash(entry.to_bytes()) for entry in these.entries()]
    for head in {head.size: head for head in heads}.values():
        assert merkle.root_hash(leaves[: head.size]) == head.root
    by_size: dict[int, set[bytes]] = {}
    for head in heads:
        by_size.setdefault(head.size, set()).add(head.root)
    assert all(len(roots) == 1 for roots in by_size.values())
    assert state.checkpoint.root == merkle.root_hash(leaves)
