"""``packager imatrix``: what a model makes of a text, as a guide for quantising it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from artifact.digest import Digest
from artifact.errors import InvalidInput, NotFound
from artifact.progress import Progress
from artifact.terminal import note, progress_bars
from packager.checkpoint import Checkpoint
from packager.material import as_folder, scratch_folder
from packager.options import PlainHttpOption
from packager.production import model_file
from packager.quantize.interpreter import find_interpreter
from packager.source import open_source

QuantizerOption = Annotated[
    str, typer.Option(metavar="PATH", help="A Python that has llama-cpp-python, or the folder of its environment.")
]


imatrix_app = typer.Typer()


@imatrix_app.command("imatrix")
def imatrix_command(
    source: Annotated[str, typer.Argument(help="The model: a folder, a .gguf file, hf://ORG/NAME@REV, or REF.")],
    text: Annotated[Path, typer.Option(metavar="FILE", help="Text of the kind that the model is to be good at.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where the matrix goes (GGUF).")],
    chunk_size: Annotated[int, typer.Option(metavar="TOKENS", min=16, max=1 << 16, help="Length of a piece.")] = 512,
    chunks: Annotated[int, typer.Option(metavar="N", min=0, help="Read N pieces at most (0: all).")] = 0,
    quantizer: QuantizerOption = "",
    plain_http: PlainHttpOption = False,
) -> None:
    """Compute an importance matrix: which columns of a model's weights a text makes use of.

    Example: packager imatrix ./model-F16.gguf --text calibration.txt -o model.imatrix.gguf
    """
    if not text.is_file():
        raise NotFound(f"--text {text}: no such file")
    if not output.absolute().parent.is_dir():
        raise NotFound(f"{output.absolute().parent}: no such folder")
    interpreter = find_interpreter(quantizer)
    checkpoint = open_source(source, (), plain_http=plain_http)
    if checkpoint.facts.precision not in ("F32", "F16", "BF16", "Q8_0"):
        note(f"warning: {checkpoint.place} is {checkpoint.facts.precision}: a matrix of the original is better")
    with progress_bars() as progress:
        count, weights = compute_imatrix(
            checkpoint, interpreter, text, output, progress, chunk_size=chunk_size, chunks=chunks
        )
    note(f"{count} pieces of {chunk_size} tokens, {weights} weights")
    print(output)


def compute_imatrix(
    checkpoint: Checkpoint, interpreter: Path, text: Path, target: Path, progress: Progress, *, chunk_size: int,
    chunks: int,
) -> tuple[int, int]:  # fmt: skip
    """Write the importance matrix of `checkpoint` over `text` to `target`, whole or not at all.

    Returns the number of pieces read and of weights seen. Raises `WorkerFailed` in llama.cpp's words.
    """
    from packager.quantize.imatrix import entries_of, write_imatrix
    from packager.quantize.process import run_worker
    from packager.quantize.quantize import WORKER

    raw = text.read_bytes()
    with as_folder(checkpoint, progress) as folder, scratch_folder() as scratch:
        collected = scratch / "activations.f32"
        request = {
            "do": "imatrix", "source": str(_model(checkpoint, folder, scratch, progress)),
            "text": str(text.absolute()), "target": str(collected), "chunk_size": chunk_size, "chunks": chunks,
            "threads": len(os.sched_getaffinity(0)),
        }  # fmt: skip
        found: dict[str, Any] = {}
        name = f"reading {text.name}"
        told = [0]

        def listen(answer: dict[str, Any]) -> None:
            found.update(answer)
            if "of" in answer:
                share = len(raw) * answer["at"] // answer["of"]
                progress.advance(name, share - told[0])
                told[0] = share

        progress.begin(name, len(raw))
        run_worker(interpreter, WORKER, request, scratch, listen)
        progress.finish(name)
        entries = entries_of(collected.read_bytes(), found["entries"])
        # By name and content: where the text lay on this machine's disk is nobody's business.
        dataset = f"{text.name}@{Digest.of(raw)}"
        with tempfile.NamedTemporaryFile(dir=target.absolute().parent, prefix=f".{target.name}.", delete=False) as part:
            beside = Path(part.name)
        try:
            write_imatrix(beside, entries, found["chunks"], chunk_size, dataset)
            beside.chmod(0o644)
            beside.replace(target)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    return found["chunks"], len(entries)


def _model(checkpoint: Checkpoint, folder: Path, scratch: Path, progress: Progress) -> Path:
    """The model as a GGUF file: converted, if it is a checkpoint, without loss."""
    from packager.convert import convert

    facts = checkpoint.facts
    if facts.format == "gguf":
        return folder / model_file(checkpoint)
    if facts.precision not in ("F32", "F16", "BF16"):
        raise InvalidInput(f"{checkpoint.place} is {facts.precision}: a matrix is computed from BF16, F16 or F32")
    return convert(folder, facts.precision, scratch / "model.gguf", progress).path
