"""Importance matrices: how much each column of a weight is used, by which a quantiser shares out its precision.

Two files hold them: GGUF (``general.type`` is ``imatrix``: for each weight, ``NAME.in_sum2`` and ``NAME.counts``) and
the older ``.dat``. Both are read with bounds; GGUF is written. Source: llama.cpp, tools/imatrix and
common/imatrix-loader.cpp.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from artifact.digest import Digest
from artifact.errors import Malformed, NotFound
from artifact.weights import gguf
from artifact.weights.tensor import Tensor
from packager.convert.gguf_header import Metadata, TensorEntry

Floats = npt.NDArray[np.float32]

MAX_FILE = 2 * 1024**3
"""Largest file that is read, in bytes. Those of models with hundreds of experts have hundreds of megabytes."""

_MAX_ENTRIES = 1 << 17
_MAX_NAME = 256
_SUMS, _COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True)
class ImportanceMatrix:
    """A file, read. `entries` are the mean squares by weight, one after the other for experts; `chunks` how many
    pieces of text they were taken from (0: not said), `dataset` what the file calls the text."""

    digest: Digest
    entries: Mapping[str, Floats]
    chunks: int
    dataset: str

    def metadata(self) -> dict[str, str | int]:
        """What a file quantised with it says of it: llama.cpp's keys, with the digest in place of a path."""
        found: dict[str, str | int] = {
            "quantize.imatrix.file": str(self.digest),
            "quantize.imatrix.entries_count": len(self.entries),
        }
        if self.chunks:
            found["quantize.imatrix.chunks_count"] = self.chunks
        return found


@dataclass(frozen=True)
class Activations:
    """Sums of squares and the number of rows they were taken over: of one weight. Experts have a row of `sums` and a
    count each."""

    sums: Floats
    counts: Floats


def read_imatrix(path: Path) -> ImportanceMatrix:
    """Read either kind of file. Raises `NotFound`, or `Malformed` naming the file."""
    if not path.is_file():
        raise NotFound(f"--imatrix {path}: no such file")
    if path.stat().st_size > MAX_FILE:
        raise Malformed(f"{path} is larger than {MAX_FILE} bytes: no importance matrix")
    raw = path.read_bytes()
    found = _gguf(path, raw) if raw[:4] == b"GGUF" else _Legacy(path, raw).read()
    for name, values in found.entries.items():
        if not np.isfinite(values).all() or (values < 0).any():
            raise Malformed(f"{path}: the values of {name!r:.80} are not all finite and positive")
    return found


def write_imatrix(path: Path, entries: Mapping[str, Activations], chunks: int, size: int, dataset: str) -> None:
    """Write sums and counts as GGUF, as llama.cpp's imatrix program does. `size` is that of a chunk, in tokens."""
    metadata = Metadata()
    metadata.string("general.type", "imatrix")
    metadata.strings("imatrix.datasets", [dataset])
    metadata.uint32("imatrix.chunk_count", chunks)
    metadata.uint32("imatrix.chunk_size", size)
    arrays = [
        (name + ending, values)
        for name, activations in sorted(entries.items())
        for ending, values in ((_SUMS, activations.sums), (_COUNTS, activations.counts.reshape(-1, 1)))
    ]
    table = [TensorEntry(name, "F32", values.shape, values.nbytes) for name, values in arrays]
    with path.open("wb") as stream:
        stream.write(metadata.header(table))
        for entry, (_, values) in zip(table, arrays, strict=True):
            stream.write(values.astype("<f4").tobytes() + bytes(entry.padding))


