"""What the tensor indexes of two artifacts say about their tensors and about the way between them. Nothing is read.

A tensor that does not share its chunks has its chunks' digests for an identity. A small one that shares a chunk with
its neighbours is the same if the chunk is, and it lies at the same place in it; if not, only its bytes can tell.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from artifact.layout.pieces import NEAR, PIECE
from artifact.layout.plan import Way, parts, plan
from artifact.tensorindex import FileIndex
from artifact.tensorindex.indexed import Place


class Identity(NamedTuple):
    """Equal texts mean equal bytes; if both are `certain`, others mean other bytes."""

    text: str
    certain: bool


def identities(file: FileIndex) -> dict[str, Identity]:
    """The identity of each tensor of a weight file, by name."""
    starts = [chunk.offset for chunk in file.chunks]
    found = {}
    for tensor in file.tensors:
        if not tensor.length:
            found[tensor.name] = Identity("nothing", True)
            continue
        end = tensor.offset + tensor.length
        first = bisect_right(starts, tensor.offset) - 1
        chunks = file.chunks[first : bisect_right(starts, end - 1)]
        if chunks[0].offset == tensor.offset and chunks[-1].end == end:
            text = hashlib.sha256(b"".join(chunk.digest for chunk in chunks)).hexdigest()
            found[tensor.name] = Identity(f"chunks {text}", True)
        else:
            place = tensor.offset - chunks[0].offset
            found[tensor.name] = Identity(f"{tensor.length} at {place} of {chunks[0].digest.hex()}", False)
    return found


def moved(file: FileIndex, held: Iterable[FileIndex]) -> int:
    """How many bytes of a file a delta pull asks for, if the files `held` are there: those of the chunks that are not,
    and the little in between that is asked for along with them."""
    local: Mapping[bytes, Place] = {chunk.digest: Place(Path(), 0) for each in held for chunk in each.chunks}
    jobs = plan(parts(file), lambda _: False, local, PIECE, NEAR)
    return sum(job.end - job.start for job in jobs if job.way is Way.REMOTE)
