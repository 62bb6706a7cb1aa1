"""The measurements: each takes the contestants in turn, round by round."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.memory import read_through, settle
from benchmarks.registry import clients
from benchmarks.registry.clients import Blob
from benchmarks.registry.contestants import Contestant
from benchmarks.report import Series

_MIB = 1024 * 1024
_AT_ONCE = 8


@dataclass
class Plan:
    """How much is measured: bytes of a large blob, turns, seconds of a load test."""

    folder: Path
    size: int
    rounds: int
    seconds: float

    def blob(self, size: int | None = None) -> Blob:
        """A fresh blob; the caller removes its file."""
        return Blob.make(self.folder / "blob", size or self.size)


def manifests(plan: Plan, store: str, rivals: list[Contestant]) -> Iterator[Series]:
    """Requests per second for one manifest, by tag and by digest."""
    digests = {rival.name: clients.push_manifest(rival, "bench/manifests", "v1") for rival in rivals}
    for what in ("tag", "digest"):
        series = Series(f"manifest GET by {what}, {store}", "requests/s")
        cost = Series(f"manifest GET by {what}, processor time of the server, {store}", "ms", more_is_better=False)
        for _ in range(plan.rounds):
            for rival in rivals:
                reference = "v1" if what == "tag" else digests[rival.name]
                url = f"{rival.url}/v2/bench/manifests/manifests/{reference}"
                before = rival.cpu_seconds()
                rate = clients.requests_per_second(url, plan.seconds)
                series.add(rival.name, rate)
                cost.add(rival.name, (rival.cpu_seconds() - before) * 1000 / (rate * plan.seconds))
        yield from (series, cost)


def pulls(plan: Plan, store: str, rivals: list[Contestant]) -> Iterator[Series]:
    """A large blob through the registry: with curl, with a client that throws the bytes away, and what it cost."""
    blob = plan.blob()
    for rival in rivals:
        clients.push(rival, "bench/pull", blob)
    blob.path.unlink()
    by_curl = Series(f"blob GET by curl, {store}", "MB/s")
    thrown = Series(f"blob GET thrown away, {store}", "MB/s")
    cost = Series(f"blob GET, processor time of the server, {store}", "s/GiB", more_is_better=False)
    for _ in range(plan.rounds):
        for rival in rivals:
            url = f"{rival.url}/v2/bench/pull/blobs/{blob.digest}"
            before = rival.cpu_seconds()
            by_curl.add(rival.name, blob.size / 1e6 / clients.pull(url))
            cost.add(rival.name, (rival.cpu_seconds() - before) * 1024 * _MIB / blob.size)
            thrown.add(rival.name, blob.size / 1e6 / clients.discard(url))
    yield from (by_curl, thrown, cost)


def pushes(plan: Plan, store: str, rivals: list[Contestant]) -> Iterator[Series]:
    """A large blob into the registry by curl, a fresh one each round, and what it cost."""
    speed = Series(f"blob push by curl, {store}", "MB/s")
    cost = Series(f"blob push, processor time of the server, {store}", "s/GiB", more_is_better=False)
    for turn in range(plan.rounds):
        blob = plan.blob()
        for rival in rivals if turn % 2 else rivals[::-1]:
            settle()
            read_through([blob.path])
            before = rival.cpu_seconds()
            speed.add(rival.name, blob.size / 1e6 / clients.push(rival, "bench/push", blob))
            cost.add(rival.name, (rival.cpu_seconds() - before) * 1024 * _MIB / blob.size)
        blob.path.unlink()
    yield from (speed, cost)


def finishes(plan: Plan, store: str, rivals: list[Contestant]) -> Iterator[Series]:
    """Seconds from the closing PUT to its answer, for blobs of growing size."""
    for size in (plan.size // 16, plan.size // 4, plan.size):
        series = Series(f"finishing a push of {size // _MIB} MiB, {store}", "s", more_is_better=False)
        for _ in range(min(3, plan.rounds)):
            blob = plan.blob(size)
            for rival in rivals:
                series.add(rival.name, clients.finish(rival, "bench/finish", blob))
            blob.path.unlink()
        yield series


def memory(plan: Plan, store: str, rivals: list[Contestant]) -> Iterator[Series]:
    """Most resident memory while eight large blobs are pushed at the same time."""
    series = Series(f"peak memory, {_AT_ONCE} pushes of {plan.size // _MIB} MiB at once, {store}", "MiB", False)
    blobs = [Blob.make(plan.folder / f"blob{number}", plan.size) for number in range(_AT_ONCE)]
    for rival in rivals:
        rival.reset_peak()
        clients.push_many(rival, "bench/memory", blobs)
        series.add(rival.name, rival.peak_mib())
    for blob in blobs:
        blob.path.unlink()
    yield series


ALL: dict[str, Callable[[Plan, str, list[Contestant]], Iterator[Series]]] = {
    "manifests": manifests,
    "pulls": pulls,
    "pushes": pushes,
    "finishes": finishes,
    "memory": memory,
}
"""Every measurement, by the name it is asked for."""
