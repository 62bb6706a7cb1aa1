"""A Hugging Face checkpoint folder: its config and the tensors of all its safetensors files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from artifact.errors import Malformed, NotFound
from artifact.weights.safetensors import read_header
from artifact.weights.shards import INDEX, MAX_INDEX, SINGLE, misplaced, weight_map
from artifact.weights.tensor import Tensor
from packager.convert.documents import Fields, read_bytes, read_object
from packager.convert.errors import Unsupported


@dataclass(frozen=True)
class StoredTensor:
    """One tensor and the file its bytes are in."""

    path: Path
    tensor: Tensor


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
    held: dict[str, set[str]] = {}
    index, files = _weight_files(folder)
    for name in files:
        path = folder / name
        held[name] = set()
        for tensor in read_header(path).tensors:
            if tensor.name in tensors:
                raise Malformed(f"tensor {tensor.name!r} is both in {tensors[tensor.name].path.name} and in {name}")
            tensors[tensor.name] = StoredTensor(path, tensor)
            held[name].add(tensor.name)
    if wrong := misplaced(index, held):
        raise Malformed(f"{folder / INDEX} says tensor {wrong[0]!r} is in {wrong[1]}, which does not hold it")
    return Checkpoint(folder, config, tensors)


def _weight_files(folder: Path) -> tuple[dict[str, str], list[str]]:
    """The tensors an index places, if there is one, and the names of the weight files."""
    if not (folder / INDEX).is_file():
        found = [SINGLE] if (folder / SINGLE).is_file() else sorted(path.name for path in folder.glob("*.safetensors"))
        if not found:
            raise NotFound(f"{folder} has no safetensors files: only safetensors checkpoints are converted")
        return {}, found
    index = weight_map(read_bytes(folder / INDEX, MAX_INDEX), str(folder / INDEX))
    files = sorted(set(index.values()))
    for name in files:
        if not (folder / name).is_file():
            raise NotFound(f"{folder} has no {name}, a shard that {INDEX} names: download it again")
    return index, files
