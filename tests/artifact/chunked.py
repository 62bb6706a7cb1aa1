"""A weight file with its tensor index, and how tests pull it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.layout import LayoutRepository
from artifact.remote import RemoteRepository
from artifact.tensorindex import Chunk, Chunker, FileIndex
from artifact.tensorindex.indexed import IndexedSource, Place
from artifact.transfer import push_blobs
from artifact.weights.tensor import Tensor
from tests.artifact.exchanges import QUIET, Exchange, asked

PIECE, NEAR, LARGE, SMALL = 100_000, 10_000, 40_000, 8_000
"""What a request, what lies between two, a chunk and a joined run have at most."""

HEADER, SIZE, COUNT = 12_345, 150_000, 12
GAP = 20
"""Zeros behind each tensor, as alignment leaves them."""


def content() -> tuple[bytes, list[Tensor]]:
    out, tensors = bytearray(os.urandom(HEADER)), []
    for number in range(COUNT):
        length = 500 if number % 4 == 3 else SIZE
        tensors.append(Tensor(f"blk.{number}", "U8", (length,), len(out), length))
        out += os.urandom(length) + bytes(GAP)
    return bytes(out), tensors


DATA, TENSORS = content()
BLOB = Descriptor.of(DATA, mediatypes.MODEL_WEIGHT)


def chunks_of(data: bytes) -> tuple[Chunk, ...]:
    chunker = Chunker(TENSORS, len(data), chunk_size=LARGE, join_size=SMALL)
    chunker.update(data)
    return chunker.finish()


INDEX = FileIndex("m.gguf", BLOB.digest, len(DATA), TENSORS, chunks_of(DATA))
OF_FIVE = next(chunk for chunk in INDEX.chunks if chunk.offset == TENSORS[5].offset + LARGE)
"""The second chunk of the tensor blk.5."""
DAMAGED = DATA[: OF_FIVE.offset + 7] + bytes([DATA[OF_FIVE.offset + 7] ^ 1]) + DATA[OF_FIVE.offset + 8 :]
"""The file with one bit of that chunk flipped."""


def send(exchange: Exchange, data: bytes = DATA) -> None:
    start, end = asked(exchange)
    exchange.answer(206, data[start:end], Content_Range=f"bytes {start}-{end - 1}/{len(data)}")


def pull(
    host: str, folder: Path, local: Mapping[bytes, Place] | None = None, index: FileIndex = INDEX
) -> LayoutRepository:
    target = LayoutRepository(folder)
    source = IndexedSource(RemoteRepository(host, "x").blob_source(BLOB), index, local or {})
    push_blobs(target, {BLOB: source}, QUIET, 1)
    assert target.blob_path(BLOB.digest).read_bytes() == DATA
    assert not any((folder / "ingest").iterdir())
    return target


def in_file(path: Path, wanted: Callable[[Chunk], bool], damaged: Callable[[Chunk], bool] = lambda _: False):
    """A local file, of other content all around, that has some of the chunks, one behind the other."""
    out, places = bytearray(b"other content" * 7), {}
    for chunk in filter(wanted, INDEX.chunks):
        places[chunk.digest] = Place(path, len(out))
        data = bytearray(DATA[chunk.offset : chunk.end])
        if damaged(chunk):
            data[len(data) // 2] ^= 1
        out += data
    path.write_bytes(out)
    return places


def moved(server) -> int:
    return sum(end - start for start, end in map(asked, server.seen))
