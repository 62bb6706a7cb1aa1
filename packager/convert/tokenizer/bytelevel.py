"""Byte-level BPE: GPT-2's scheme, used by Llama 3, SmolLM, Qwen and most others."""

from __future__ import annotations

from typing import Any

from artifact.errors import Malformed
from packager.convert.documents import Fields
from packager.convert.errors import Unsupported
from packager.convert.gguf_header import Metadata
from packager.convert.tokenizer.pretokenizer import NEARLY, pre_tokenizer_name
from packager.convert.tokenizer.vocabulary import Kind, vocabulary

_SPACE = "\u0120"
"""How byte-level vocabularies write a space."""


def describe(metadata: Metadata, tokenizer: Fields, size: int) -> str:
    """Write the keys of a byte-level BPE vocabulary of `size` tokens; what a user should know, empty if nothing."""
    model = tokenizer.object("model")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.text(key, ""):
            raise Unsupported(f"{tokenizer.where}: {key} is not supported")
    name = pre_tokenizer_name(tokenizer)
    tokens, kinds = vocabulary(tokenizer, size, lambda text: Kind.NORMAL)
    metadata.string("tokenizer.ggml.model", "gpt2")
    metadata.string("tokenizer.ggml.pre", name)
    metadata.flag("tokenizer.ggml.add_space_prefix", False)
    metadata.strings("tokenizer.ggml.tokens", tokens)
    metadata.int32s("tokenizer.ggml.token_type", kinds)
    metadata.strings("tokenizer.ggml.merges", [" ".join(pair) for pair in merges(model)])
    return NEARLY.get(name, "")


def merges(model: Fields) -> list[tuple[str, str]]:
    """The merges of a BPE model in order, from either form that files have. Raises `Malformed` for anything else."""
    pairs = [_pair(model, merge) for merge in model.items("merges")]
    if not pairs:
        raise Malformed(f"{model.where} has no merges")
    return pairs


def _pair(model: Fields, merge: Any) -> tuple[str, str]:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) and part for part in parts):
        raise Malformed(f"{model.where}: not a merge of two tokens: {merge!r:.80}")
    return parts[0].replace(" ", _SPACE), parts[1].replace(" ", _SPACE)
