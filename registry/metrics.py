"""What the registry counts, in the text format of Prometheus.

Server processes that belong together write their counts to files of one folder each second, and any of them answers
with the sum: it does not matter which one is asked. Counts of a process that has ended stay in the sum, so that no
counter goes down; its gauges do not.
Source: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import json
import os
import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from artifact.version import __version__

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper bounds of the latency histogram, in seconds."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_PREFIX = "stowage_registry_"


@dataclass(frozen=True)
class Family:
    """A metric: `kind` is ``counter`` or ``gauge``, `labels` the names of its labels."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()


REQUESTS = Family("requests_total", "counter", "Requests answered.", ("route", "method", "status"))
IN_FLIGHT = Family("requests_in_flight", "gauge", "Requests being answered.")
UPLOADS = Family("uploads_in_flight", "gauge", "Requests whose blob is being received.")
RECEIVED = Family("received_bytes_total", "counter", "Bytes of blobs and manifests received.", ("route",))
SENT = Family("sent_bytes_total", "counter", "Bytes of bodies sent; not those that the store sends itself.", ("route",))
STORE_ERRORS = Family("store_errors_total", "counter", "Requests that failed because the object store did.")
LIMITED = Family("limited_total", "counter", "Requests refused because their sender made too many.")
EVENTS = Family("events_total", "counter", "Webhook events by what became of them.", ("outcome",))
WAITING = Family("events_waiting", "gauge", "Pushes, deletions and moved tags that a webhook is still to be told of.")
GC_CYCLES = Family("gc_cycles_total", "counter", "Cycles of the garbage collector that ran to their end.")
GC_OBJECTS = Family("gc_objects_total", "counter", "Objects by what the garbage collector did with them.", ("what",))
GC_BYTES = Family("gc_deleted_bytes_total", "counter", "Bytes the garbage collector gave back.")

FAMILIES = (
    REQUESTS, IN_FLIGHT, UPLOADS, RECEIVED, SENT, STORE_ERRORS, LIMITED, EVENTS, WAITING, GC_CYCLES, GC_OBJECTS,
    GC_BYTES,
)  # fmt: skip

_Sample = tuple[str, tuple[str, ...]]


class Metrics:
    """The counts of one process; with `folder`, of all processes that share it. Safe from any thread."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._values: dict[_Sample, float] = defaultdict(float)
        self._buckets: dict[tuple[str, ...], list[float]] = {}
        self._lock = threading.Lock()

    def add(self, family: Family, *labels: str, amount: float = 1) -> None:
        """Count up, or for a gauge also down."""
        with self._lock:
            self._values[family.name, labels] += amount

    def request(self, route: str, method: str, status: int, seconds: float, received: int, sent: int) -> None:
        """Count a request that has been answered."""
        with self._lock:
            values = self._values
            values[REQUESTS.name, (route, method, str(status))] += 1
            values[IN_FLIGHT.name, ()] -= 1
            if received:
                values[RECEIVED.name, (route,)] += received
            if sent:
                values[SENT.name, (route,)] += sent
            histogram = self._buckets.get((route,))
            if histogram is None:
                histogram = self._buckets[route,] = [0.0] * (len(BUCKETS) + 2)
            histogram[bisect_left(BUCKETS, seconds)] += 1
            histogram[-1] += seconds

    def snapshot(self) -> bytes:
        """Everything counted here, for `merge`."""
        with self._lock:
            values = [[name, labels, value] for (name, labels), value in self._values.items()]
            buckets = [[labels, counts] for labels, counts in self._buckets.items()]
        return json.dumps({"pid": os.getpid(), "values": values, "buckets": buckets}).encode()

    def share(self) -> None:
        """Write the counts to the folder, for the other processes."""
        if self._folder is not None:
            path = self._folder / str(os.getpid())
            path.with_suffix(".new").write_bytes(self.snapshot())
            path.with_suffix(".new").replace(path)

    def text(self) -> str:
        """The sum over all processes, in the text format."""
        self.share()
        total = Metrics()
        if self._folder is None:
            total.merge(self.snapshot())
        else:
            for path in sorted(self._folder.iterdir()):
                if path.suffix != ".new":
                    total.merge(path.read_bytes())
        return "\n".join((*total._lines(), ""))

    def merge(self, snapshot: bytes) -> None:
        """Add the counts of a snapshot to these."""
        value = json.loads(snapshot)
        alive = _is_alive(value["pid"])
        gauges = {family.name for family in FAMILIES if family.kind == "gauge"}
        for name, labels, amount in value["values"]:
            if alive or name not in gauges:
                self._values[name, tuple(labels)] += amount
        for labels, counts in value["buckets"]:
            mine = self._buckets.setdefault(tuple(labels), [0.0] * len(counts))
            mine[:] = [a + b for a, b in zip(mine, counts, strict=True)]

    def _lines(self) -> Iterator[str]:
        yield from _head("info", "gauge", "The version that runs.")
        yield f'{_PREFIX}info{{version="{__version__}"}} 1'
        for family in FAMILIES:
            yield from _head(family.name, family.kind, family.help)
            found = sorted((labels, value) for (name, labels), value in self._values.items() if name == family.name)
            for labels, value in found or ([((), 0.0)] if not family.labels else []):
                yield f"{_PREFIX}{family.name}{_labels(family.labels, labels)} {_number(value)}"
        yield from _head("request_seconds", "histogram", "Time from the request to the end of the answer.")
        for labels, counts in sorted(self._buckets.items()):
            yield from _histogram(labels, counts)


def _histogram(labels: tuple[str, ...], counts: list[float]) -> Iterator[str]:
    count = 0.0
    for bound, amount in zip((*map(str, BUCKETS), "+Inf"), counts, strict=False):
        count += amount
        yield f"{_PREFIX}request_seconds_bucket{_labels(('route', 'le'), (*labels, bound))} {_number(count)}"
    yield f"{_PREFIX}request_seconds_sum{_labels(('route',), labels)} {_number(counts[-1])}"
    yield f"{_PREFIX}request_seconds_count{_labels(('route',), labels)} {_number(count)}"


def _head(name: str, kind: str, help_: str) -> Iterator[str]:
    yield f"# HELP {_PREFIX}{name} {help_}"
    yield f"# TYPE {_PREFIX}{name} {kind}"


def _labels(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    if not names:
        return ""
    escaped = (value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for value in values)
    return "{" + ",".join(f'{name}="{value}"' for name, value in zip(names, escaped, strict=True)) + "}"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
