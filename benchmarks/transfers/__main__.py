"""``python -m benchmarks.transfers``: whole models pulled and pushed by us and by others, in turn, from one registry.

A quick look: ``--size 64 --rounds 1 --stores folder``. How it grows with size: ``--only scaling``.
"""

from __future__ import annotations

import argparse
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks import machine, report
from benchmarks.registry import contestants
from benchmarks.registry.peers import peers
from benchmarks.report import Series
from benchmarks.transfers import measurements, models
from benchmarks.transfers.clients import clients
from benchmarks.transfers.measurements import Place

_RESULTS = Path(__file__).parents[1] / "results"
_MIB = 1024 * 1024
_NETWORKS = {"1 Gbit/s": 118_000_000, "200 Mbit/s": 24_000_000}
"""Bytes a second that slower networks bring."""
_KINDS = ("pull", "push", "delta", "scaling")


def main() -> None:
    """Take what is asked for from the command line."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are stopped
    book = _Book(options)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.scratch) as scratch, ExitStack() as stack:
        folder = Path(scratch)
        places = _places(folder, stack, options.stores)
        for shards in options.files:
            if {"pull", "push"} & set(options.only):
                fast, slow = replace(places[0], many=False), places[0].throttled(_NETWORKS["1 Gbit/s"], "1 Gbit/s")
                whole = [*places, slow] if shards == 1 else [fast, *places[1:]]
                _whole(book, options, whole, folder, shards)
        if "delta" in options.only:
            model = models.make_versions(folder, options.size * _MIB)
            for place in [places[0], *(places[0].throttled(rate, name) for name, rate in _NETWORKS.items())]:
                rounds = options.rounds if place is places[0] else 1
                book.add("delta", measurements.deltas(model, place, rounds, folder))
            shutil.rmtree(model.layout)
        if "scaling" in options.only:
            book.add("scaling", measurements.scaling(options.largest, options.rounds, places[0], folder))


def _whole(book: _Book, options: argparse.Namespace, places: list[Place], folder: Path, shards: int) -> None:
    model = models.make(folder, options.size * _MIB, shards)
    what, kind = f"{model.size / 1e9:.2g} GB in {shards} file{'s' * (shards > 1)}", "-sharded" * (shards > 1)
    for place in places:
        if "pull" in options.only:
            book.add(f"pull{kind}", measurements.pulls(model, what, place, options.rounds, folder))
        if "push" in options.only and place.pushed:
            book.add(f"push{kind}", measurements.pushes(model, what, place, options.rounds, folder))
    shutil.rmtree(model.layout)


class _Book:
    """The results: a file for each kind of measurement, written anew whenever something is added."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._out = options.out
        self._series: dict[str, list[Series]] = {}
        self._about = machine.describe()
        self._settings = {
            "size_mib": options.size, "rounds": options.rounds, "clients": [item.name for item in clients()],
        }  # fmt: skip

    def add(self, kind: str, found: Iterable[Series]) -> None:
        """Show measurements, and put them down."""
        for item in found:
            print("\n".join(report.rows(item)), flush=True)
            self._series.setdefault(kind, []).append(item)
            report.write(self._out, f"transfers-{kind}", self._series[kind], dict(self._settings), self._about)


def _places(folder: Path, stack: ExitStack, stores: list[str]) -> list[Place]:
    """Ours over a folder first, where every client has its turn."""
    found = [Place("stowage over a folder", lambda place: contestants.ours(place, None, 1), many=True)]
    if "s3" in stores:
        service = stack.enter_context(contestants.seaweedfs(folder))
        for redirect in (True, False):

            def start(place: Path, redirect: bool = redirect):  # noqa: ANN202  # a context manager of a contestant
                return contestants.ours(place, service, 1, redirect=redirect, prefix=secrets.token_hex(8))

            found.append(Place(f"stowage over S3{', redirecting' * redirect}", start, pushed=not redirect))
    others = [Place(f"{peer.name} over a folder", partial(contestants.peer, peer, s3=None)) for peer in peers()]
    return [*found, *others]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transfers", description=__doc__)
    parser.add_argument("--size", type=int, default=2048, metavar="MIB", help="size of the models (2048)")
    parser.add_argument("--rounds", type=int, default=2, help="turns each client gets (2)")
    parser.add_argument(
        "--only", nargs="+", choices=_KINDS, default=_KINDS[:3], help="what to measure (all but scaling)"
    )
    parser.add_argument("--files", type=int, nargs="+", choices=(1, 4), default=(1, 4), help="how many files (1 and 4)")
    parser.add_argument("--largest", type=int, default=8192, metavar="MIB", help="last size of the scaling (8192)")
    parser.add_argument("--stores", nargs="+", choices=("folder", "s3"), default=["folder", "s3"])
    parser.add_argument("--out", type=Path, default=_RESULTS, help="where the results go")
    parser.add_argument("--scratch", help="where everything lies; a disk, not a tmpfs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
