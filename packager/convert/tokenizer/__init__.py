"""A checkpoint's tokenizer as GGUF metadata: vocabulary, merges, special tokens, chat template."""

from __future__ import annotations

from pathlib import Path

from packager.convert.documents import MAX_TOKENIZER, Fields, read_object, read_object_if_any
from packager.convert.errors import Unsupported
from packager.convert.gguf_header import Metadata
from packager.convert.tokenizer import bytelevel, sentencepiece, sentencepiece_model, wordpiece
from packager.convert.tokenizer.special import SpecialTokens, special_tokens
from packager.convert.tokenizer.template import chat_templates, describe_templates


def describe_tokenizer(metadata: Metadata, folder: Path, config: Fields, size: int, *, pooled: bool = False) -> str:
    """Write the ``tokenizer.*`` keys for a model whose embedding has `size` rows, from tokenizer.json or, where there
    is none, tokenizer.model; `pooled` is whether it makes one vector of a text.

    Returns what a user should know about it, empty if nothing. Raises `NotFound` without either, `Malformed` for a
    broken one, `Unsupported` for one whose rules llama.cpp is not known to have.
    """
    settings = read_object_if_any(folder / "tokenizer_config.json")
    warning = ""
    if not (folder / "tokenizer.json").is_file() and (folder / "tokenizer.model").is_file():
        special = sentencepiece_model.describe(metadata, folder, settings, config, size)
    else:
        special, warning = _describe_json(metadata, folder, settings, config, size, pooled)
    for name, number in special.ids.items():
        metadata.uint32(f"tokenizer.ggml.{name}_token_id", number)
    metadata.flag("tokenizer.ggml.add_bos_token", special.add_bos)
    metadata.flag("tokenizer.ggml.add_eos_token", special.add_eos)
    describe_templates(metadata, chat_templates(folder, settings))
    return warning


def _describe_json(
    metadata: Metadata, folder: Path, settings: Fields, config: Fields, size: int, pooled: bool
) -> tuple[SpecialTokens, str]:
    tokenizer = read_object(folder / "tokenizer.json", MAX_TOKENIZER)
    model = tokenizer.object("model")
    kind = model.text("type", "")
    if kind == "WordPiece":
        wordpiece.describe(metadata, tokenizer, size)
        return special_tokens(tokenizer, settings, config, size, wordpiece.STAND_INS), ""
    if kind != "BPE":
        raise Unsupported(
            f"{tokenizer.where}: tokenizer model {model.get('type')!r:.40} is not supported, only BPE and WordPiece are"
        )
    if model.flag("byte_fallback", False):
        sentencepiece.describe(metadata, tokenizer, size)
        warning = ""
    else:
        warning = bytelevel.describe(metadata, tokenizer, size)
    return special_tokens(tokenizer, settings, config, size, closed=pooled), warning
