"""How the weights of an artifact are made where they are not the checkpoint's own: converted, quantised, cut.

A checkpoint is converted as it is read, without a copy, where this project's own converter does it all. Quantising
needs whole files: it goes through a scratch folder, which is gone afterwards whatever happens.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from artifact.digest import Digest
from artifact.errors import InvalidInput, Malformed, NotFound
from artifact.progress import Progress
from artifact.terminal import note
from artifact.weights import gguf
from artifact.weights.precision import facts_of
from packager.checkpoint import Checkpoint, PackFile
from packager.content import Content, Made, OnDisk
from packager.files import Kind, is_projector
from packager.findings import Finding
from packager.material import (
    Material,
    as_folder,
    converted,
    scratch_folder,
    watched,
    weights_stem,
    with_documents,
)
from packager.quantize.interpreter import find_interpreter
from packager.quantize.recipes import Recipe, recipe_of
from packager.witness import SourceDigests

if TYPE_CHECKING:
    from packager.convert import Plan
    from packager.convert.llamacpp import Converter

OWN, LLAMA_CPP = "stowage", "llama.cpp"
_FLOATS = ("F32", "F16", "BF16")
_CONVERTED = (*_FLOATS, "Q8_0")
"""What either converter makes by itself; everything else is quantised afterwards."""

REQUANTIZED = "requantized"


@dataclass(frozen=True)
class Production:
    """What a user may choose about it. `imatrix` is an importance matrix's file; `quantizer` the Python that has
    llama-cpp-python; `converter` is `OWN` or `LLAMA_CPP`, at `converter_path`; `split_max_size` the most bytes of
    tensors in one file (0: one file)."""

    imatrix: Path | None = None
    quantizer: str = ""
    converter: str = OWN
    converter_path: str = ""
    split_max_size: int = 0


def produces(checkpoint: Checkpoint, format_: str | None, precision: str | None, production: Production) -> bool:
    """Whether the artifact's weights are others than the checkpoint's: another format, precision or number of files."""
    facts = checkpoint.facts
    if format_ not in (None, facts.format):
        return True
    if facts.format != "gguf":
        return False
    return precision not in (None, facts.precision) or production.split_max_size > 0


def production_findings(checkpoint: Checkpoint, precision: str | None) -> tuple[Finding, ...]:
    """What is wrong with making `precision` out of this checkpoint."""
    facts = checkpoint.facts
    if facts.format != "gguf" or precision in (None, facts.precision):
        return ()
    if all(tensor.dtype in (*_FLOATS, "F64") for file in checkpoint.weights for tensor in file.tensors):
        return ()
    message = (
        f"{facts.precision} already: what that lost stays lost, and {precision} loses more; start from the original"
    )
    return (Finding(REQUANTIZED, message, checkpoint.place),)


def check_production(checkpoint: Checkpoint, precision: str, production: Production) -> None:
    """Raise what can be said against making it before any work is done: an unknown type, a missing matrix, no
    quantiser, no converter."""
    from packager.quantize.quantize import check_imatrix

    recipe, given = recipe_of(precision), production.imatrix is not None
    if production.imatrix is not None and not production.imatrix.is_file():
        raise NotFound(f"--imatrix {production.imatrix}: no such file")
    check_imatrix(recipe, given)
    if production.converter == LLAMA_CPP:
        if checkpoint.facts.format == "gguf":
            raise InvalidInput(f"{checkpoint.place} is GGUF: there is nothing for --converter llama.cpp to convert")
        _llama_cpp(production)
    if _quantizes(checkpoint, precision):
        find_interpreter(production.quantizer)


@contextmanager
def produced(
    checkpoint: Checkpoint, precision: str, production: Production, allowed: Collection[str], progress: Progress,
    sources: SourceDigests | None = None,
) -> Iterator[Material]:  # fmt: skip
    """The files of the artifact to be, for as long as the context lasts. `sources` is shown what is read of them."""
    if production == Production() and not _quantizes(checkpoint, precision):
        with converted(checkpoint, precision, progress, sources) as material:
            yield material
        return
    from packager.convert.split import plan_copy

    with ExitStack() as stack:
        folder = stack.enter_context(as_folder(checkpoint, progress))
        scratch = stack.enter_context(scratch_folder())
        made = _made(checkpoint, recipe_of(precision), production, allowed, folder, scratch, progress, sources)
        if production.split_max_size and isinstance(made, Path):
            made = watched(plan_copy(made), folder, sources)
        yield _material(checkpoint, precision, production, made)


def model_file(checkpoint: Checkpoint) -> str:
    """The name of a GGUF model's file, or of its first shard."""
    return next(file.path for file in checkpoint.files if file.kind is Kind.WEIGHT and not is_projector(file.path))


