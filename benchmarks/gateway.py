"""``python -m benchmarks.gateway``: what the runner's gateway adds to an engine asked directly.

One engine serves one model. The same requests go to the engine's own socket and through the gateway, in turns, from
one client; ratios are taken within a turn, so that a burst of load on the machine counts for both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

from benchmarks import machine, report

_BIN = Path(sys.executable).parent
_RESULTS = Path(__file__).parent / "results"
_LISTEN = "127.0.0.1:12599"


def main() -> None:
    """Take what is asked for from the command line."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="bench-gateway-") as scratch:
        reference = options.reference or _small_model(Path(scratch))
        with _serving(reference, Path(scratch) / "store", options.streams) as socket:
            first, many = uvloop.run(_measure(reference, socket, options))
    for item in (first, many):
        print("\n".join(report.rows(item)))
    added = statistics.median(a - b for a, b in zip(first.values["stowage"], first.values["engine"], strict=True))
    kept = statistics.median(many.ratios()["engine"])
    print(
        f"added to the first token: {added:.2f} ms; throughput at {options.streams} streams: {kept:.3f} of the engine's"
    )
    settings = {"streams": options.streams, "tokens": options.tokens, "rounds": options.rounds}
    report.write(options.out, "gateway", [first, many], settings, machine.describe())
    print(f"written: {options.out / 'gateway'}.md")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__)
    parser.add_argument("--reference", help="a GGUF model to serve (a small random one is made)")
    parser.add_argument("--streams", type=int, default=32, help="requests at a time (32)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each answer (64)")
    parser.add_argument("--rounds", type=int, default=9, help="turns each side gets (9)")
    parser.add_argument("--out", type=Path, default=_RESULTS, help="where the results go")
    return parser.parse_args()


def _small_model(folder: Path) -> str:
    """A random Llama of 40 million parameters, packed into a layout."""
    from tests.checkpoints.tiny import write_tiny_llama

    made = write_tiny_llama(folder / "tiny", layers=8, hidden=640, heads=10, intermediate=1728, context=4096)
    target = f"oci:{folder}/layout:v"
    command = [
        str(_BIN / "packager"),
        "pack",
        str(made),
        f"oci:{folder}/layout",
        "--format",
        "gguf",
        "--precision",
        "F16",
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "STOWAGE_STORE": str(folder / "packed")}
    )
    return done.stdout.splitlines()[-1].partition("@")[0] or target


@contextmanager
def _serving(reference: str, store: Path, parallel: int) -> Iterator[str]:
    """A runner with its engine; the path of the engine's socket."""
    command = [str(_BIN / "runner"), "serve", reference, "--listen", _LISTEN, "--context-size", "512"]
    process = subprocess.Popen(
        [*command, "--", "--parallel", str(parallel)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "STOWAGE_STORE": str(store)},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("ready:"):
                break
        (socket,) = (store / "run").glob("*/engines/*/engine.sock")
        yield str(socket)
    finally:
        process.terminate()
        process.wait(60)


async def _measure(reference: str, socket: str, options: argparse.Namespace) -> tuple[report.Series, report.Series]:
    first = report.Series("time to first token, one stream", "ms", more_is_better=False)
    many = report.Series(f"tokens, {options.streams} streams", "1/s")
    for turn in range(options.rounds + 1):
        sides = [("engine", socket), ("stowage", "")]
        for name, path in sides if turn % 2 else reversed(sides):
            alone = statistics.median([(await _ask(reference, path, 4))[0] for _ in range(15)])
            began = time.perf_counter()
            answers = await asyncio.gather(*(_ask(reference, path, options.tokens) for _ in range(options.streams)))
            spent = time.perf_counter() - began
            if turn:  # the first turn warms up
                first.add(name, alone * 1000)
                many.add(name, sum(events for _, events in answers) / spent)
    return first, many


async def _ask(reference: str, socket: str, tokens: int) -> tuple[float, int]:
    """One streamed request; seconds to its first event, and how many there were."""
    body = json.dumps({
        "model": reference, "messages": [{"role": "user", "content": "hello"}], "max_tokens": tokens, "stream": True,
        "ignore_eos": True,
    }).encode()  # fmt: skip
    place = urlsplit(f"//{_LISTEN}")
    began = time.perf_counter()
    opening = asyncio.open_unix_connection(socket) if socket else asyncio.open_connection(place.hostname, place.port)
    reader, writer = await opening
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
    writer.write(f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
    first, events = 0.0, 0
    while piece := await reader.read(65536):
        events += piece.count(b"data:")
        first = first or (time.perf_counter() - began if events else 0.0)
    writer.close()
    return first, events


if __name__ == "__main__":
    main()
