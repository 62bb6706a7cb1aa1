"""llama.cpp's test vectors of published tokenizers, each with as much of the vocabulary as decides about its texts.

    python -m tests.packager.convert.vectors    write vectors.json anew, from the environment `oracle.py` builds

A vocabulary is cut down to the tokens the answers are made of, and to those these are merged from: merges that never
happened in a text cannot change what becomes of it. Ids are renumbered, so answers are recorded as tokens.
Source: llama.cpp, models/ggml-vocab-*.gguf (.inp, .out); MIT licence, Copyright (c) 2023-2026 The ggml authors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gguf

from tests.packager.convert import oracle

RECORDED = Path(__file__).with_name("vectors.json")
SOURCE = "llama.cpp, models/ggml-vocab-*.gguf; MIT licence, Copyright (c) 2023-2026 The ggml authors"
BYTE_LEVEL = {"gpt-2": "gpt-2", "llama-bpe": "llama-bpe", "qwen2": "qwen2", "refact": "smollm", "starcoder": "smollm"}
"""Vocabularies, and what their pre-tokenizer is to our converter."""

_BETWEEN = "\n__ggml_vocab_test__\n"


def cases(name: str, tokens: list[str]) -> list[dict[str, Any]]:
    """The texts, and the tokens llama.cpp's authors expect for each."""
    base = oracle.SOURCE / "models" / f"ggml-vocab-{name}.gguf"
    texts = base.with_name(base.name + ".inp").read_text(encoding="utf-8").split(_BETWEEN)
    answers = base.with_name(base.name + ".out").read_text().splitlines()
    return [
        {"text": text, "tokens": [tokens[int(number)] for number in answer.split()]}
        for text, answer in zip(texts, answers, strict=False)
        if text
    ]


def closure(answers: Iterable[dict[str, Any]], parts_of: Callable[[str], Iterable[tuple[str, str]]]) -> set[str]:
    """The tokens of the answers and all they are merged from."""
    needed = {token for answer in answers for token in answer["tokens"]}
    waiting = list(needed)
    while waiting:
        for pair in parts_of(waiting.pop()):
            fresh = set(pair) - needed
            needed |= fresh
            waiting += fresh
    return needed


def byte_level(name: str) -> dict[str, Any]:
    fields = gguf.GGUFReader(oracle.SOURCE / "models" / f"ggml-vocab-{name}.gguf").fields
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    made: dict[str, list[tuple[str, str]]] = {}
    for left, right in merges:
        made.setdefault(left + right, []).append((left, right))
    answers = cases(name, fields["tokenizer.ggml.tokens"].contents())
    needed = closure(answers, lambda token: made.get(token, []))
    kept = [pair for pair in merges if pair[0] + pair[1] in needed]
    return {"cases": answers, "tokens": sorted(needed), "merges": [" ".join(pair) for pair in kept]}


def sentencepiece(name: str) -> dict[str, Any]:
    fields = gguf.GGUFReader(oracle.SOURCE / "models" / f"ggml-vocab-{name}.gguf").fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    scores = dict(zip(tokens, fields["tokenizer.ggml.scores"].contents(), strict=True))

    def parts(token: str) -> list[tuple[str, str]]:
        cuts = ((token[:place], token[place:]) for place in range(1, len(token)))
        return [pair for pair in cuts if pair[0] in scores and pair[1] in scores]

    answers = cases(name, tokens)
    needed = closure(answers, parts) - {f"<0x{value:02X}>" for value in range(256)} - {"<unk>", "<s>", "</s>"}
    return {"cases": answers, "scores": {token: scores[token] for token in sorted(needed)}}


def wordpiece(name: str) -> dict[str, Any]:
    fields = gguf.GGUFReader(oracle.SOURCE / "models" / f"ggml-vocab-{name}.gguf").fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    answers = cases(name, tokens)
    return {"cases": answers, "tokens": sorted(closure(answers, lambda token: []))}


def main() -> None:
    recorded: dict[str, Any] = {"source": SOURCE, "release": f"llama-cpp-python {oracle.VERSION}"}
    recorded |= {name: byte_level(name) for name in BYTE_LEVEL}
    recorded |= {name: sentencepiece(name) for name in ("phi-3", "llama-spm")} | {"bert-bge": wordpiece("bert-bge")}
    RECORDED.write_text(oracle.pretty(recorded) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
