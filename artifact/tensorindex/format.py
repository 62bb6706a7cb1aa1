"""The bytes of a tensor index, version 1: canonical JSON, read strictly and within bounds.

    {"chunkSize":8388608,"files":[{"chunks":[[offset,length,"sha256 in hexadecimal"],…],"digest":"sha256:…",
     "path":"model.gguf","root":"…","size":…,"tensors":[["name","F16",[shape],offset,length],…]},…],
     "joinSize":1048576,"version":1}

Keys are sorted, there are no spaces, text is UTF-8; files are sorted by path, tensors by offset. Offsets and lengths
are bytes, offsets from the start of the file. The chunks are those of `artifact.tensorindex.cut`; what no chunk covers
is zero. ``root`` is the root of the Merkle tree (`artifact.merkle`) over the file's chunks, each as its offset and
length in 8 big-endian bytes and its digest.
"""

from __future__ import annotations

import json
import re
import struct
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from artifact.digest import Digest
from artifact.errors import InvalidInput, Malformed
from artifact.filepath import checked_paths
from artifact.manifest import load_json
from artifact.merkle import leaf_hash, root_hash
from artifact.tensorindex.cut import CHUNK_SIZE, JOIN_SIZE, Cut, cut
from artifact.weights.tensor import Tensor

VERSION = 1

MAX_BYTES = 64 * 1024 * 1024
"""Largest index that is written or read: about that of a model of 4 TB."""

_MAX_LISTS = 1 << 20
_MAX_CUTS = 1 << 20
_MAX_VALUES = 1 << 22
_LARGEST_CHUNK = 1 << 30
_MAX_NAME = 1024
_MAX_DIMENSIONS = 16
_INT64 = 2**63 - 1
_DTYPE = re.compile(r"[A-Z0-9_]{1,32}")
_LEAF = struct.Struct(">QQ")


class Chunk(NamedTuple):
    """`length` bytes of a file from `offset`, and their SHA-256 (32 bytes)."""

    offset: int
    length: int
    digest: bytes

    @property
    def end(self) -> int:
        """The offset behind the last byte."""
        return self.offset + self.length


@dataclass(frozen=True)
class FileIndex:
    """One weight file: its `path` in the artifact, the digest of its blob, its size in bytes, its tensors in the order
    of the file, and its chunks (what no chunk covers is zero)."""

    path: str
    digest: Digest
    size: int
    tensors: Sequence[Tensor]
    chunks: Sequence[Chunk]

    @cached_property
    def root(self) -> bytes:
        """The root of the Merkle tree over the chunks."""
        return root_hash(leaf_hash(_LEAF.pack(chunk.offset, chunk.length) + chunk.digest) for chunk in self.chunks)

    def name_at(self, offset: int) -> str:
        """What the byte at `offset` belongs to, for people: a tensor, or the header, or padding."""
        at = bisect_right(self._starts, offset) - 1
        if at < 0:
            return "the header" if self._starts else "a file without tensors"
        while at > 0 and not self.tensors[at].length:
            at -= 1
        tensor = self.tensors[at]
        return f"tensor {tensor.name}" if offset < tensor.offset + tensor.length else f"padding behind {tensor.name}"

    @cached_property
    def _starts(self) -> list[int]:
        return [tensor.offset for tensor in self.tensors]


@dataclass(frozen=True)
class TensorIndex:
    """The weight files of an artifact, sorted by path. `chunk_size` and `join_size` are those they were cut by."""

    files: Sequence[FileIndex]
    chunk_size: int = CHUNK_SIZE
    join_size: int = JOIN_SIZE

    @classmethod
    def of(cls, files: Iterable[FileIndex]) -> TensorIndex:
        """The index of files in any order, their tensors in any order, cut by the usual sizes."""
        ordered = (
            FileIndex(file.path, file.digest, file.size, tuple(sorted(file.tensors, key=_place)), tuple(file.chunks))
            for file in files
        )
        return cls(tuple(sorted(ordered, key=lambda file: file.path)))

    def file(self, digest: Digest) -> FileIndex | None:
        """The file whose blob has that digest."""
        return self._by_digest.get(digest)

    @cached_property
    def _by_digest(self) -> dict[Digest, FileIndex]:
        return {file.digest: file for file in self.files}

    def to_bytes(self) -> bytes:
        """The canonical bytes. Raises `Malformed` if they would be more than is read."""
        value = {
            "chunkSize": self.chunk_size,
            "files": [
                {
                    "chunks": [[chunk.offset, chunk.length, chunk.digest.hex()] for chunk in file.chunks],
                    "digest": str(file.digest),
                    "path": file.path,
                    "root": file.root.hex(),
                    "size": file.size,
                    "tensors": [[t.name, t.dtype, list(t.shape), t.offset, t.length] for t in file.tensors],
                }
                for file in self.files
            ],
            "joinSize": self.join_size,
            "version": VERSION,
        }
        raw = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
        _check_bounds(raw)
        return raw

    @classmethod
    def parse(cls, raw: bytes) -> TensorIndex:
        """Read an index. Raises `Malformed` for anything but what `to_bytes` writes of files that were cut by the rule:
        also for roots that are not those of the chunks."""
        _check_bounds(raw)
        value = load_json(raw, "tensor index", MAX_BYTES)
        _want(set(value) == {"chunkSize", "files", "joinSize", "version"} and value["version"] == VERSION, "version")
        chunk_size, join_size, files = value["chunkSize"], value["joinSize"], value["files"]
        _want(_is_count(chunk_size) and 0 < chunk_size <= _LARGEST_CHUNK, "chunkSize")
        _want(_is_count(join_size) and 0 < join_size <= chunk_size, "joinSize")
        _want(isinstance(files, list), "files")
        sizes: list[Any] = [item.get("size") for item in files if isinstance(item, dict)]
        _want(all(map(_is_count, sizes)) and sum(sizes) <= chunk_size * _MAX_CUTS, "the size of the files")
        index = cls(tuple(_file(item, chunk_size, join_size) for item in files), chunk_size, join_size)
        paths = checked_paths([file.path for file in index.files])
        _want(paths == sorted(paths), "the order of the files")
        if index.to_bytes() != raw:
            raise Malformed("tensor index: not in its canonical form")
        return index


