"""WordPiece as BERT has it: uncased, accents taken off.

llama.cpp takes the longest token that fits from a list in which the beginning of a word is marked instead of its
continuation, after normalising text as uncased BERT does.
"""

from __future__ import annotations

from packager.convert.documents import Fields
from packager.convert.errors import Unsupported
from packager.convert.gguf_header import Metadata
from packager.convert.tokenizer.vocabulary import Kind, vocabulary

STAND_INS = {"bos": "cls", "eos": "sep"}
"""Which of BERT's special tokens llama.cpp puts around a text."""

_PREFIX = "##"
_BEGINNING = "\u2581"


def describe(metadata: Metadata, tokenizer: Fields, size: int) -> None:
    """Write the keys of a WordPiece vocabulary of `size` tokens. Raises `Unsupported` for another normalisation."""
    model = tokenizer.object("model")
    match tokenizer.get("normalizer"):
        case {
            "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "lowercase": True,
            "strip_accents": None | True,
        }:  # fmt: skip
            pass
        case _:
            raise Unsupported(f"{tokenizer.where}: a WordPiece tokenizer that is not of uncased BERT is not supported")
    if tokenizer.get("pre_tokenizer") != {"type": "BertPreTokenizer"}:
        raise Unsupported(f"{tokenizer.where}: a WordPiece tokenizer with this pre-tokenizer is not supported")
    if model.text("continuing_subword_prefix", _PREFIX) != _PREFIX:
        raise Unsupported(f"{tokenizer.where}: continuing_subword_prefix must be {_PREFIX}")
    tokens, kinds = vocabulary(tokenizer, size, lambda text: Kind.NORMAL)
    metadata.string("tokenizer.ggml.model", "bert")
    metadata.string("tokenizer.ggml.pre", "bert-bge")
    metadata.strings("tokenizer.ggml.tokens", [_marked(text, kind) for text, kind in zip(tokens, kinds, strict=True)])
    metadata.int32s("tokenizer.ggml.token_type", kinds)
    metadata.flag("tokenizer.ggml.add_sep_token", False)
    metadata.flag("tokenizer.ggml.normalizer.lowercase", True)


def _marked(text: str, kind: Kind) -> str:
    if kind == Kind.CONTROL:
        return text
    return text.removeprefix(_PREFIX) if text.startswith(_PREFIX) else _BEGINNING + text
