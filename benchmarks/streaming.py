"""``python -m benchmarks.streaming``: time to the first token of a model that is not there yet, streamed or pulled.

A registry on this machine, behind a proxy that lets so many bytes a second through, has the model; every turn begins
with an empty store. ``runner serve --stream`` and ``runner serve`` take turns whose order changes, each from the start
of the command to the first token of a chat completion on vLLM.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import httpx

from benchmarks import machine, report
from benchmarks.registry import contestants
from benchmarks.throttle import throttled

_BIN = Path(sys.executable).parent
_RESULTS = Path(__file__).parent / "results"
_ENGINES = Path(__file__).parents[1] / ".cache" / "engines"
_MIB = 1024 * 1024
_FLAGS = ("--enforce-eager", "--kv-cache-memory-bytes", str(256 * _MIB), "--max-num-seqs", "4")


def main() -> None:
    """Take what is asked for from the command line."""
    options = _options()
    if options.engine is None:
        print(
            "no vLLM (runner engine install vllm --variant cpu --store .cache, or name one with --engine): "
            "streaming is not measured"
        )
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is stopped
    about = machine.describe()
    first = report.Series("time to first token", "s", more_is_better=False)
    with tempfile.TemporaryDirectory(prefix="bench-streaming-", dir=options.scratch) as scratch, ExitStack() as stack:
        folder = Path(scratch)
        registry = stack.enter_context(contestants.ours(folder, None, 1))
        size = _publish(options, folder, registry.url.removeprefix("http://"))
        port = stack.enter_context(throttled(registry.url, options.rate * 1_000_000))
        reference = f"127.0.0.1:{port}/bench/model:v1"
        for turn in range(options.rounds):
            sides = [("stowage", ("--stream",)), ("pull, then load", ())]
            for name, more in sides if turn % 2 else sides[::-1]:
                first.add(name, _first_token(reference, folder / "store", options.engine, more))
                print(f"round {turn + 1}: {name}: {first.values[name][-1]:.1f} s", flush=True)
    print("\n".join(report.rows(first)))
    (ratios,) = first.ratios().values()
    print(f"streamed, the first token comes {statistics.median(ratios):.2f} times as soon")
    settings: dict[str, object] = {
        "model": f"{options.checkpoint.name if options.checkpoint else 'random Llama'}, {size / 1e9:.2f} GB",
        "megabytes_per_second": options.rate, "rounds": options.rounds, "engine": options.engine.name,
        "transfer_alone_s": round(size / options.rate / 1e6, 1),
    }  # fmt: skip
    report.write(options.out, "streaming", [first], settings, about)
    print(f"written: {options.out / 'streaming.md'}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streaming", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint folder (a random Llama of --size is made)")
    parser.add_argument("--size", type=float, default=2.0, metavar="GB", help="size of the random Llama (2)")
    parser.add_argument("--rate", type=int, default=200, metavar="MB/S", help="what the proxy lets through (200)")
    parser.add_argument("--rounds", type=int, default=3, help="turns each side gets (3)")
    parser.add_argument("--engine", type=Path, help="a virtual environment with vLLM (the one the tests install)")
    parser.add_argument("--out", type=Path, default=_RESULTS, help="where the results go")
    parser.add_argument("--scratch", help="where models and stores lie; a disk, not a tmpfs")
    options = parser.parse_args()
    options.engine = options.engine or next(iter(sorted(_ENGINES.glob("vllm-*-cpu"))), None)
    return options


def _publish(options: argparse.Namespace, folder: Path, host: str) -> int:
    """Put the model into the registry; the bytes of its weights."""
    from tests.checkpoints.tiny import write_tiny_llama

    checkpoint = options.checkpoint
    if checkpoint is None:
        layer = 2 * (2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 5632)  # bytes of one layer
        checkpoint = write_tiny_llama(
            folder / "checkpoint", layers=max(1, round(options.size * 1e9 / layer)), hidden=2048, heads=32, kv_heads=8,
            intermediate=5632, context=2048, shards=4,
        )  # fmt: skip
    size = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
    environment = {**os.environ, "STOWAGE_STORE": str(folder / "packing")}
    command = [str(_BIN / "packager"), "pack", str(checkpoint), f"{host}/bench/model:v1", "--push"]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    return size


def _first_token(reference: str, store: Path, engine: Path, more: tuple[str, ...]) -> float:
    """Seconds from the start of the command to the first token, with an empty store."""
    shutil.rmtree(store, ignore_errors=True)
    command = [
        str(_BIN / "runner"), "serve", reference, *more, "--listen", "127.0.0.1:0", "--context-size", "512",
        "--engine-path", str(engine), "--", *_FLAGS,
    ]  # fmt: skip
    began = time.perf_counter()
    with (store.parent / "serve.err").open("a") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, "STOWAGE_STORE": str(store)}
        )
    try:
        assert process.stdout is not None
        ready = next((line for line in process.stdout if line.startswith("ready:")), None)
        if ready is None:
            raise RuntimeError(f"the runner did not serve:\n{(store.parent / 'serve.err').read_text()[-3000:]}")
        _ask(ready.partition(" ")[2].strip())
        return time.perf_counter() - began
    finally:
        process.terminate()
        process.wait(60)


def _ask(url: str) -> None:
    """Return when the first token of a chat completion has come."""
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", f"{url}/chat/completions", json=body, timeout=300) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {") and any(
                choice.get("delta", {}).get("content") is not None for choice in json.loads(line[6:]).get("choices", [])
            ):
                return
    raise RuntimeError("the answer had no token")


if __name__ == "__main__":
    main()
