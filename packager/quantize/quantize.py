"""From one GGUF file to another with smaller tensors, by llama.cpp's quantiser in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifact.errors import InvalidInput, Malformed
from artifact.progress import Progress
from artifact.weights import gguf
from artifact.weights.precision import Facts, facts_of
from artifact.weights.tensor import WeightFile
from packager.quantize.imatrix import ImportanceMatrix
from packager.quantize.process import run_worker
from packager.quantize.recipes import Recipe

WORKER = Path(__file__).with_name("worker.py")
_FLOATS = ("F64", "F32", "F16", "BF16")
_MAX_THREADS = 16


@dataclass(frozen=True)
class Quantized:
    """A finished file: its header, what it holds, the names and versions of what made it, and what a user should
    know about it (empty if it is what was asked for)."""

    path: Path
    weights: WeightFile
    facts: Facts
    tools: Mapping[str, str]
    warning: str


def is_quantized(weights: Sequence[WeightFile]) -> bool:
    """Whether any tensor of these files has been quantised already."""
    return any(tensor.dtype not in _FLOATS for file in weights for tensor in file.tensors)


def check_imatrix(recipe: Recipe, given: bool) -> None:
    """Raise `InvalidInput` if the recipe needs an importance matrix and none is given, or takes none and one is."""
    if recipe.needs_imatrix and not given:
        raise InvalidInput(
            f"{recipe.name} needs an importance matrix (--imatrix FILE): packager imatrix MODEL --text FILE -o FILE "
            "computes one"
        )
    if given and not recipe.uses_imatrix:
        raise InvalidInput(f"--imatrix makes no difference to {recipe.name}: leave it out")


def quantize(
    interpreter: Path,
    source: Path,
    recipe: Recipe,
    target: Path,
    progress: Progress,
    *,
    imatrix: ImportanceMatrix | None = None,
    requantize: bool = False,
) -> Quantized:
    """Quantise `source` (of a sharded set, the first shard) to `target`, whose folder is the worker's scratch folder.

    The bytes depend on the source, the recipe, the matrix and the build of llama.cpp alone. Raises `WorkerFailed` in
    llama.cpp's words, `InvalidInput` as `check_imatrix` does, `Malformed` for a matrix of another model.
    """
    check_imatrix(recipe, imatrix is not None)
    scratch = target.parent
    weights = gguf.read_header(source)
    if imatrix is not None:
        _check_fits(imatrix, weights)
    request: dict[str, Any] = {
        "do": "quantize", "source": str(source.absolute()), "target": str(target.absolute()), "type": recipe.number,
        "threads": min(_MAX_THREADS, len(os.sched_getaffinity(0))), "requantize": requantize,
        "imatrix": _handed_over(imatrix, scratch / "imatrix.f32") if imatrix else None,
        "metadata": imatrix.metadata() if imatrix else {},
    }  # fmt: skip
    name = f"quantising to {recipe.name}"
    listen = _listener(weights, name, progress)
    tools = run_worker(interpreter, WORKER, request, scratch, listen)
    progress.finish(name)
    result = gguf.read_header(target)
    facts = facts_of([result])
    return Quantized(target, result, facts, tools, _warning(recipe, facts, result))


def _check_fits(imatrix: ImportanceMatrix, weights: WeightFile) -> None:
    """A matrix none of whose entries is about this model is another model's. llama.cpp would take it in silence."""
    columns = {tensor.name: tensor.shape[-1] for tensor in weights.tensors if tensor.shape}
    known = [name for name in imatrix.entries if name in columns]
    if not known and "split.count" not in weights.metadata:
        raise Malformed("--imatrix: none of its entries is a tensor of this model: it was made for another")
    for name in known:
        if imatrix.entries[name].size % columns[name]:
            raise Malformed(
                f"--imatrix: {imatrix.entries[name].size} values for {name!r}, whose rows have {columns[name]}: it was "
                "made for another model"
            )


def _handed_over(imatrix: ImportanceMatrix, path: Path) -> dict[str, Any]:
    with path.open("wb") as stream:
        for values in imatrix.entries.values():
            stream.write(values.astype("<f4").tobytes())
    return {"values": str(path), "entries": [[name, values.size] for name, values in imatrix.entries.items()]}


def _listener(weights: WeightFile, name: str, progress: Progress) -> Any:
    """Turns the names of tensors that are begun into bytes of the source that are done."""
    lengths = {tensor.name: tensor.length for tensor in weights.tensors}
    progress.begin(name, sum(lengths.values()))
    begun: list[str] = []

    def listen(answer: dict[str, Any]) -> None:
        if begun:
            progress.advance(name, lengths.get(begun.pop(), 0))
        begun.append(str(answer.get("at")))

    return listen


def _warning(recipe: Recipe, facts: Facts, weights: WeightFile) -> str:
    """What became of a recipe whose tensors came out as something else for the most part."""
    if facts.precision == recipe.name:
        return ""
    held = ", ".join(f"{name} {share:.0%}" for name, share in facts.shares[:3])
    odd = sum(tensor.elements for tensor in weights.tensors if len(tensor.shape) > 1 and tensor.shape[-1] % 256)
    why = f": {odd / facts.parameters:.0%} of it is in rows that are no whole number of 256 values" if odd else ""
    return f"asked for {recipe.name}, the tensors came out as {facts.precision} ({held}){why}; so that is its name"
