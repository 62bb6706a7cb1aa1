"""``python -m benchmarks.conversion``: converting and quantising a model of 1.1 billion parameters, beside llama.cpp.

The checkpoint has the shape of a published one (TinyLlama) and random weights. Contestants take turns; each turn is
a process of its own, whose peak memory is its own too. llama.cpp's converter runs in the environment that
``python -m tests.packager.convert.oracle setup`` builds, its quantiser in a Python that has llama-cpp-python
(STOWAGE_LLAMA_CPP_PYTHON); what is missing is left out, and said.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from artifact.errors import StowageError
from benchmarks import machine, report
from benchmarks.memory import read_through, settle
from packager.quantize.interpreter import find_interpreter
from tests.checkpoints.families import write_tiny
from tests.packager.convert import oracle

_RESULTS = Path(__file__).parent / "results"
_MB = 1_000_000
_WEIGHTS = "model.safetensors"
_SHAPE = {
    "hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32, "num_key_value_heads": 4,
    "vocab_size": 32000, "max_position_embeddings": 2048,
}  # fmt: skip
_PEAK = """
import re, sys
def peak():
    # Not ru_maxrss, which a child inherits from the process that forks it.
    return int(re.search(r"VmHWM:\\s*([0-9]+) kB", open("/proc/self/status").read())[1])
"""
_OURS = (
    _PEAK
    + """
from pathlib import Path
from artifact.progress import Quiet
from packager.convert import convert
convert(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Quiet())
print(peak())
"""
)
_THEIRS = (
    _PEAK
    + """
import runpy
source, folder, precision, target = sys.argv[1:]
sys.path[:1] = [source, source + "/gguf-py"]
from conversion import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "default"  # it refuses a tokenizer it has not seen
sys.argv = ["convert", folder, "--outtype", precision.lower(), "--outfile", target]
runpy.run_path(source + "/convert_hf_to_gguf.py", run_name="__main__")
print(peak())
"""
)
_OUR_QUANTISER = """
import resource, sys
from pathlib import Path
from artifact.progress import Quiet
from packager.quantize.quantize import quantize
from packager.quantize.recipes import recipe_of
quantize(Path(sys.argv[1]), Path(sys.argv[2]), recipe_of("Q4_K_M"), Path(sys.argv[3]), Quiet())
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
_THEIR_QUANTISER = (
    _PEAK
    + """
import ctypes, llama_cpp, os
parameters = llama_cpp.llama_model_quantize_default_params()
parameters.ftype, parameters.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M, len(os.sched_getaffinity(0))
assert not llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(parameters))
print(peak())
"""
)


def main() -> None:
    """Take what is asked for from the command line."""
    options = _options()
    settings: dict[str, object] = {"layers": options.layers, "rounds": options.rounds, "precisions": options.precisions}
    about = machine.describe()
    with tempfile.TemporaryDirectory(prefix="bench-conversion-", dir=options.scratch) as scratch:
        folder = Path(scratch) / "checkpoint"
        settings["checkpoint"] = f"{_write(folder, options.layers) / _MB:.0f} MB BF16"
        series: list[report.Series] = []
        for measured in _series(folder, Path(scratch), options):
            series += measured
            print("\n".join(row for item in measured for row in report.rows(item)), flush=True)
            report.write(options.out, "conversion", series, settings, about)
    print(f"written: {options.out / 'conversion'}.md")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conversion", description=__doc__)
    parser.add_argument("--layers", type=int, default=22, help="layers of the model (22: 1.1 billion parameters)")
    parser.add_argument("--rounds", type=int, default=3, help="turns each contestant gets (3)")
    parser.add_argument("--precisions", nargs="+", default=["BF16", "F16", "Q8_0", "Q4_K_M"])
    parser.add_argument("--out", type=Path, default=_RESULTS, help="where the results go")
    parser.add_argument("--scratch", type=Path, help="where the files go, 10 GB of them for a while")
    return parser.parse_args()


