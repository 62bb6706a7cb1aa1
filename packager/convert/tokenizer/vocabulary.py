"""The tokens of a tokenizer.json in the order of their ids, with the kinds llama.cpp gives them."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any

from artifact.errors import Malformed
from packager.convert.documents import Fields


class Kind(IntEnum):
    """What a token is to llama.cpp (llama.h, enum llama_token_type)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


MAX_TOKENS = 1 << 22
"""Most entries a vocabulary may have; the largest published ones have 262,144."""

_ALSO_CONTROL = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
"""Tokens that published tokenizers fail to mark as special although they are."""


def vocabulary(tokenizer: Fields, size: int, kind_of: Callable[[str], Kind]) -> tuple[list[str], list[Kind]]:
    """Every token up to `size` and its kind; `kind_of` gives it for tokens that are not added ones. Ids without a
    token become unused placeholders. Raises `Malformed` for an id that is used twice or lies beyond `size`."""
    if size > MAX_TOKENS:
        raise Malformed(f"{tokenizer.where}: a vocabulary of {size} tokens is larger than {MAX_TOKENS}")
    texts: dict[int, str] = {}
    kinds: dict[int, Kind] = {}
    for text, number in tokenizer.object("model").object("vocab").values.items():
        _claim(tokenizer, texts, text, number, size)
        kinds[number] = kind_of(text)
    for entry in tokenizer.items("added_tokens"):
        token = tokenizer.nested("added_tokens", entry)
        text, number = token.text("content"), token.integer("id", minimum=0)
        _claim(tokenizer, texts, text, number, size)
        if token.flag("special", False) or looks_special(text):
            kinds[number] = Kind.CONTROL
        else:
            kinds[number] = Kind.USER_DEFINED
            texts[number] = text.replace("\u2581", " ")
    if len(texts) == size:
        return [texts[number] for number in range(size)], [kinds[number] for number in range(size)]
    tokens = [texts.get(number, f"[PAD{number}]") for number in range(size)]
    return tokens, [kinds.get(number, Kind.UNUSED) for number in range(size)]


def _claim(tokenizer: Fields, texts: dict[int, str], text: str, number: Any, size: int) -> None:
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < size:
        raise Malformed(
            f"{tokenizer.where}: token {text!r:.60} has id {number!r:.20}, the model's vocabulary has {size} entries"
        )
    if texts.setdefault(number, text) != text:
        raise Malformed(f"{tokenizer.where}: tokens {texts[number]!r:.60} and {text!r:.60} have the same id {number}")


def looks_special(text: str) -> bool:
    """Whether a token is special by the looks of it, whatever the tokenizer says (llama.cpp's converter does so)."""
    return (
        text in _ALSO_CONTROL
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<\uff5c") and text.endswith("\uff5c>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )
