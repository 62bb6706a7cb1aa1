"""Whether the files of a model are what its manifest, its config and its tag say. Decided on verified bytes only."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from artifact.errors import Malformed, Refused
from artifact.source import file_source
from artifact.weights import gguf, safetensors
from artifact.weights.precision import Facts, disagreement, facts_of
from artifact.weights.tensor import WeightFile
from runner.model import CodeRefused, Model, ModelFile

_MAX_CONFIG_FILE = 32 * 1024 * 1024
_READERS = {"gguf": gguf.read_source, "safetensors": safetensors.read_source}

PathOf = Callable[[ModelFile], Path]
"""Finds the verified bytes of one file of a model."""


class Contradiction(Refused):
    """The bytes are not what the tag, the annotations or the config claim."""

    code = "contradiction"


def check_files(model: Model, tag: str | None, path_of: PathOf, with_code: Collection[str] = ()) -> Facts:
    """Check all that can be checked without loading the model; return what the weights' headers say. `with_code` are
    the configs that may name code of the model.

    Raises `Contradiction` or `CodeRefused` (both `Refused`), or `Malformed` for a weight file that breaks its format.
    """
    files = {file.path: file for file in model.files}
    if not model.weights:
        raise Contradiction(f"the model is said to be {model.config.format}, but has no .{model.config.format} file")
    for file in model.files:
        if file.suffix == ".json" and "config" in PurePosixPath(file.path).name:
            _check_remote_code(file, path_of(file), with_code)
    headers = {path: _header(files[path], model.config.format, path_of) for path in model.weights}
    facts = facts_of(list(headers.values()))
    _check_claims(model, tag, facts)
    if model.config.format == "gguf":
        _check_gguf(model, list(headers.values()))
    else:
        _check_shards(model, headers, path_of)
    return facts


def _header(file: ModelFile, format_: str, path_of: PathOf) -> WeightFile:
    return _READERS[format_](file_source(path_of(file)), file.blob.size, file.path)


def _check_claims(model: Model, tag: str | None, facts: Facts) -> None:
    config = model.config
    claim = f"{config.precision}-{config.format}"
    found = disagreement(claim, facts) if config.precision else None
    if found:
        raise Contradiction(f"the model's config says {config.precision}, the bytes are {facts.precision}")
    if tag is not None and (found := disagreement(tag, facts)):
        raise Contradiction(found)
    if config.parameters and config.parameters != facts.parameters:
        raise Contradiction(
            f"the annotations say {config.parameters:,} parameters, the files hold {facts.parameters:,}"
        )


def _check_gguf(model: Model, headers: Sequence[WeightFile]) -> None:
    first = headers[0].metadata
    split = first.get("split.count", 1)
    if split not in (0, len(headers)) and (split, len(headers)) != (1, 1):
        raise Contradiction(f"the first weight file is one of {split}, the model has {len(headers)}")
    architecture = first.get("general.architecture")
    if model.config.architecture and isinstance(architecture, str) and architecture != model.config.architecture:
        raise Contradiction(
            f"the annotations say architecture {model.config.architecture!r}, the file says {architecture[:40]!r}"
        )
    trained = first.get(f"{architecture}.context_length")
    stated = model.config.context_length
    if stated is not None and isinstance(trained, int) and trained != stated:
        raise Contradiction(f"the annotations say a context of {stated} tokens, the file says {trained}")


def _check_shards(model: Model, headers: dict[str, WeightFile], path_of: PathOf) -> None:
    """Every tensor that a shard index promises is in the shard it names."""
    for file in model.files:
        if not file.path.endswith(".safetensors.index.json"):
            continue
        weight_map = _load(file, path_of(file)).get("weight_map")
        if not isinstance(weight_map, dict):
            raise Malformed(f"{file.path} has no weight_map")
        held = {path: {tensor.name for tensor in header.tensors} for path, header in headers.items()}
        folder = str(PurePosixPath(file.path).parent).removeprefix(".")
        for tensor, shard in weight_map.items():
            path = f"{folder}/{shard}".removeprefix("/")
            if path not in held:
                raise Contradiction(f"{file.path} names the shard {str(shard)[:80]!r}, which the model does not have")
            if tensor not in held[path]:
                raise Contradiction(f"{file.path} says {tensor[:80]!r} is in {path}, but it is not")


def _check_remote_code(file: ModelFile, path: Path, allowed: Collection[str]) -> None:
    """Refuse a config that makes a loader import Python named by the model (CVE-2026-5843), unless it is `allowed`."""
    if _has_key(_load(file, path), "auto_map") and file.path not in allowed:
        raise CodeRefused(
            f"{file.path} has auto_map: it makes an engine run code named by the model, and no policy grants that"
        )


def _load(file: ModelFile, path: Path) -> dict[str, Any]:
    if file.blob.size > _MAX_CONFIG_FILE:
        raise Malformed(f"{file.path} is larger than {_MAX_CONFIG_FILE} bytes")
    try:
        # Read as engines read it (last of two equal keys wins, NaN allowed), but with every key looked at.
        value = json.loads(path.read_bytes(), object_pairs_hook=_keep_auto_map)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{file.path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise Malformed(f"{file.path} must be a JSON object")
    return value


def _keep_auto_map(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if any(key == "auto_map" for key, _ in pairs):
        value["auto_map"] = True
    return value


def _has_key(value: Any, key: str) -> bool:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            if key in item:
                return True
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
    return False