def _write(folder: Path, layers: int) -> int:
    """A Llama checkpoint of random BF16 weights, written without holding it; the bytes of its weights."""
    write_tiny(folder, "mistral")
    config = json.loads((folder / "config.json").read_text()) | _SHAPE | {"num_hidden_layers": layers}
    config = {key: value for key, value in config.items() if key not in ("head_dim", "sliding_window")}
    (folder / "config.json").write_text(json.dumps(config))
    hidden, inner, values = config["hidden_size"], config["intermediate_size"], 64 * config["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    for number in range(layers):
        layer = f"model.layers.{number}"
        shapes |= {f"{layer}.self_attn.{name}_proj.weight": (hidden, hidden) for name in "qo"}
        shapes |= {f"{layer}.self_attn.{name}_proj.weight": (values, hidden) for name in "kv"}
        shapes |= {f"{layer}.mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        shapes |= {f"{layer}.mlp.down_proj.weight": (hidden, inner)}
        shapes |= {f"{layer}.{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    shapes["lm_head.weight"] = shapes["model.embed_tokens.weight"]
    header, offset = {}, 0
    for name, shape in shapes.items():
        length = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + length]}
        offset += length
    raw = json.dumps(header).encode()
    noise = (np.random.default_rng(0).standard_normal(1 << 22).astype("<f4") / 50).view("<u4") >> 16
    block = noise.astype("<u2").tobytes()
    with (folder / _WEIGHTS).open("wb") as stream:
        stream.write(len(raw).to_bytes(8, "little") + raw)
        for start in range(0, offset, len(block)):
            stream.write(block[: offset - start])
    return offset


def _series(folder: Path, scratch: Path, options: argparse.Namespace) -> Iterator[list[report.Series]]:
    yield [_copying(folder, scratch, options.rounds)]
    for precision in options.precisions:
        if precision == "Q4_K_M":
            yield from _quantising(folder, scratch, options.rounds)
            continue
        programs = {"stowage": [sys.executable, "-c", _OURS, str(folder), precision]}
        if oracle.missing():
            print(f"llama.cpp's converter is left out: {oracle.missing()}")
        else:
            python, source = oracle.ENVIRONMENT / "bin" / "python", str(oracle.SOURCE)
            programs["llama.cpp"] = [str(python), "-c", _THEIRS, source, str(folder), precision]
        yield _measured(f"convert to {precision}", programs, folder / _WEIGHTS, scratch, options.rounds)


def _quantising(folder: Path, scratch: Path, rounds: int) -> Iterator[list[report.Series]]:
    try:
        interpreter = find_interpreter()
    except StowageError as error:
        print(f"quantising is left out: {error}")
        return
    source = scratch / "source.gguf"
    subprocess.run([sys.executable, "-c", _OURS, folder, "BF16", source], check=True, stdout=subprocess.DEVNULL)
    programs = {
        "stowage": [sys.executable, "-c", _OUR_QUANTISER, str(interpreter), str(source)],
        "llama.cpp": [str(interpreter), "-c", _THEIR_QUANTISER, str(source)],
    }
    yield _measured("quantise to Q4_K_M", programs, source, scratch, rounds)
    source.unlink()


def _measured(
    what: str, programs: dict[str, list[str]], read: Path, scratch: Path, rounds: int
) -> list[report.Series]:  # fmt: skip
    """Speed by the bytes that are read, processor time and peak memory of each program in turn. The target is its last
    argument."""
    size = read.stat().st_size
    speed = report.Series(what, "MB/s read")
    processor = report.Series(f"{what}: processor time", "s", more_is_better=False)
    memory = report.Series(f"{what}: peak memory", "MiB", more_is_better=False)
    target = scratch / "target.gguf"
    for _ in range(rounds):
        for name, command in programs.items():
            settle()
            read_through([read])
            begun, before = time.perf_counter(), _processor()
            done = subprocess.run([*command, str(target)], capture_output=True, text=True, check=False)
            took = time.perf_counter() - begun
            if done.returncode:
                raise SystemExit(f"{name}, {what}: {done.stderr[-2000:]}")
            speed.add(name, size / _MB / took)
            processor.add(name, _processor() - before)
            memory.add(name, int(done.stdout.split()[-1]) / 1024)
            target.unlink()
    return [speed, processor, memory]


def _processor() -> float:
    """Seconds of processors that ended programs have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _copying(folder: Path, scratch: Path, rounds: int) -> report.Series:
    """What the disk allows: the checkpoint's weights read and written again."""
    weights = folder / _WEIGHTS
    series = report.Series("copy the weights (the disk's limit)", "MB/s read")
    for _ in range(rounds):
        settle()
        read_through([weights])
        begun = time.perf_counter()
        shutil.copyfile(weights, scratch / "copy")
        series.add("copy", weights.stat().st_size / _MB / (time.perf_counter() - begun))
        (scratch / "copy").unlink()
    return series


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).parents[1]))
    main()
