"""A Hugging Face checkpoint folder: its config and the tensors of all its safetensors files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from artifact.errors import Malformed, NotFound
from artifact.weights.safetensors import read_header
from artifact.weights.tensor import Tensor
from packager.convert.documents import Fields, read_object, read_object_if_any
from packager.convert.errors import Unsupported

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


@dataclass(frozen=True)
class StoredTensor:
    """One tensor and the file its bytes are in."""

    path: Path
    tensor: Tensor

    def read(self, start: int, length: int) -> bytes:
        """`length` bytes of the tensor from `start`. Raises `Malformed` if the file has become shorter."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.pread(descriptor, length, self.tensor.offset + start)
            while len(data) < length:
                more = os.pread(descriptor, length - len(data), self.tensor.offset + start + len(data))
                if not more:
                    raise Malformed(f"{self.path} ended inside tensor {self.tensor.name!r}: was it changed meanwhile?")
                data += more
        finally:
            os.close(descriptor)
        return data


@dataclass(frozen=True)
class Checkpoint:
    """A folder with ``config.json`` and safetensors weights."""

    folder: Path
    config: Fields
    tensors: Mapping[str, StoredTensor]


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read the config and the headers of the weights. Raises `NotFound` for a missing file or shard, `Malformed` for
    a broken one, `Unsupported` for weights that are quantised already."""
    config = read_object(folder / "config.json")
    for key in ("quantization_config", "compression_config"):
        stated = config.get(key)
        if stated is not None:
            method = stated.get("quant_method", "unknown") if isinstance(stated, dict) else "unknown"
            raise Unsupported(
                f"{folder} holds weights quantised already (config.json, {key}: {method}): convert the original "
                "BF16, F16 or F32 checkpoint, or pack this one as safetensors"
            )
    tensors: dict[str, StoredTensor] = {}
    for path, promised in _weight_files(folder).items():
        for tensor in read_header(path).tensors:
            if tensor.name in tensors:
                raise Malformed(
                    f"tensor {tensor.name!r} is both in {tensors[tensor.name].path.name} and in {path.name}"
                )
            tensors[tensor.name] = StoredTensor(path, tensor)
        missing = next((name for name in promised if name not in tensors or tensors[name].path != path), None)
        if missing is not None:
            raise Malformed(f"{folder / _INDEX} says tensor {missing!r} is in {path.name}, which does not hold it")
    return Checkpoint(folder, config, tensors)


def _weight_files(folder: Path) -> dict[Path, list[str]]:
    """The weight files, each with the tensors an index promises to be in it."""
    index = read_object_if_any(folder / _INDEX)
    if not index.values:
        single = folder / _SINGLE
        found = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
        if not found:
            raise NotFound(f"{folder} has no safetensors files: only safetensors checkpoints are converted")
        return {path: [] for path in found}
    files: dict[Path, list[str]] = {}
    for name, file in sorted(index.object("weight_map").values.items()):
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise Malformed(f"{folder / _INDEX}: not the name of a safetensors file: {file!r:.80}")
        files.setdefault(folder / file, []).append(name)
    for path in files:
        if not path.is_file():
            raise NotFound(f"{folder} has no {path.name}, a shard that {_INDEX} names: download it again")
    return files
