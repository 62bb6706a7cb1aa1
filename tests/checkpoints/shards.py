"""Safetensors checkpoints written to the letter of the format, with bytes that depend on nothing but their content.

The safetensors library writes no BF16 from numpy, and its tensor order is its own; the format is twenty lines.
Source: https://huggingface.co/docs/safetensors, "Format".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

WIDTHS = {"BF16": 2, "F16": 2, "F32": 4}

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Weight:
    """One tensor to write: its shape, and how to make its float32 values when their turn comes."""

    shape: tuple[int, ...]
    make: Callable[[], Array]


def encode(values: Array, dtype: str) -> bytes:
    """Float32 values in a safetensors type, rounded to nearest even."""
    if dtype == "F32":
        return np.ascontiguousarray(values, dtype="<f4").tobytes()
    if dtype == "F16":
        return np.ascontiguousarray(values).astype("<f2").tobytes()
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def decode(data: bytes, dtype: str) -> Array:
    """The float32 values of safetensors bytes, flat."""
    if dtype == "F32":
        return np.frombuffer(data, "<f4")
    if dtype == "F16":
        return np.frombuffer(data, "<f2").astype("<f4")
    return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")


def header_of(weights: Mapping[str, Weight], dtypes: Mapping[str, str]) -> bytes:
    """The length-prefixed, padded header of a file that holds `weights` in this order."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, weight in weights.items():
        length = int(np.prod(weight.shape)) * WIDTHS[dtypes[name]]
        header[name] = {"dtype": dtypes[name], "shape": list(weight.shape), "data_offsets": [offset, offset + length]}
        offset += length
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_file(path: Path, weights: Mapping[str, Weight], dtypes: Mapping[str, str]) -> int:
    """Write one safetensors file, one tensor in memory at a time. Returns the bytes of its tensors."""
    written = 0
    with path.open("wb") as stream:
        stream.write(header_of(weights, dtypes))
        for name, weight in weights.items():
            values = weight.make()
            assert values.shape == weight.shape, name
            written += stream.write(encode(values, dtypes[name]))
    return written


def write_checkpoint(folder: Path, groups: Sequence[Mapping[str, Weight]], dtypes: Mapping[str, str]) -> None:
    """Write ``model.safetensors``, or with several groups one shard each and ``model.safetensors.index.json``."""
    if len(groups) == 1:
        write_file(folder / "model.safetensors", groups[0], dtypes)
        return
    weight_map: dict[str, str] = {}
    total = 0
    for number, group in enumerate(groups, 1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        total += write_file(folder / name, group, dtypes)
        weight_map.update(dict.fromkeys(group, name))
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / "model.safetensors.index.json", index)


def write_json(path: Path, value: object) -> None:
    """JSON as checkpoint folders have it: indented, UTF-8, a newline at the end."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