def _gguf(path: Path, raw: bytes) -> ImportanceMatrix:
    file = gguf.read_header(path)
    if file.metadata.get("general.type") != "imatrix":
        raise Malformed(f"{path}: a GGUF file, but general.type is not imatrix")
    chunks = file.metadata.get("imatrix.chunk_count")
    if not isinstance(chunks, int) or "imatrix.chunk_size" not in file.metadata:
        raise Malformed(f"{path}: it does not say how many chunks it was made from")
    by_name = {tensor.name: tensor for tensor in file.tensors}
    names = {name.removesuffix(_SUMS).removesuffix(_COUNTS) for name in by_name}
    entries = {}
    for name in sorted(names):
        sums, counts = by_name.get(name + _SUMS), by_name.get(name + _COUNTS)
        if sums is None or counts is None or len(by_name) != 2 * len(names):
            raise Malformed(f"{path}: {name!r:.80} does not have both sums and counts")
        entries[name] = _means(path, _values(path, raw, sums), _values(path, raw, counts))
    datasets = file.metadata.get("imatrix.datasets")
    dataset = datasets[0] if isinstance(datasets, tuple) and datasets else ""
    return ImportanceMatrix(Digest.of(raw), entries, chunks, str(dataset))


def _values(path: Path, raw: bytes, tensor: Tensor) -> Floats:
    if tensor.dtype != "F32" or not tensor.elements:
        raise Malformed(f"{path}: {tensor.name!r:.80} is not F32, or empty")
    return np.frombuffer(raw, "<f4", tensor.elements, tensor.offset)


def _means(path: Path, sums: Floats, counts: Floats) -> Floats:
    """An expert that was never used has no mean: all its columns count the same."""
    if sums.size % counts.size:
        raise Malformed(f"{path}: {counts.size} counts for {sums.size} sums")
    rows = sums.reshape(counts.size, -1)
    counts = np.rint(counts).reshape(-1, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(counts > 0, rows / counts, np.float32(1)).astype(np.float32).reshape(-1)


class _Legacy:
    """The older format: a count of entries; of each, name, number of calls, number of values, and the values times the
    number of calls; then, perhaps, the number of chunks and the name of the text."""

    def __init__(self, path: Path, raw: bytes) -> None:
        self._path = path
        self._raw = raw
        self._position = 0

    def read(self) -> ImportanceMatrix:
        count = self._integer("entries", _MAX_ENTRIES)
        entries: dict[str, Floats] = {}
        for _ in range(count):
            name = self._text(self._integer("bytes in a name", _MAX_NAME))
            calls = self._integer("calls", 2**31 - 1, minimum=0)
            size = self._integer("values", len(self._raw) // 4)
            if name in entries:
                raise Malformed(f"{self._path}: {name!r:.80} is there twice")
            values = np.frombuffer(self._take(4 * size), "<f4")
            entries[name] = (values / np.float32(calls) if calls else values).astype(np.float32)
        chunks, dataset = 0, ""
        if self._position < len(self._raw):
            chunks = self._integer("chunks", 2**31 - 1, minimum=0)
        if self._position < len(self._raw):
            dataset = self._text(self._integer("bytes in a name", 1 << 16, minimum=0))
        if self._position != len(self._raw):
            raise Malformed(f"{self._path}: {len(self._raw) - self._position} bytes too many for an importance matrix")
        return ImportanceMatrix(Digest.of(self._raw), entries, chunks, dataset)

    def _integer(self, what: str, limit: int, minimum: int = 1) -> int:
        value: int = struct.unpack("<i", self._take(4))[0]
        if not minimum <= value <= limit:
            raise Malformed(f"{self._path}: not an importance matrix: {value} {what}")
        return value

    def _text(self, length: int) -> str:
        try:
            return self._take(length).decode()
        except UnicodeDecodeError:
            raise Malformed(f"{self._path}: a name that is not UTF-8") from None

    def _take(self, count: int) -> bytes:
        piece = self._raw[self._position : self._position + count]
        if len(piece) < count:
            raise Malformed(f"{self._path}: not an importance matrix, or one that is cut off")
        self._position += count
        return piece


def entries_of(raw: bytes, layout: list[Any]) -> dict[str, Activations]:
    """The sums and counts that a worker wrote; `layout` is name, number of matrices and number of columns of each."""
    found, position = {}, 0
    for name, matrices, columns in layout:
        sums = np.frombuffer(raw, "<f4", matrices * columns, position).reshape(matrices, columns)
        position += sums.nbytes
        counts = np.frombuffer(raw, "<f4", matrices, position)
        position += counts.nbytes
        found[str(name)] = Activations(sums, counts)
    return found
