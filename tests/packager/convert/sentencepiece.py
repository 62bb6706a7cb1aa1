"""A tokenizer.json of Llama 2's kind."""

from __future__ import annotations

import json
from pathlib import Path

from tests.checkpoints.bpe import CORPUS, train_merges

SPACE = "\u2581"


def write_sentencepiece(folder: Path, vocab: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Write tokenizer.json and tokenizer_config.json of exactly `vocab` tokens; the tokens and the merges."""
    letters = sorted({SPACE, *CORPUS.replace(" ", SPACE)})
    room = vocab - 259 - len(letters)
    merges = [(left.replace("Ġ", SPACE), right.replace("Ġ", SPACE)) for left, right in train_merges(room)]
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *bytes_, *letters, *(left + right for left, right in merges)]
    assert len(tokens) == len(set(tokens)) == vocab
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number, "content": tokens[number], "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": True,
            }
            for number in range(3)
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": None,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [" ".join(pair) for pair in merges],
        },
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {"bos_token": {"content": "<s>"}, "eos_token": {"content": "</s>"}, "unk_token": {"content": "<unk>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return tokens, merges
