"""What is in a weight file's tensors: each read once, in the order of the file, and only those that are asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from artifact.errors import Malformed
from artifact.progress import Progress
from artifact.source import Reader
from artifact.weights.tensor import Tensor, WeightFile
from packager.checkpoint import Checkpoint, PackFile
from packager.files import Kind, is_projector

_BUFFER = 4 * 1024 * 1024
_READ_THROUGH = 1024 * 1024
"""Gaps of up to this many bytes are read and dropped: cheaper than asking again."""

See = Callable[[Tensor, memoryview], None]
"""Is shown a tensor's bytes, piece by piece, in order."""


@dataclass(frozen=True)
class Weights:
    """A weight file of a checkpoint, with its header."""

    file: PackFile
    header: WeightFile


def weights_of(checkpoint: Checkpoint) -> list[Weights]:
    """The model's own weight files, each with its header."""
    files = [file for file in checkpoint.files if file.kind is Kind.WEIGHT and not is_projector(file.path)]
    return [Weights(file, header) for file, header in zip(files, checkpoint.weights, strict=True)]


def read_tensors(weights: Weights, names: Collection[str], see: See, progress: Progress) -> None:
    """Show `see` the bytes of the named tensors. A registry is asked for no others, but for small ones between them.

    Raises `Malformed` if the file ends before its header says.
    """
    wanted = [tensor for tensor in weights.header.tensors if tensor.name in names]
    path, buffer = weights.file.path, memoryview(bytearray(_BUFFER))
    progress.begin(path, sum(tensor.length for tensor in wanted))
    for run in _runs(wanted):
        with ExitStack() as stack:
            reader = stack.enter_context(weights.file.source(run[0].offset))
            position = run[0].offset
            for tensor in run:
                _take(reader, buffer, tensor.offset - position, path, lambda data: None)
                _take(reader, buffer, tensor.length, path, lambda data, tensor=tensor: see(tensor, data))  # type: ignore[misc]
                progress.advance(path, tensor.length)
                position = tensor.offset + tensor.length
    progress.finish(path)


def _runs(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in groups that lie next to each other, by their place in the file."""
    run: list[Tensor] = []
    for tensor in sorted(tensors, key=lambda item: item.offset):
        if run and tensor.offset - (run[-1].offset + run[-1].length) > _READ_THROUGH:
            yield run
            run = []
        run.append(tensor)
    if run:
        yield run


def _take(reader: Reader, buffer: memoryview, count: int, path: str, see: Callable[[memoryview], None]) -> None:
    while count:
        got = reader.readinto(buffer[: min(len(buffer), count)])
        if not got:
            raise Malformed(f"{path} ends before its header says: it changed meanwhile")
        see(buffer[:got])
        count -= got
