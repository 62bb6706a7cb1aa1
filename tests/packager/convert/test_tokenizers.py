"""How llama.cpp cuts text with converted tokenizers: as its authors recorded for published ones, and as the
tokenizers library does for any text."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from artifact.progress import Quiet
from packager.convert import convert
from tests.checkpoints import bpe, sentencepiece_model, wordpiece
from tests.checkpoints.families import write_tiny
from tests.checkpoints.shards import write_json
from tests.checkpoints.tiny import write_tiny_llama
from tests.packager.convert.texts import PIECES, RANDOM, TEXT
from tests.packager.convert.vectors import BYTE_LEVEL, RECORDED

pytestmark = pytest.mark.engine

VECTORS = json.loads(RECORDED.read_text(encoding="utf-8"))


def write_byte_level(folder: Path, name: str) -> list[str]:
    recorded = VECTORS[name]
    tokens = ["<|endoftext|>", *sorted({*bpe.byte_alphabet(), *recorded["tokens"]})]
    write_tiny(folder, "llama", vocab_size=len(tokens))
    merges = [tuple(merge.split(" ")) for merge in recorded["merges"]]
    document = bpe.tokenizer_json(tokens, merges, tokens[:1], BYTE_LEVEL[name])
    (folder / "tokenizer.json").write_text(json.dumps(document))
    return tokens


def write_sentencepiece(folder: Path, name: str) -> list[str]:
    pieces = sentencepiece_model.pieces_of(320)[:259]
    pieces += [(token, score, sentencepiece_model.NORMAL) for token, score in VECTORS[name]["scores"].items()]
    write_tiny(folder, "mistral", vocab_size=len(pieces))
    (folder / "tokenizer.model").write_bytes(sentencepiece_model.encode_model(pieces))
    return [token for token, _, _ in pieces]


def write_wordpiece(folder: Path, name: str) -> list[str]:
    """llama.cpp marks the beginning of a word where WordPiece marks what continues it."""
    tokens = [*wordpiece.SPECIAL, *(token for token in VECTORS[name]["tokens"] if token not in wordpiece.SPECIAL)]
    write_tiny(folder, "bert", vocab_size=len(tokens))
    wordpiece.write_wordpiece(folder, [_as_bert_writes(token) for token in tokens])
    return tokens


def _as_bert_writes(token: str) -> str:
    if token in wordpiece.SPECIAL:
        return token
    return token[1:] if token.startswith("\u2581") else f"##{token}"


WRITERS = {
    **dict.fromkeys(BYTE_LEVEL, write_byte_level),
    **dict.fromkeys(("phi-3", "llama-spm"), write_sentencepiece),
    "bert-bge": write_wordpiece,
}


@pytest.mark.parametrize("name", WRITERS)
def test_recorded_vectors(tmp_path, llama, name):
    tokens = WRITERS[name](tmp_path / "model", name)
    cases: list[dict[str, Any]] = VECTORS[name]["cases"]
    assert len(cases) > 40
    with llama(convert(tmp_path / "model", "F16", tmp_path / "model.gguf", Quiet()).path) as server:
        for case in cases:
            assert [tokens[number] for number in server.tokens(case["text"])] == case["tokens"], case["text"]


@pytest.mark.parametrize("kind", ["dbrx", "stablelm2", "qwen2", "olmo"])
def test_random_text(tmp_path, llama, kind):
    """Composed as NFC has it, for llama.cpp leaves text as it is."""
    folder = write_tiny_llama(tmp_path / "model", tokenizer=kind, vocab=420)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    with llama(convert(folder, "F16", tmp_path / "model.gguf", Quiet()).path) as server:

        @RANDOM
        @given(st.one_of(TEXT, PIECES))
        def check(text: str) -> None:
            text = unicodedata.normalize("NFC", text)
            assert server.tokens(text) == tokenizer.encode(text, add_special_tokens=False).ids

        check()


CASELESS = st.lists(
    st.one_of(
        st.text(st.characters(max_codepoint=127), max_size=12),
        st.sampled_from(["camelCase", "HTTPServer", "don't", "'LL", " the", "東京", "שלום", "\n", "//", "1234", "…"]),
    ),
    max_size=12,
).map(lambda parts: "".join(parts).replace("\0", ""))


@pytest.mark.parametrize("kind", ["gpt-4o", "tekken"])
def test_text_without_case_outside_ascii(tmp_path, llama, kind):
    """These two llama.cpp has only nearly: what it says of them is shown to hold, and where it ends."""
    folder = write_tiny_llama(tmp_path / "model", tokenizer=kind, vocab=420)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    conversion = convert(folder, "F16", tmp_path / "model.gguf", Quiet())
    assert f"llama.cpp's {kind} " in conversion.warning
    with llama(conversion.path) as server:

        @RANDOM
        @given(CASELESS)
        def check(text: str) -> None:
            assert server.tokens(text) == tokenizer.encode(text, add_special_tokens=False).ids

        check()


def test_random_text_with_wordpiece(tmp_path, llama):
    folder = write_tiny(tmp_path / "model", "bert")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    words = [
        "capital", " of", " FRANCE", "É", "ß", ",", " (", "東京", "2024", "\n", " packed", "ships", "e\u0301", "…",
        " zzz", "\u00a0",
    ]  # fmt: skip
    with llama(convert(folder, "F16", tmp_path / "model.gguf", Quiet()).path) as server:

        @RANDOM
        @given(st.lists(st.sampled_from(words), max_size=20).map("".join))
        def check(text: str) -> None:
            assert server.tokens(text) == tokenizer.encode(text, add_special_tokens=False).ids

        check()
        body = {"content": "the capital", "add_special": True}
        assert server.post("/tokenize", body)["tokens"] == tokenizer.encode("the capital").ids


def test_gemmas_tokenizer_json(tmp_path, llama):
    """Spaces become visible and none is put in front."""
    folder = write_tiny(tmp_path / "model", "gemma")
    pieces = sentencepiece_model.pieces_of(320)
    tokens = [text for text, _, _ in pieces]
    merges = [
        [token[:place], token[place:]]
        for token, score, kind in sorted(pieces, key=lambda piece: -piece[1])
        for place in range(1, len(token))
        if kind == sentencepiece_model.NORMAL and token[:place] in tokens and token[place:] in tokens
    ]
    (folder / "tokenizer.model").unlink()
    document = {
        "added_tokens": [{"id": n, "content": tokens[n], "special": True, "normalized": False, "single_word": False,
                          "lstrip": False, "rstrip": False} for n in range(3)],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
                          "invert": False},
        "post_processor": None, "decoder": None, "version": "1.0",
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "dropout": None,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "vocab": {token: number for number, token in enumerate(tokens)}, "merges": merges},
    }  # fmt: skip
    write_json(folder / "tokenizer.json", document)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    with llama(convert(folder, "F16", tmp_path / "model.gguf", Quiet()).path) as server:

        @RANDOM
        @given(st.one_of(TEXT, PIECES))
        def check(text: str) -> None:
            assert server.tokens(text) == tokenizer.encode(text, add_special_tokens=False).ids

        check()
