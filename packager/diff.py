"""``packager diff``: what differs between two checkpoints or artifacts, down to their tensors.

Headers decide most of it. Where they leave it open, tensors are compared by the SHA-256 of their bytes, and only those
are read that could be the same: a file that both sides have is not opened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from artifact.digest import Digest, Hasher
from artifact.progress import Progress
from artifact.weights.tensor import Tensor
from packager.checkpoint import Checkpoint, PackFile
from packager.hashing import digests_of
from packager.tensors import Weights, read_tensors, weights_of


class Change(StrEnum):
    """What became of something on the way from the first side to the second."""

    SAME = "same"
    CHANGED = "changed"
    ADDED = "added"
    REMOVED = "removed"


@dataclass(frozen=True)
class Line:
    """One thing that is compared: a field of the metadata, a file, or a tensor; and what each side has of it."""

    name: str
    change: Change
    before: str = ""
    after: str = ""

    def to_json(self) -> dict[str, str]:
        """The line for scripts."""
        return {"name": self.name, "change": self.change.value, "before": self.before, "after": self.after}


@dataclass(frozen=True)
class Difference:
    """All differences. `moved` is how many of the second side's `size` bytes somebody who has the first would fetch:
    files, and in weight files tensors, that the first does not have anywhere."""

    before: str
    after: str
    metadata: tuple[Line, ...]
    files: tuple[Line, ...]
    tensors: tuple[Line, ...]
    moved: int
    size: int

    @property
    def same(self) -> bool:
        """Whether there is none."""
        return all(line.change is Change.SAME for line in (*self.metadata, *self.files, *self.tensors))

    def to_json(self) -> dict[str, Any]:
        """The differences for scripts; what is the same is counted, not listed."""
        groups = {"metadata": self.metadata, "files": self.files, "tensors": self.tensors}
        value: dict[str, Any] = {"before": self.before, "after": self.after, "same": self.same}
        for name, lines in groups.items():
            counts = {change.value: sum(line.change is change for line in lines) for change in Change}
            value[name] = {**counts, "lines": [line.to_json() for line in lines if line.change is not Change.SAME]}
        return {**value, "deltaBytes": self.moved, "bytes": self.size}


@dataclass(frozen=True)
class _Side:
    checkpoint: Checkpoint
    digests: Mapping[str, Digest]
    weights: Mapping[str, Weights]
    tensors: Mapping[str, tuple[str, Tensor]]
    contents: dict[tuple[str, str], str] = field(default_factory=dict)
    """The SHA-256 of a tensor's bytes, by its file and name, as far as it was needed."""


def compare(before: Checkpoint, after: Checkpoint, progress: Progress) -> Difference:
    """What differs between two checkpoints. Files on disk are read whole once to know their digests."""
    first, second = _side(before, progress), _side(after, progress)
    _read_contents(first, second, progress)
    _read_contents(second, first, progress)
    return Difference(
        before.place,
        after.place,
        metadata=_metadata_lines(before, after),
        files=_lines(
            *({path: f"{digest.short}, {_sizes(side)[path]:,} bytes" for path, digest in side.digests.items()}
            for side in (first, second))
        ),
        tensors=_tensor_lines(first, second),
        moved=_moved(first, second),
        size=sum(file.size for file in after.files),
    )  # fmt: skip


def _side(checkpoint: Checkpoint, progress: Progress) -> _Side:
    files: list[PackFile] = list(checkpoint.files)
    digests = dict(zip([file.path for file in files], digests_of(files, progress), strict=True))
    weights = {item.file.path: item for item in weights_of(checkpoint)}
    tensors = {tensor.name: (path, tensor) for path, item in weights.items() for tensor in item.header.tensors}
    return _Side(checkpoint, digests, weights, tensors)


def _read_contents(side: _Side, other: _Side, progress: Progress) -> None:
    """Hash the tensors of `side` that `other` may have too. Of a file that both have, only those that the other side
    has in another file."""
    shared = set(side.digests.values()) & set(other.digests.values())
    possible = {(tensor.dtype, tensor.length) for _, tensor in other.tensors.values()}
    elsewhere = {name for name, (path, _) in other.tensors.items() if other.digests[path] not in shared}
    for path, weights in side.weights.items():
        tensors = weights.header.tensors
        wanted = {item.name for item in tensors if (item.dtype, item.length) in possible}
        if side.digests[path] in shared:
            wanted &= elsewhere
        hashers = {name: hashlib.sha256() for name in wanted}

        def see(tensor: Tensor, data: memoryview, hashers: Mapping[str, Hasher] = hashers) -> None:
            hashers[tensor.name].update(data)

        if wanted:
            read_tensors(weights, wanted, see, progress)
        side.contents.update({(path, name): hasher.hexdigest() for name, hasher in hashers.items()})


def _tensor_lines(first: _Side, second: _Side) -> tuple[Line, ...]:
    lines = []
    for name in sorted(first.tensors.keys() | second.tensors.keys()):
        before, after = _identity(first, name), _identity(second, name)
        shown = [f"{item[0]} {list(item[1])}" if item else "" for item in (before, after)]
        lines.append(Line(name, _change(before, after), *shown))
    return tuple(lines)


def _identity(side: _Side, name: str) -> tuple[str, tuple[int, ...], str] | None:
    """What two tensors have in common exactly if they are the same; None if there is no such tensor."""
    if name not in side.tensors:
        return None
    path, tensor = side.tensors[name]
    content = side.contents.get((path, name)) or f"{side.digests[path]} at {tensor.offset}"
    return tensor.dtype, tensor.shape, content


def _moved(first: _Side, second: _Side) -> int:
    """Bytes of the second side that the first has nowhere."""
    held_files, held_tensors = set(first.digests.values()), set(first.contents.values())
    total = 0
    for path, digest in second.digests.items():
        if digest in held_files:
            continue
        total += _sizes(second)[path]
        if path in second.weights:
            tensors = second.weights[path].header.tensors
            total -= sum(item.length for item in tensors if second.contents.get((path, item.name)) in held_tensors)
    return total


def _sizes(side: _Side) -> dict[str, int]:
    return {file.path: file.size for file in side.checkpoint.files}


def _metadata(checkpoint: Checkpoint) -> dict[str, str]:
    description, facts = checkpoint.description, checkpoint.facts
    values = {
        "name": checkpoint.name,
        "architecture": description.architecture,
        "format": facts.format,
        "precision": facts.precision,
        "parameters": f"{facts.parameters:,}",
        "context": "" if description.context_length is None else str(description.context_length),
        "licence": ", ".join(description.licenses),
        "origin": f"{description.source_url} {description.revision}".strip(),
    }
    headers = checkpoint.weights[0].metadata if checkpoint.weights else {}
    values |= {f"header: {key}": str(value) for key, value in headers.items()}
    return {key: value for key, value in values.items() if value}


def _metadata_lines(before: Checkpoint, after: Checkpoint) -> tuple[Line, ...]:
    """Headers are compared only within a format: between two, every key is another."""
    lines = _lines(_metadata(before), _metadata(after))
    if before.facts.format == after.facts.format:
        return lines
    return tuple(line for line in lines if not line.name.startswith("header: "))


def _lines(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[Line, ...]:
    names = sorted(before.keys() | after.keys())
    return tuple(
        Line(name, _change(before.get(name), after.get(name)), before.get(name, ""), after.get(name, ""))
        for name in names
    )


def _change(before: object, after: object) -> Change:
    if before is None:
        return Change.ADDED
    if after is None:
        return Change.REMOVED
    return Change.SAME if before == after else Change.CHANGED
