"""The tensor index: which tensors the weight files of an artifact hold, and the SHA-256 of every part of them.

Whoever packs feeds each weight file's bytes, in the order of the file, to a `Chunker` and makes a `FileIndex` of what
it found; `TensorIndex.of` all of them `to_bytes` is the blob. `artifact.tensorindex.attach` puts it into a repository:

    chunker = Chunker(header.tensors, size, name=path)
    digest = repository.add_blob(path, size, chunker.tap(source), progress)   # or chunker.update(buffer), in order
    file = FileIndex(path, digest, size, header.tensors, chunker.finish())
    raw = TensorIndex.of([file, …]).to_bytes()
"""

from artifact.tensorindex.chunker import Chunker
from artifact.tensorindex.cut import CHUNK_SIZE, JOIN_SIZE, Cut, cut
from artifact.tensorindex.format import MAX_BYTES, Chunk, FileIndex, TensorIndex

__all__ = ["CHUNK_SIZE", "JOIN_SIZE", "MAX_BYTES", "Chunk", "Chunker", "Cut", "FileIndex", "TensorIndex", "cut"]