def _check_bounds(raw: bytes) -> None:
    """What an index takes in memory is bounded before it is parsed."""
    if len(raw) > MAX_BYTES or raw.count(b"[") > _MAX_LISTS or raw.count(b",") > _MAX_VALUES:
        raise Malformed(f"tensor index: larger than {MAX_BYTES} bytes, or of more values than any model has")


def _file(value: Any, chunk_size: int, join_size: int) -> FileIndex:
    _want(isinstance(value, dict) and set(value) == {"chunks", "digest", "path", "root", "size", "tensors"}, "a file")
    path, size = value["path"], value["size"]
    _want(isinstance(path, str) and isinstance(value["digest"], str), "a file's path or digest")
    _want(isinstance(value["tensors"], list) and isinstance(value["chunks"], list), f"the lists of {path!r:.200}")
    try:
        digest = Digest.parse(value["digest"])
    except InvalidInput as error:
        raise Malformed(f"tensor index: {error}") from None
    tensors = tuple(_tensor(item) for item in value["tensors"])
    _want(list(tensors) == sorted(tensors, key=_place), f"the order of the tensors of {path!r:.200}")
    _want(len({tensor.name for tensor in tensors}) == len(tensors), f"a tensor given twice in {path!r:.200}")
    cuts = cut(tensors, size, chunk_size=chunk_size, join_size=join_size, name=f"tensor index: {path!r:.200}")
    file = FileIndex(path, digest, size, tensors, _chunks(value["chunks"], cuts, path))
    _want(value["root"] == file.root.hex(), f"the root of {path!r:.200}")
    return file


def _tensor(value: Any) -> Tensor:
    _want(isinstance(value, list) and len(value) == 5, "a tensor")
    name, dtype, shape, offset, length = value
    _want(isinstance(name, str) and 0 < len(name) <= _MAX_NAME and name.isprintable(), "a tensor's name")
    _want(isinstance(dtype, str) and _DTYPE.fullmatch(dtype) is not None, f"the type of {name!r}")
    _want(
        isinstance(shape, list) and len(shape) <= _MAX_DIMENSIONS and all(map(_is_count, shape)),
        f"the shape of {name!r}",
    )
    _want(_is_count(offset) and _is_count(length), f"the place of {name!r}")
    return Tensor(name, dtype, tuple(shape), offset, length)


def _chunks(values: list[Any], cuts: Iterable[Cut], path: str) -> tuple[Chunk, ...]:
    """The chunks, shown to be those that the rule makes: all but padding has to be there, and nothing else may."""
    chunks: list[Chunk] = []
    given = iter(values)
    value = next(given, None)
    for part in cuts:
        if isinstance(value, list) and len(value) == 3 and value[0] == part.offset and value[1] == part.length:
            chunks.append(Chunk(part.offset, part.length, _sha256(value[2], path)))
            value = next(given, None)
        else:
            _want(part.padding, f"the chunks of {path!r:.200}, at {part.offset}")
    _want(value is None and len(chunks) == len(values), f"the chunks of {path!r:.200}")
    return tuple(chunks)


def _sha256(value: Any, path: str) -> bytes:
    if isinstance(value, str) and len(value) == 64:
        try:
            return bytes.fromhex(value)
        except ValueError:
            pass
    raise Malformed(f"tensor index: a chunk of {path!r:.200} has no SHA-256")


def _place(tensor: Tensor) -> tuple[int, int, str]:
    return tensor.offset, tensor.length, tensor.name


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _INT64


def _want(condition: bool, what: str) -> None:
    if not condition:
        raise Malformed(f"tensor index: {what} is not as it must be")
