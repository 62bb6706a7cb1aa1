"""What a model is for: text, embeddings or ranking, told before its weights are fetched: from its config, from
``config.json``, from the beginning of a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

from artifact.source import Source
from artifact.weights import gguf
from runner.model import Model, ModelFile

GENERATE, EMBED, RERANK = "generate", "embed", "rerank"
_ENCODERS = frozenset((
    "bert", "nomic-bert", "nomic-bert-moe", "nomic_bert", "jina-bert", "jina-bert-v2", "jina-bert-v3", "gte", "new",
    "roberta", "xlm-roberta", "xlm_roberta", "modernbert", "modern-bert", "neo-bert", "eurobert", "distilbert",
    "mpnet", "gemma-embedding",
))  # fmt: skip
_MAX_CONFIG = 1024 * 1024
_RANK = 4
"""llama.h, LLAMA_POOLING_TYPE_RANK. 0 is no pooling, the others pool an embedding."""


def task_of(model: Model, read: Callable[[ModelFile], bytes], opened: Callable[[ModelFile], Source]) -> str:
    """``generate``, ``embed`` or ``rerank``.

    `read` gets the verified bytes of one small file; it is asked for ``config.json`` only. `opened` is asked for the
    first GGUF file, of which the beginning is read; those bytes may not have been verified yet. Raises `Malformed`.
    """
    if model.config.format == "gguf" and (pooling := _pooling(model, opened)):
        return RERANK if pooling == _RANK else EMBED
    architectures: Sequence[object] = ()
    for file in model.files:
        if model.config.format == "safetensors" and file.path == "config.json" and file.blob.size <= _MAX_CONFIG:
            with suppress(ValueError, RecursionError, AttributeError):
                stated = json.loads(read(file)).get("architectures")
                architectures = stated if isinstance(stated, list) else ()
    return _task(model.config.architecture, {file.path for file in model.files}, architectures)


def _pooling(model: Model, opened: Callable[[ModelFile], Source]) -> int | None:
    first = next((file for file in model.files if file.path == next(iter(model.weights), None)), None)
    return gguf.read_pooling(opened(first), first.blob.size, first.path) if first is not None else None


def _task(architecture: str, paths: Collection[str], architectures: Sequence[object]) -> str:
    names = [name for name in architectures if isinstance(name, str)]
    if any(name.endswith("ForSequenceClassification") for name in names):
        return RERANK
    generates = any(name.endswith(("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")) for name in names)
    if architecture.lower() in _ENCODERS or (names and not generates and all(n.endswith("Model") for n in names)):
        return EMBED
    # A sentence-transformers folder says in modules.json that its text model is pooled.
    return EMBED if "modules.json" in paths and "1_Pooling/config.json" in paths else GENERATE
