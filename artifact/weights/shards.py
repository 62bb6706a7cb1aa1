"""The index of a sharded checkpoint: which weight file holds which tensor, as transformers writes it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from artifact.errors import Malformed
from artifact.manifest import load_json

INDEX = "model.safetensors.index.json"
"""The index's name."""

SINGLE = "model.safetensors"
"""The weight file of a checkpoint that is not sharded."""

MAX_INDEX = 32 * 1024 * 1024
"""Largest index that is read, in bytes."""


def weight_map(raw: bytes, what: str) -> dict[str, str]:
    """Tensor to weight file, as the index `raw` says; `what` names it in errors. Raises `Malformed`, also on a file
    that does not lie beside the index."""
    mapping = load_json(raw, what, MAX_INDEX).get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise Malformed(f"{what}: weight_map must map tensors to files")
    for file in mapping.values():
        if not isinstance(file, str) or "/" in file or "\\" in file or not file.endswith(".safetensors"):
            raise Malformed(f"{what}: not the name of a safetensors file beside it: {file!r:.80}")
    return mapping


def misplaced(mapping: Mapping[str, str], held: Mapping[str, Collection[str]]) -> tuple[str, str] | None:
    """The first tensor that is not in the file `mapping` says, with that file; `held` is what each file holds."""
    return next(((tensor, file) for tensor, file in mapping.items() if tensor not in held[file]), None)
