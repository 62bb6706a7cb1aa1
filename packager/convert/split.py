"""One GGUF file as several, as llama.cpp's gguf-split cuts it: whole tensors in their order, all metadata in the first.

Source: llama.cpp, tools/gguf-split (the keys, and when a file is full), src/llama.cpp (llama_split_path: the names).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from artifact.errors import InvalidInput, Malformed
from artifact.weights import gguf
from artifact.weights.tensor import Tensor
from packager.convert.gguf_header import ALIGNMENT, Metadata, TensorEntry
from packager.convert.plan import Plan
from packager.convert.tensors import Chunk, Planned, Range

_MAX_SHARDS = 65535
_KEYS = ("split.no", "split.count", "split.tensors.count")
_CHUNK = 4 * 1024 * 1024
_SIZE = re.compile(r"([1-9][0-9]{0,8})([MG])")
_UNITS = {"M": 10**6, "G": 10**9}


def parse_size(text: str) -> int:
    """``500M`` or ``4G`` in bytes: millions and thousands of millions, as for gguf-split. Raises `InvalidInput`."""
    match = _SIZE.fullmatch(text.upper())
    if match is None:
        raise InvalidInput(f"--split-max-size {text[:40]}: want a number of M or G (10^6, 10^9 bytes): 500M, 4G")
    return int(match[1]) * _UNITS[match[2]]


def shard_names(stem: str, count: int) -> list[str]:
    """The names of the files; of one alone, the plain name."""
    if count == 1:
        return [f"{stem}.gguf"]
    return [f"{stem}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]


def split(plan: Plan, limit: int) -> list[Plan]:
    """The files that `plan` becomes if the tensors of none may take more than `limit` bytes, a single larger one
    excepted. The plan itself if it fits. Raises `InvalidInput` on more files than the format can count."""
    groups = list(_groups(plan.tensors, limit))
    if len(groups) == 1:
        return [plan]
    if len(groups) > _MAX_SHARDS:
        raise InvalidInput(f"--split-max-size {limit}: that would be {len(groups)} files, the most is {_MAX_SHARDS}")
    plans = []
    for number, tensors in enumerate(groups):
        metadata = plan.metadata.copy() if number == 0 else Metadata()
        metadata.uint16(_KEYS[0], number)
        metadata.uint16(_KEYS[1], len(groups))
        metadata.int32(_KEYS[2], len(plan.tensors))
        name = f"{plan.name}, {number + 1} of {len(groups)}"
        plans.append(Plan(metadata, tensors, name, witness=plan.witness))
    return plans


def plan_copy(path: Path) -> Plan:
    """The GGUF file at `path`, as a plan. Raises `Malformed`, `InvalidInput` for a file that is a shard already."""
    file = gguf.read_header(path)
    if file.metadata.get("general.alignment", ALIGNMENT) != ALIGNMENT:
        raise Malformed(f"{path}: its tensors are not aligned to {ALIGNMENT} bytes: it cannot be split")
    if any(key in file.metadata for key in _KEYS):
        raise InvalidInput(
            f"{path} is one of several files already, by its split keys: --split-max-size does not cut it again"
        )
    length = gguf.metadata_length(path)
    metadata = Metadata(_read(path, gguf.FIXED, length), file.metadata)
    return Plan(metadata, [_copied(path, tensor) for tensor in file.tensors], f"splitting {path.name}")


def _groups(tensors: Sequence[Planned], limit: int) -> Iterator[list[Planned]]:
    group: list[Planned] = []
    size = 0
    for tensor in tensors:
        length = tensor.entry.length + tensor.entry.padding
        if group and size + length > limit:
            yield group
            group, size = [], 0
        group.append(tensor)
        size += length
    yield group


def _copied(path: Path, tensor: Tensor) -> Planned:
    entry = TensorEntry(tensor.name, tensor.dtype, tensor.shape, tensor.length)
    return Planned(entry, [_range(path, tensor, start) for start in range(0, tensor.length, _CHUNK)])


def _range(path: Path, tensor: Tensor, start: int) -> Chunk:
    length = min(_CHUNK, tensor.length - start)
    return Chunk(length, Range(path, tensor.offset + start, length, f"tensor {tensor.name!r}"))


def _read(path: Path, offset: int, length: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.pread(descriptor, length, offset)
    finally:
        os.close(descriptor)
    if len(data) != length:
        raise Malformed(f"{path} ended early: was it changed meanwhile?")
    return data
