"""``packager diff``: what differs between two checkpoints or artifacts, down to their tensors.

Headers decide most of it, and tensor indexes nearly all of the rest: an artifact has one, and of files it is made while
they are hashed. Of artifacts without one, tensors are compared by the SHA-256 of their bytes, and only those are read
that could be the same: a file that both sides have is not opened.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any

from artifact.digest import Digest
from artifact.parallel import run_all
from artifact.progress import Progress
from artifact.tensorindex import FileIndex
from artifact.weights.tensor import Tensor
from packager.checkpoint import Checkpoint, PackFile
from packager.hashing import digest_of, hash_source
from packager.identity import identities, moved
from packager.indexing import Indexing
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
    files, and of weight files the chunks (without indexes: tensors), that the first does not have anywhere."""

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
    indexes: Mapping[str, FileIndex]
    contents: dict[tuple[str, str], str] = field(default_factory=dict)
    """What stands for a tensor's bytes, by its file and name, as far as it was needed."""

    @property
    def indexed(self) -> bool:
        """Whether there is an index of all its weights."""
        return self.indexes.keys() == self.weights.keys()


def compare(before: Checkpoint, after: Checkpoint, progress: Progress) -> Difference:
    """What differs between two checkpoints. Files on disk are read whole once to know their digests."""
    first, second = _side(before, progress), _side(after, progress)
    if first.indexed and second.indexed:
        _identify(first, second, progress)
    else:
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
    weights = {item.file.path: item for item in weights_of(checkpoint)}
    tensors = {tensor.name: (path, tensor) for path, item in weights.items() for tensor in item.header.tensors}
    known = checkpoint.indexed()
    read = run_all(
        [partial(_digest, file, weights.get(file.path), known, progress) for file in checkpoint.files],
        min(8, os.cpu_count() or 1),
    )
    paths = [file.path for file in checkpoint.files]
    digests = {path: digest for path, (digest, _) in zip(paths, read, strict=True)}
    indexes = {path: index for path, (_, index) in zip(paths, read, strict=True) if index is not None}
    return _Side(checkpoint, digests, weights, tensors, indexes)


def _digest(
    file: PackFile, weights: Weights | None, known: Mapping[Digest, FileIndex], progress: Progress,
    stop: threading.Event,
) -> tuple[Digest, FileIndex | None]:  # fmt: skip
    """The digest of a file, and of weights what the index says, or would say."""
    if weights is None:
        return digest_of(file, progress, stop), None
    if file.content.digest is not None:
        return file.content.digest, known.get(file.content.digest)
    indexing = Indexing(file, weights.header.tensors)
    digest = hash_source(f"{file.path} (hashing)", file.size, indexing.source, progress, stop)
    return digest, indexing.result(digest, progress, stop)


def _identify(first: _Side, second: _Side, progress: Progress) -> None:
    """Find what stands for each tensor's bytes in the indexes; read those that leave it open."""
    told = []
    for side in (first, second):
        found = {
            (path, name): identity
            for path, index in side.indexes.items()
            for name, identity in identities(index).items()
        }
        side.contents.update({key: identity.text for key, identity in found.items()})
        told.append(found)
    unsure: set[str] = set()
    for name in first.tensors.keys() & second.tensors.keys():
        (path, before), (other, after) = first.tensors[name], second.tensors[name]
        one, two = told[0][path, name], told[1][other, name]
        alike = (before.dtype, before.length) == (after.dtype, after.length)
        if alike and one.text != two.text and not (one.certain and two.certain):
            unsure.add(name)
    for side in (first, second):
        for path, weights in side.weights.items():
            _hash(side, path, unsure & {tensor.name for tensor in weights.header.tensors}, progress)


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
        _hash(side, path, wanted, progress)


def _hash(side: _Side, path: str, wanted: Collection[str], progress: Progress) -> None:
    """Read these tensors of the weight file, and note the SHA-256 of their bytes."""
    if not wanted:
        return
    hashers = {name: hashlib.sha256() for name in wanted}
    read_tensors(side.weights[path], wanted, lambda tensor, data: hashers[tensor.name].update(data), progress)
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
        if first.indexed and path in second.indexes:
            total += moved(second.indexes[path], first.indexes.values())
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
