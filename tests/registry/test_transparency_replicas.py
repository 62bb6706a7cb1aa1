"""Clients that push through three replicas, which are killed at random: one log, and nothing lost."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from artifact.digest import Digest
from registry.log.tiles import LogTiles
from supplychain.tlog.checkpoint import Checkpoint
from supplychain.tlog.evidence import consistent
from supplychain.tlog.proofs import Tree
from tests.registry.conftest import Backend
from tests.registry.logged import client, held, logged, one_log
from tests.registry.pushing import MANIFEST, manifest_of, push_blob
from tests.registry.servers import StartRegistry

NAME = "team/model"


class Pusher(threading.Thread):
    """Pushes tags of its own and a shared one through random replicas, and tries again until each is acknowledged."""

    def __init__(self, number: int, hosts: list[str], until: Callable[[], bool]) -> None:
        super().__init__(daemon=True)
        self._hosts = hosts
        self._until = until
        self._random = random.Random(number)
        self._number = number
        self.acknowledged: list[tuple[str, Digest]] = []
        self.removed: set[str] = set()
        self.heads: list[bytes] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            turn = 0
            while not self._until() or turn < 10:
                self._step(turn)
                turn += 1
        except BaseException as error:
            self.error = error

    def _step(self, turn: int) -> None:
        raw = manifest_of([b"layer"], by=f"{self._number} {turn}")
        tag = "shared" if turn % 3 == 0 else f"own-{self._number}-{turn % 2}"
        url = f"/v2/{NAME}/manifests/{tag}"
        while self._ask("PUT", url, raw) != 201:
            pass
        self.acknowledged.append((tag, Digest.of(raw)))
        self.removed.discard(tag)
        if turn % 7 == 6 and tag != "shared":
            while self._ask("DELETE", url) not in (202, 404):
                pass
            self.removed.add(tag)
        self._ask("GET", "/transparency/checkpoint")

    def _ask(self, method: str, path: str, content: bytes | None = None) -> int:
        headers = {"Content-Type": MANIFEST} if content else {}
        try:
            host = self._random.choice(self._hosts)
            answer = httpx.request(method, f"http://{host}{path}", content=content, headers=headers, timeout=60)
        except httpx.TransportError:
            time.sleep(0.05)
            return 0
        if path.startswith("/transparency") and answer.status_code == 200:
            self.heads.append(answer.content)
        if answer.status_code in (201, 202, 404):
            return answer.status_code
        assert answer.status_code in (200, 500, 502, 503), answer.text
        time.sleep(0.05)
        return 0


def test_replicas(backend: Backend, tmp_path: Path, registry_server: StartRegistry) -> None:
    """Three replicas over one store, two of which are killed with SIGKILL at random moments: one log, every
    acknowledged push in it, every tag where the log says, every head that a client saw the beginning of the last."""
    these = logged(backend, tmp_path, registry_server)
    running = [these.serve() for _ in range(3)]
    with client(running[0]) as http:
        push_blob(http, NAME, b"{}")
        push_blob(http, NAME, b"layer")
    hosts = [server.host for server in running]
    ended = threading.Event()
    pushers = [Pusher(number, hosts, ended.is_set) for number in range(4)]
    for pusher in pushers:
        pusher.start()
    choice = random.Random(7)
    for _ in range(4):
        time.sleep(choice.uniform(0.1, 0.6))
        victim = choice.randrange(2)
        host = running[victim].host
        running[victim].kill()
        running[victim] = these.serve("--listen", host)
    ended.set()
    for pusher in pushers:
        pusher.join()
        assert pusher.error is None, pusher.error
    done = these.verify(running[2].host)
    assert done.exit_code == 0, done.output

    pushed = {(entry.tag, entry.digest) for entry in these.entries() if entry.action == "tag"}
    serving = held(these)
    for pusher in pushers:
        assert set(pusher.acknowledged) <= pushed
        own = {tag: digest for tag, digest in pusher.acknowledged if tag != "shared"}
        for tag, digest in own.items():
            assert serving.get(tag) == (None if tag in pusher.removed else digest), tag
    heads = [Checkpoint.open(head, these.verifier) for pusher in pushers for head in pusher.heads]
    assert heads
    one_log(these, heads)
    state = these.state()
    log = these.sequencer()
    tree = Tree(state.size, LogTiles(log.store, log.read).read)
    for head in heads[:: max(len(heads) // 10, 1)]:
        if head.size:
            consistent(head, state.checkpoint, tree.consistency_proof(head.size))
