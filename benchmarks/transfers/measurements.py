"""The measurements: in each round every client has its turn."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.registry.contestants import Contestant
from benchmarks.report import Series
from benchmarks.transfers import models
from benchmarks.transfers.clients import Client, Podman, Puller, Skopeo, Stowage, clients
from benchmarks.transfers.cost import GIB, Costs, measure
from benchmarks.transfers.models import OURS, Model, run

_MIB = 1024 * 1024
_CHANGES = {"note": "other metadata", "tenth": "a tenth of the tensors"}


@dataclass(frozen=True)
class Place:
    """A registry over some storage. `start` starts it with what it stores in a folder, or in a bucket, empty; `many`
    says that every client has its turn there, and not only those that verify and the floor; `pushed` that pushes differ
    from those to another place."""

    name: str
    start: Callable[[Path], AbstractContextManager[Contestant]]
    many: bool = False
    pushed: bool = True


def pulls(model: Model, what: str, place: Place, rounds: int, folder: Path) -> Iterator[Series]:
    """A model from a registry to the disk."""
    turns: list[Puller] = [*_clients(place)]
    image = place.many and "1 file" in what and Podman.works()
    if image:
        models.add_image(model)
        turns.append(Podman())
    costs = Costs(f"pull of {what}, {place.name}")
    with place.start(_made(folder / "pulled")) as registry:
        source = f"{_host(registry)}/bench/model:v1"
        run([f"{OURS}/packager", "push", f"oci:{model.layout}:v1", source])
        if image:
            run([f"{OURS}/packager", "push", f"oci:{model.layout}:image", f"{_host(registry)}/bench/model:image"])
        for _ in range(rounds):
            for client in turns:
                out = folder / "out"
                costs.add(client.name, model.size, measure(client.pull(source, out)))
                shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(folder / "pulled")
    yield from costs.series


def pushes(model: Model, what: str, place: Place, rounds: int, folder: Path) -> Iterator[Series]:
    """A model from the disk to a registry that was started for it: skopeo remembers where blobs are, and would mount
    them from one repository to another."""
    costs = Costs(f"push of {what}, {place.name}")
    for _ in range(rounds):
        for client in _clients(place):
            with place.start(_made(folder / "pushed")) as registry:
                command = client.push(model.layout, "v1", f"{_host(registry)}/bench/model:v1")
                costs.add(client.name, model.size, measure(command))
            shutil.rmtree(folder / "pushed")
    yield from costs.series


def deltas(model: Model, place: Place, rounds: int, folder: Path) -> Iterator[Series]:
    """Further versions of a model that is there: what they take in time, and how much of them travels."""
    ours, turns = (
        Stowage(),
        [Stowage(), Skopeo()] if any(isinstance(item, Skopeo) for item in clients()) else [Stowage()],
    )
    series = {
        (way, tag): (
            Series(f"{way} after {change}: time", "s", more_is_better=False),
            Series(f"{way} after {change}: share of the bytes that travelled", "%", more_is_better=False),
        )
        for way in ("pull", "push")
        for tag, change in _CHANGES.items()
    }
    for _ in range(rounds):
        for client in turns:
            with place.start(_made(folder / "versions")) as registry:
                target = f"{_host(registry)}/bench/model"
                for tag in ("v1", *_CHANGES):
                    meter = _Meter(registry, "received")
                    cost = measure(client.push(model.layout, tag, f"{target}:latest"))
                    _note(series, "push", tag, client, cost.seconds, meter.percent_of(model.size))
                for tag in ("v1", *_CHANGES):
                    run([*ours.push(model.layout, tag, f"{target}:{tag}")])
                for tag in ("v1", *_CHANGES):
                    meter = _Meter(registry, "sent")
                    cost = measure(client.pull(f"{target}:{tag}", folder / "out"))
                    _note(series, "pull", tag, client, cost.seconds, meter.percent_of(model.size))
            shutil.rmtree(folder / "versions")
            shutil.rmtree(folder / "out")
    for pair in series.values():
        yield from pair


def _note(
    series: dict[tuple[str, str], tuple[Series, Series]],
    way: str,
    tag: str,
    client: Client,
    seconds: float,
    share: float,
) -> None:
    """Put a version down; the first one as what everything is held against."""
    for change in _CHANGES if tag == "v1" else (tag,):
        time, part = series[way, change]
        name = f"{client.name}, the first version" if tag == "v1" else client.name
        time.add(name, seconds)
        part.add(name, share)


def scaling(largest: int, rounds: int, place: Place, folder: Path) -> Iterator[Series]:
    """Pull and push by us, of models up to `largest` MiB: what a GiB takes at each size, and the most memory."""
    found = [
        Series(f"{way}: {what}", unit, more_is_better=False)
        for way in ("pull", "push")
        for what, unit in (
            ("time", "s/GiB"),
            ("processor time of the client", "s/GiB"),
            ("peak memory of the client", "MiB"),
        )
    ]
    for size in _sizes(largest):
        model = models.make(folder, size * _MIB, 1)
        for _ in range(rounds):
            with place.start(_made(folder / "scaled")) as registry:
                target, client = f"{_host(registry)}/bench/model:v1", Stowage()
                pushed = measure(client.push(model.layout, "v1", target))
                pulled = measure(client.pull(target, folder / "out"))
            shutil.rmtree(folder / "scaled")
            shutil.rmtree(folder / "out")
            for item, cost in zip((found[:3], found[3:]), (pulled, pushed), strict=True):
                values = cost.seconds * GIB / model.size, cost.processor * GIB / model.size, cost.peak
                for series, value in zip(item, values, strict=True):
                    series.add(f"{size} MiB", value)
        shutil.rmtree(model.layout)
    yield from found


def _sizes(largest: int) -> list[int]:
    sizes = [64]
    while sizes[-1] * 2 <= largest:
        sizes.append(sizes[-1] * 2)
    return sizes


class _Meter:
    """How many bytes of blobs one of our registries sends or receives from now on, as it counts them itself."""

    def __init__(self, registry: Contestant, which: str) -> None:
        self._registry, self._which = registry, which
        self._before = self._count()

    def percent_of(self, size: int) -> float:
        """Of `size` bytes, in percent."""
        return 100 * (self._count() - self._before) / size

    def _count(self) -> float:
        lines = httpx.get(f"{self._registry.url}/metrics", timeout=60).text.splitlines()
        name = f"stowage_registry_{self._which}_bytes_total"
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def _clients(place: Place) -> Sequence[Client]:
    return [client for client in clients() if place.many or "oras" not in client.name]


def _host(registry: Contestant) -> str:
    return registry.url.removeprefix("http://")


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
