"""Tokenizer files of BERT's kind."""

from __future__ import annotations

import json
from pathlib import Path

from tests.checkpoints.bpe import CORPUS
from tests.checkpoints.shards import write_json

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789éßあ"
_SIGNS = "!\"#$%&'()*+,-./:;<=>?@[]^_`{|}~…€東京"


def tokens_of(vocab: int) -> list[str]:
    """Exactly `vocab` tokens: special ones, letters, words of a text, fillers."""
    words = sorted({word.strip(".,?").lower() for word in CORPUS.split()} | {"##s", "##ing", "##able", "2024"})
    tokens = [*SPECIAL, *_LETTERS, *(f"##{letter}" for letter in _LETTERS), *_SIGNS]
    tokens += [word for word in words if word not in tokens]
    tokens += [f"[unused{number}]" for number in range(vocab - len(tokens))]
    assert len(tokens) == len(set(tokens)) == vocab
    return tokens


def write_wordpiece(folder: Path, tokens: list[str]) -> None:
    """Write tokenizer.json and tokenizer_config.json as uncased BERT has them; `tokens` begin with `SPECIAL`."""
    around = {name: {"id": name, "ids": [tokens.index(name)], "tokens": [name]} for name in ("[CLS]", "[SEP]")}
    first, last = ({"SpecialToken": {"id": name, "type_id": 0}} for name in around)
    text, other = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": True,
            }
            for number, token in enumerate(SPECIAL)
        ],
        "normalizer": {
            "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing", "single": [first, text, last], "pair": [first, text, last, other, last],
            "special_tokens": around,
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": {token: number for number, token in enumerate(tokens)},
        },
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    names = {f"{name.strip('[]').lower()}_token": name for name in SPECIAL}
    settings = {"do_lower_case": True, "tokenizer_class": "BertTokenizerFast", "model_max_length": 256, **names}
    write_json(folder / "tokenizer_config.json", settings)
