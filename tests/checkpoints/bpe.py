"""Tokenizer files of byte-level BPE models, as the `tokenizers` library writes them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.checkpoints.shards import write_json

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace("{1,3}", "")
TEKKEN_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {
    "llama-bpe": LLAMA3_SPLIT, "dbrx": LLAMA3_SPLIT, "qwen2": QWEN2_SPLIT, "stablelm2": QWEN2_SPLIT,
    "gpt-4o": GPT4O_SPLIT, "tekken": TEKKEN_SPLIT,
}  # fmt: skip
"""The kinds whose pre-tokenizer is a pattern in tokenizer.json."""

CORPUS = (
    "The capital of France is Paris. The capital of Italy is Rome. A model is packed once, sealed, and shipped. "
    "What is the capital of the country that the river runs through? It is the city where the seal was broken."
)


def byte_alphabet() -> list[str]:
    """The printable character that stands for each of the 256 byte values (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(value) if value in printable else chr(next(others)) for value in range(256)]


def train_merges(count: int) -> list[tuple[str, str]]:
    """The `count` most frequent merges of `CORPUS`, ties by text, each making a token of its own: byte pair encoding,
    learned the plain way. Fewer if the text has no more."""
    words = Counter(("Ġ" if number else "") + word for number, word in enumerate(CORPUS.split(" ")))
    pieces = {word: list(word) for word in words}
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, times in words.items():
            for pair in zip(pieces[word], pieces[word][1:], strict=False):
                pairs[pair] += times
        made = {left + right for left, right in merges}
        fresh = [pair for pair in pairs if pair[0] + pair[1] not in made]
        if not fresh:
            break
        best = min(fresh, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        pieces = {word: _merge(parts, best) for word, parts in pieces.items()}
    return merges


def _merge(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    position = 0
    while position < len(parts):
        if tuple(parts[position : position + 2]) == pair:
            merged.append(pair[0] + pair[1])
            position += 2
        else:
            merged.append(parts[position])
            position += 1
    return merged


def pre_tokenizer(kind: str) -> dict[str, Any]:
    """The `pre_tokenizer` of tokenizer.json: ``smollm``, ``gpt-2``, ``olmo`` or one of `SPLITS`."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    if kind in ("gpt-2", "olmo"):
        return byte_level
    if kind == "smollm":
        return {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]}
    kept = {"behavior": "Removed", "invert": True} if kind == "gpt-4o" else {"behavior": "Isolated", "invert": False}
    split = {"type": "Split", "pattern": {"Regex": SPLITS[kind]}, **kept}
    return {"type": "Sequence", "pretokenizers": [split, {**byte_level, "use_regex": False}]}


def tokenizer_json(
    tokens: Sequence[str], merges: Sequence[tuple[str, str]], special: Sequence[str], kind: str, bos: str | None = None
) -> dict[str, Any]:
    """A whole tokenizer.json. `tokens` in the order of their ids; `special` are those of them that are added,
    special tokens; `bos` is put before every text."""
    ids = {token: number for number, token in enumerate(tokens)}
    added = [
        {
            "id": ids[token], "content": token, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": True,
        }
        for token in special
    ]  # fmt: skip
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {bos: {"id": bos, "ids": [ids[bos]], "tokens": [bos]}} if bos else {},
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if kind in ("qwen2", "olmo") else None,
        "pre_tokenizer": pre_tokenizer(kind),
        "post_processor": template if bos else None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": kind in ("llama-bpe", "tekken"),
            "vocab": ids if kind not in SPLITS else {token: ids[token] for token in tokens if token not in special},
            "merges": [list(pair) for pair in merges],
        },
    }


def tokenizer_config(
    tokens: Sequence[str], special: Sequence[str], named: dict[str, str], context: int, template: str | None
) -> dict[str, Any]:
    """tokenizer_config.json; `named` are bos_token, eos_token and so on."""
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    value: dict[str, Any] = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(tokens.index(token)): {"content": token, **flags} for token in special},
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "tokenizer_class": "PreTrainedTokenizerFast",
        **named,
    }
    if template is not None:
        value["chat_template"] = template
    return value


def write_tokenizer(folder: Path, tokenizer: dict[str, Any], config: dict[str, Any], named: dict[str, str]) -> None:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json."""
    text = json.dumps(tokenizer, indent=1, ensure_ascii=False) + "\n"
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", named)
