"""The measurements: in each round every client has its turn."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import httpx

from benchmarks.cost import Cost, measure
from benchmarks.memory import read_through
from benchmarks.registry.contestants import Contestant
from benchmarks.report import Series
from benchmarks.throttle import throttled
from benchmarks.transfers import models
from benchmarks.transfers.clients import CheckedCurl, Curl, Podman, Puller, Stowage, blobs, clients
from benchmarks.transfers.cost import GIB, Costs
from benchmarks.transfers.models import OURS, Model, run

_MIB = 1024 * 1024
_CHANGES = {"note": "other metadata", "tenth": "a tenth of the tensors"}


@dataclass(frozen=True)
class Place:
    """A registry over some storage. `start` starts it, empty, with what it keeps in a folder; `many` says that every
    client has its turn there, and not only those that verify, and curl; `pushed` that pushes to it differ from those
    to another place."""

    name: str
    start: Callable[[Path], AbstractContextManager[Contestant]]
    many: bool = False
    pushed: bool = True
    near: bool = True

    def throttled(self, rate: int, name: str) -> Place:
        """The same behind a network that brings `rate` bytes a second."""

        @contextmanager
        def start(folder: Path) -> Iterator[Contestant]:
            with self.start(folder) as registry, throttled(registry.url, rate) as port:
                yield replace(registry, url=f"http://127.0.0.1:{port}")

        return Place(f"{self.name}, {name}", start, pushed=False, near=False)


def pulls(model: Model, what: str, place: Place, rounds: int, folder: Path) -> Iterator[Series]:
    """A model from a registry to the disk."""
    turns: list[Puller] = [*(item for item in clients() if place.many or not item.once), CheckedCurl()]
    image = place.many and Podman.works()
    if image:
        models.add_image(model)
        turns.append(Podman())
    costs = Costs(f"pull of {what}, {place.name}")
    with place.start(_made(folder / "pulled")) as registry:
        target = f"{_host(registry)}/bench/model"
        for tag in ("v1", "image") if image else ("v1",):
            run([f"{OURS}/packager", "push", f"oci:{model.layout}:{tag}", f"{target}:{tag}"])
        _turn(Curl(), place, f"{target}:v1", folder)  # nobody's: the registry has just been started
        for number in range(rounds):
            for client in turns:
                if number == 0 or not client.once:
                    costs.add(client.name, model.size, _turn(client, place, f"{target}:v1", folder))
    shutil.rmtree(folder / "pulled")
    yield from costs.series


def _turn(client: Puller, place: Place, source: str, folder: Path) -> Cost:
    """One pull, whose files are removed again."""
    out = folder / "out"
    cost = measure(client.pull(source, out), partial(_ready, place, source))
    shutil.rmtree(out)
    return cost


def pushes(model: Model, what: str, place: Place, rounds: int, folder: Path) -> Iterator[Series]:
    """A model from the disk to a registry that was started for it: skopeo remembers where blobs are, and would mount
    them from one repository to another."""
    costs = Costs(f"push of {what}, {place.name}")
    for number in range(rounds):
        for client in clients():
            if client.once and (number or not place.many):
                continue
            with place.start(_made(folder / "pushed")) as registry:
                command = client.push(model.layout, "v1", f"{_host(registry)}/bench/model:v1")
                costs.add(client.name, model.size, measure(command, partial(read_through, blobs(model.layout, "v1"))))
            shutil.rmtree(folder / "pushed")
    yield from costs.series


def deltas(model: Model, place: Place, rounds: int, folder: Path) -> Iterator[Series]:
    """Further versions of a model that is there, by us: the time they take, and how much of them travels, against the
    first version. Others move every byte of them again."""
    ways = {"push": "received", "pull": "sent"} if place.pushed else {"pull": "sent"}
    series = {
        (way, tag): (
            Series(f"{way} after {change}, {place.name}: time", "s", more_is_better=False),
            Series(f"{way} after {change}, {place.name}: share of the bytes that travelled", "%", more_is_better=False),
        )
        for way in ways
        for tag, change in _CHANGES.items()
    }
    client = Stowage()
    for _ in range(rounds):
        with place.start(_made(folder / "versions")) as registry:
            target = f"{_host(registry)}/bench/model"
            for way, which in ways.items():
                for tag in ("v1", *_CHANGES):
                    # Pushed to one tag, which is what the next push rests on.
                    push = client.push(model.layout, tag, f"{target}:latest")
                    meter = _Meter(registry, which)
                    if way == "pull":
                        run(push)
                        meter = _Meter(registry, which)
                    pull = client.pull(f"{target}:latest", folder / "out")
                    files = [*blobs(model.layout, tag), *_files(folder / "versions"), *_files(folder / "out")]
                    cost = measure(push if way == "push" else pull, partial(read_through, files))
                    _note(series, way, tag, cost.seconds, meter.percent_of(model.size))
        shutil.rmtree(folder / "versions")
        shutil.rmtree(folder / "out")
    for pair in series.values():
        yield from pair


def _note(
    series: dict[tuple[str, str], tuple[Series, Series]], way: str, tag: str, seconds: float, share: float
) -> None:
    """Put a version down; the first one as what the others are held against."""
    for change in _CHANGES if tag == "v1" else (tag,):
        for item, value in zip(series[way, change], (seconds, share), strict=True):
            item.add("the first version" if tag == "v1" else "stowage", value)


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
                files = blobs(model.layout, "v1")
                pushed = measure(client.push(model.layout, "v1", target), partial(read_through, files))
                pulled = measure(client.pull(target, folder / "out"), partial(_ready, place, target))
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


def _ready(place: Place, source: str) -> None:
    """Bring what a pull asks for into the page cache."""
    if place.near:
        run(Curl().read(source))


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _host(registry: Contestant) -> str:
    return registry.url.removeprefix("http://")


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
