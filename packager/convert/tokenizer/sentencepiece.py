"""SentencePiece BPE as tokenizer.json writes it: Llama 1 and 2, TinyLlama, Mistral 7B, Gemma, Phi 3.

llama.cpp joins the neighbours whose joint token has the highest score, leftmost first; tokenizer.json lists merges in
the order in which they are tried. Scoring each token by the rank of the first merge that makes it is the same order.
"""

from __future__ import annotations

import re
from typing import Any

from packager.convert.documents import Fields
from packager.convert.errors import Unsupported
from packager.convert.gguf_header import Metadata
from packager.convert.tokenizer.bytelevel import merges
from packager.convert.tokenizer.vocabulary import Kind, vocabulary

_SPACE = "\u2581"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_NEVER = -1000000.0
"""Score of a token that no merge makes."""

_PREPEND = {"type": "Prepend", "prepend": _SPACE}
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_SPLIT_AT_SPACES = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
"""Gemma's pre-tokenizer, which finds no spaces after they have become visible."""


def describe(metadata: Metadata, tokenizer: Fields, size: int) -> None:
    """Write the keys of a SentencePiece vocabulary of `size` tokens."""
    prefix = _adds_space_prefix(tokenizer)
    model = tokenizer.object("model")
    unknown = model.text("unk_token", "")
    tokens, kinds = vocabulary(tokenizer, size, lambda text: _kind(text, unknown))
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges(model)):
        ranks.setdefault(_spelled(left + right), rank)
    metadata.string("tokenizer.ggml.model", "llama")
    metadata.string("tokenizer.ggml.pre", "default")
    metadata.flag("tokenizer.ggml.add_space_prefix", prefix)
    metadata.strings("tokenizer.ggml.tokens", tokens)
    metadata.float32s("tokenizer.ggml.scores", [-float(ranks[t]) if t in ranks else _NEVER for t in tokens])
    metadata.int32s("tokenizer.ggml.token_type", kinds)


def _spelled(text: str) -> str:
    return text.replace("\u0120", _SPACE)


def _kind(text: str, unknown: str) -> Kind:
    if text == unknown:
        return Kind.UNKNOWN
    return Kind.BYTE if _BYTE.fullmatch(text) else Kind.NORMAL


def _adds_space_prefix(tokenizer: Fields) -> bool:
    """Whether text gets a space in front. Raises `Unsupported` unless all that happens to text before the merges is
    that, and spaces becoming visible."""
    normalizer: Any = tokenizer.get("normalizer")
    steps = normalizer.get("normalizers") if isinstance(normalizer, dict) else None
    stated = tokenizer.get("pre_tokenizer")
    if stated is None and steps in ([_PREPEND, _REPLACE], [_REPLACE]):
        return len(steps) == 2
    if normalizer == _REPLACE and stated in (None, _SPLIT_AT_SPACES):
        return False
    match stated:
        case {"type": "Metaspace", "replacement": "\u2581", "split": False, "prepend_scheme": str(scheme)}:
            if normalizer is None and scheme in ("first", "always", "never"):
                return scheme != "never"
    raise Unsupported(
        f"{tokenizer.where}: a SentencePiece tokenizer with these normalisation rules is not supported: "
        "pack the checkpoint as safetensors instead"
    )
