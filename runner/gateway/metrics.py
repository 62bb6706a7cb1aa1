"""Metrics in the Prometheus text format: the gateway's own, and each engine's with the digest of its model."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from runner.deployment import Deployment, State
from runner.fleet import Fleet
from runner.gateway.call import Call
from runner.gateway.upstream import UpstreamError

_LARGEST = 4 * 1024 * 1024
_TIMEOUT = 2.0
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? ([+-]?(?:[0-9.]\S*|Inf|NaN)(?: -?[0-9]+)?)")
_PARTS = re.compile(r"_(?:bucket|sum|count|total|created)$")


class Metrics:
    """The gateway's numbers."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "stowage_requests", "Requests answered", ("route", "digest", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "stowage_request_seconds", "Time to the end of the answer", ("route", "digest"), buckets=_SECONDS,
            registry=self._registry,
        )  # fmt: skip
        self._first = Histogram(
            "stowage_first_byte_seconds", "Time to the first byte of the answer", ("route", "digest"),
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self._active = self._gauge("stowage_requests_active", "Requests under way", "digest", "name")
        self._ready = self._gauge("stowage_model_state", "1 for the state a model is in", "digest", "name", "state")
        self._restarts = self._gauge("stowage_engine_restarts", "Restarts of a crashed engine", "digest", "name")
        self._memory = self._gauge("stowage_model_memory_bytes", "Memory a loaded model is held to need", "digest")
        self._loads = self._gauge("stowage_model_loads", "Times a model became ready")
        self._evictions = self._gauge("stowage_model_evictions", "Models unloaded to make room for another")

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self._registry)

    def first_byte(self, call: Call, seconds: float) -> None:
        """The first byte of an answer has left. Later calls for the same request count nothing."""
        if call.digest and not call.told:
            call.told = True
            self._first.labels(call.route, call.digest).observe(seconds)

    def done(self, call: Call, status: int, seconds: float) -> None:
        """A request has been answered; 499 where the client left before."""
        self._requests.labels(call.route, call.digest, str(status)).inc()
        self._seconds.labels(call.route, call.digest).observe(seconds)

    async def text(self, fleet: Fleet) -> bytes:
        """All of it, the engines' own with theirs."""
        for gauge in (self._active, self._ready, self._restarts, self._memory):
            gauge.clear()
        for item in fleet.deployments:
            digest = str(item.digest)
            self._active.labels(digest, item.name).set(item.active)
            self._restarts.labels(digest, item.name).set(item.restarts)
            self._memory.labels(digest).set(item.estimate.total if item.estimate else 0)
            for state in State:
                self._ready.labels(digest, item.name, state.value).set(item.state is state)
        self._loads.set(fleet.loads)
        self._evictions.set(fleet.evictions)
        ready = [item for item in fleet.deployments if item.upstream is not None]
        texts = await asyncio.gather(*(_ask(item) for item in ready))
        pairs = [(str(item.digest), text) for item, text in zip(ready, texts, strict=True)]
        return generate_latest(self._registry) + merged(pairs).encode()


async def _ask(deployment: Deployment) -> str:
    if deployment.upstream is None:
        return ""
    try:
        async with asyncio.timeout(_TIMEOUT):
            answer = await deployment.upstream.send("GET", "/metrics")
            try:
                return (await answer.read(_LARGEST)).decode("utf-8", "replace") if answer.status == 200 else ""
            finally:
                answer.close()
    except (UpstreamError, TimeoutError):
        return ""


def merged(engines: Iterable[tuple[str, str]]) -> str:
    """The metrics of several engines, each sample with the digest of its model as a label; what is no sample is left
    out. Samples of one metric stand together, as the format wants."""
    families: dict[str, tuple[list[str], list[str]]] = {}
    for digest, text in engines:
        described: set[str] = set()
        for line in text.splitlines():
            if line.startswith(("# HELP ", "# TYPE ")):
                name = line.split(" ", 3)[2]
                described.add(name)
                heading = families.setdefault(name, ([], []))[0]
                if not any(other.split(" ", 3)[:3] == line.split(" ", 3)[:3] for other in heading):
                    heading.append(line)
            elif match := _SAMPLE.fullmatch(line):
                name, labels, value = match.groups()
                base = _PARTS.sub("", name)
                family = name if name in described else base if base in described else name
                labels = ",".join(part for part in (f'digest="{digest}"', labels) if part)
                families.setdefault(family, ([], []))[1].append(f"{name}{{{labels}}} {value}")
    return "".join(f"{line}\n" for heading, samples in families.values() if samples for line in (*heading, *samples))