def tools_of(checkpoint: Checkpoint, precision: str, production: Production) -> dict[str, str]:
    """Names and versions of the other programs that have a part in the bytes."""
    from packager.quantize.process import run_worker
    from packager.quantize.quantize import WORKER

    tools: dict[str, str] = {}
    if production.converter == LLAMA_CPP:
        tools |= _llama_cpp(production).tools()
    if _quantizes(checkpoint, precision):
        interpreter = find_interpreter(production.quantizer)
        with scratch_folder() as scratch:
            tools |= run_worker(interpreter, WORKER, {"do": "about"}, scratch, lambda _: None)
    return tools


def runs_others(checkpoint: Checkpoint, precision: str, production: Production) -> bool:
    """Whether another program than this one has a part in making `precision`: a converter or a quantiser."""
    return production.converter != OWN or _quantizes(checkpoint, precision)


def imatrix_digest(production: Production) -> Digest | None:
    """The digest of the importance matrix, if there is one."""
    return Digest.of(production.imatrix.read_bytes()) if production.imatrix is not None else None


def _quantizes(checkpoint: Checkpoint, precision: str) -> bool:
    facts = checkpoint.facts
    if facts.format == "gguf":
        return precision != facts.precision
    return recipe_of(precision).name not in _CONVERTED


def _made(
    checkpoint: Checkpoint, recipe: Recipe, production: Production, allowed: Collection[str], folder: Path,
    scratch: Path, progress: Progress, sources: SourceDigests | None,
) -> Plan | Path:  # fmt: skip
    """The one GGUF file, or how to make it."""
    from packager.convert import plan_conversion
    from packager.quantize.imatrix import read_imatrix
    from packager.quantize.quantize import quantize

    quantizes = _quantizes(checkpoint, recipe.name)
    imatrix = read_imatrix(production.imatrix) if production.imatrix is not None else None
    facts = checkpoint.facts
    between = facts.precision if facts.precision in _FLOATS else "F32"
    if facts.format == "gguf":
        source = folder / model_file(checkpoint)
    elif production.converter == LLAMA_CPP:
        source = scratch / "converted.gguf"
        wanted = between if quantizes else recipe.name
        _llama_cpp(production).convert(folder, wanted, checkpoint.name, source, progress)
    elif quantizes:
        source = scratch / "converted.gguf"
        plan = watched(plan_conversion(folder, between), folder, sources)
        plan.write(source, progress)
        _warn(plan.warning)
    else:
        plan = watched(plan_conversion(folder, recipe.name), folder, sources)
        _warn(plan.warning)
        return plan
    if not quantizes:
        return source
    target = scratch / "quantized.gguf"
    interpreter = find_interpreter(production.quantizer)
    requantize = REQUANTIZED in allowed
    result = quantize(interpreter, source, recipe, target, progress, imatrix=imatrix, requantize=requantize)
    if facts.format != "gguf":
        source.unlink()
    _warn(result.warning)
    return target


def _warn(warning: str) -> None:
    if warning:
        note(f"warning: {warning}")


def _material(checkpoint: Checkpoint, precision: str, production: Production, made: Plan | Path) -> Material:
    """The weights under names that say what they are, cut if that is wanted."""
    from packager.convert.split import shard_names, split

    contents: list[Content]
    if isinstance(made, Path):
        contents = [OnDisk(made)]
    else:
        plans = split(made, production.split_max_size) if production.split_max_size else [made]
        contents = [Made(each.size, each.source) for each in plans]
    headers = tuple(gguf.read_source(content.source, content.size, checkpoint.name) for content in contents)
    facts = facts_of(headers)
    if precision in _CONVERTED and facts.precision != precision:
        raise Malformed(f"{checkpoint.place}: the conversion to {precision} came out as {facts.precision}")
    names = shard_names(f"{weights_stem(checkpoint)}-{facts.precision}", len(contents))
    files = [PackFile(name, Kind.WEIGHT, content) for name, content in zip(names, contents, strict=True)]
    files += [file for file in checkpoint.files if is_projector(file.path)]  # stays as it is
    return Material(with_documents(checkpoint, files), headers, facts)


def _llama_cpp(production: Production) -> Converter:
    from packager.convert.llamacpp import find_converter

    return find_converter(production.converter_path)


def size_of(text: str | None) -> int:
    """``--split-max-size`` in bytes; 0 if it is not given. Raises `InvalidInput`."""
    from packager.convert.split import parse_size

    return parse_size(text) if text is not None else 0
