"""``python -m benchmarks.gateway``: what the runner's gateway adds to an engine asked directly.

One engine serves one model. The same requests go to the engine's own socket and through the gateway, in turns whose
order changes; ratios are taken within a turn, so that a burst of load on the machine counts for both. The client only
counts bytes, because it has to share the machine with what it measures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import uvloop

from benchmarks import machine, report
from benchmarks.memory import peak

_BIN = Path(sys.executable).parent
_RESULTS = Path(__file__).parent / "results"
_ALONE = 40


@dataclass(frozen=True)
class Place:
    """The engine and the gateway before it: the model's name, where each listens, the gateway's process."""

    model: str
    socket: str
    port: int
    pid: int


def main() -> None:
    """Take what is asked for from the command line."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the runner is stopped
    about = machine.describe()
    with tempfile.TemporaryDirectory(prefix="bench-gateway-") as scratch:
        reference = options.reference or _small_model(Path(scratch))
        with _serving(reference, Path(scratch) / "store", options.streams) as place:
            series = uvloop.run(_measure(place, options))
    for item in series:
        print("\n".join(report.rows(item)))
    print(_verdict(series, options.streams))
    settings = {
        "streams": options.streams, "tokens": options.tokens, "rounds": options.rounds,
        "model": (options.reference or "").rpartition("/")[2] or "random Llama, 40M parameters, F16",
    }  # fmt: skip
    report.write(options.out, "gateway", series, settings, about)
    print(f"written: {options.out / 'gateway.md'}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__)
    parser.add_argument("--reference", help="a GGUF model to serve (a small random one is made)")
    parser.add_argument("--streams", type=int, default=32, help="requests at a time (32)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of each answer (128)")
    parser.add_argument("--rounds", type=int, default=9, help="turns each side gets (9)")
    parser.add_argument("--out", type=Path, default=_RESULTS, help="where the results go")
    return parser.parse_args()


def _verdict(series: Sequence[report.Series], streams: int) -> str:
    first, many, *_ = series
    added = statistics.median(a - b for a, b in zip(first.values["stowage"], first.values["engine"], strict=True))
    kept = many.ratios()["engine"]
    quarters = statistics.quantiles(kept, n=4, method="inclusive") if len(kept) > 1 else [kept[0]] * 3
    return (
        f"added to the first token: {added:.2f} ms; throughput at {streams} streams: {statistics.median(kept):.3f} of "
        f"the engine's (middle half {quarters[0]:.3f} to {quarters[2]:.3f})"
    )


def _small_model(folder: Path) -> str:
    """A random Llama of 40 million parameters, packed into a layout."""
    from tests.checkpoints.tiny import write_tiny_llama

    made = write_tiny_llama(folder / "tiny", layers=8, hidden=640, heads=10, intermediate=1728, context=4096)
    command = ["pack", str(made), f"oci:{folder}/layout", "--format", "gguf", "--precision", "F16"]
    environment = {**os.environ, "STOWAGE_STORE": str(folder / "packed")}
    done = subprocess.run(
        [str(_BIN / "packager"), *command], capture_output=True, text=True, check=True, env=environment
    )
    return done.stdout.splitlines()[-1].partition("@")[0]


@contextmanager
def _serving(reference: str, store: Path, parallel: int) -> Iterator[Place]:
    """A runner with its engine."""
    command = [str(_BIN / "runner"), "serve", reference, "--listen", "127.0.0.1:0", "--context-size", "512"]
    process = subprocess.Popen(
        [*command, "--", "--parallel", str(parallel)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "STOWAGE_STORE": str(store)},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        ready = next(line for line in process.stdout if line.startswith("ready:"))
        (socket,) = (store / "run").glob("*/engines/*/engine.sock")
        yield Place(reference, str(socket), int(ready.rpartition(":")[2].partition("/")[0]), process.pid)
    finally:
        process.terminate()
        process.wait(60)


async def _measure(place: Place, options: argparse.Namespace) -> list[report.Series]:
    first = report.Series("time to first token, one stream", "ms", more_is_better=False)
    many = report.Series(f"tokens, {options.streams} streams", "1/s")
    spent = report.Series("processor time of the gateway for 1000 events", "ms", more_is_better=False)
    memory = report.Series("most memory of the gateway", "MiB", more_is_better=False)
    sides = [("engine", place.socket), ("stowage", "")]
    for turn in range(options.rounds + 1):
        order = sides if turn % 2 else sides[::-1]
        alone: dict[str, list[float]] = {name: [] for name, _ in sides}
        for seed in range(_ALONE):  # neighbours in time: what else the machine does falls on both
            for name, path in order:
                alone[name].append((await Stream.ask(place, path, 4, seed)).first)
        for name, path in order:
            before, began = _processor_seconds(place.pid), time.perf_counter()
            asked = (Stream.ask(place, path, options.tokens, seed) for seed in range(options.streams))
            streams = await asyncio.gather(*asked)
            seconds = time.perf_counter() - began
            used = _processor_seconds(place.pid) - before
            if turn:  # the first turn warms up
                first.add(name, statistics.median(alone[name]) * 1000)
                many.add(name, options.streams * options.tokens / seconds)
                if not path:
                    spent.add(name, used * 1e6 / sum(stream.events for stream in streams))
    memory.add("stowage", peak(place.pid))
    return [first, many, spent, memory]


def _processor_seconds(pid: int) -> float:
    """What a process's threads have used so far (schedstat has nanoseconds, where stat counts ticks of 10 ms)."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()) / 1e9


class Stream(asyncio.Protocol):
    """One streamed answer: `first` is the time to its first token in seconds, `events` how many there were."""

    def __init__(self, request: bytes) -> None:
        self.first = 0.0
        self.events = 0
        self._request = request
        self._last = b""
        self._began = time.perf_counter()
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def ask(cls, place: Place, socket: str, tokens: int, seed: int) -> Stream:
        """Ask for exactly so many tokens, and return when all of them are there."""
        body = json.dumps({
            "model": place.model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": tokens,
            "stream": True, "ignore_eos": True, "seed": seed,
        }).encode()  # fmt: skip
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        loop, stream = asyncio.get_running_loop(), cls(head.encode() + body)
        if socket:
            await loop.create_unix_connection(lambda: stream, socket)
        else:
            await loop.create_connection(lambda: stream, "127.0.0.1", place.port)
        await stream._ended
        return stream

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        self.events += data.count(b"data:")
        if self.events and not self.first:
            self.first = time.perf_counter() - self._began
        self._last = (self._last + data)[-64:]

    def connection_lost(self, exc: Exception | None) -> None:
        if self._last.endswith(b"0\r\n\r\n") and b"[DONE]" in self._last:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(RuntimeError(f"an answer was cut off: {exc or self._last!r}"))


if __name__ == "__main__":
    main()
