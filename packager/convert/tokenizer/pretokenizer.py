"""Which of llama.cpp's named pre-tokenizers a tokenizer.json has.

llama.cpp carries the splitting rules of byte-level BPE tokenizers under names. A wrong name gives a model that runs
and answers worse, so a name is given only to rules known to be the same, and anything else is refused.
Source: llama.cpp, src/llama-vocab.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from packager.convert.documents import Fields
from packager.convert.errors import Unsupported

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_SPACES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Rules:
    """What decides how text is cut: the normaliser's type, each step of the pre-tokenizer, and whether a word that
    is a token as a whole is taken before any merge is tried."""

    normalizer: str | None
    steps: tuple[str, ...]
    whole_words: bool = False


_GPT2 = "gpt2"
_BYTES = "bytes"
_DIGITS = "digit"

_THREE_DIGITS = f"split {_CONTRACTIONS}\\p{{N}}{{1,3}}|{_SPACES}"
_ONE_DIGIT = f"split {_CONTRACTIONS}\\p{{N}}|{_SPACES}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_CASED_SPACES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_TEKKEN = f"split {_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*|\\p{{N}}|{_CASED_SPACES}"
_GPT4O = (
    f"split {_BEFORE}{_UPPER}*{_LOWER}+{_SUFFIX}|{_BEFORE}{_UPPER}+{_LOWER}*{_SUFFIX}|\\p{{N}}{{1,3}}|{_CASED_SPACES}"
)

NAMES: dict[Rules, str] = {
    Rules(None, (_GPT2,)): "gpt-2",
    Rules("NFC", (_GPT2,)): "olmo",
    Rules(None, (_DIGITS, _GPT2)): "smollm",
    Rules(None, (_THREE_DIGITS, _BYTES), whole_words=True): "llama-bpe",
    Rules(None, (_THREE_DIGITS, _BYTES)): "dbrx",
    Rules("NFC", (_ONE_DIGIT, _BYTES)): "qwen2",
    Rules(None, (_ONE_DIGIT, _BYTES)): "stablelm2",
    Rules(None, (_GPT4O, _BYTES)): "gpt-4o",
    Rules(None, (_TEKKEN, _BYTES), whole_words=True): "tekken",
}
"""Add an entry only with the rules of llama.cpp's source beside it, and a test against llama.cpp's own tokens.
llama.cpp has no NFC: the rare text that is not in that form is cut otherwise than by the tokenizer."""

NEARLY = {
    name: f"llama.cpp's {name} is the tokenizer's for ASCII and for letters without case; words whose letters outside "
    "ASCII change case, and combining marks, it cuts otherwise"
    for name in ("gpt-4o", "tekken")
}
"""Names whose rules llama.cpp has only nearly, with what a user should know: all GGUF files of such models share it."""


def pre_tokenizer_name(tokenizer: Fields) -> str:
    """llama.cpp's name for the rules of a byte-level tokenizer.json. Raises `Unsupported` if it has none we know."""
    name = NAMES.get(rules_of(tokenizer))
    if name is None:
        known = ", ".join(sorted(NAMES.values()))
        raise Unsupported(
            f"{tokenizer.where}: its pre-tokenizer is none that is known to be llama.cpp's own ({known}): "
            "a GGUF with a wrong one would answer wrongly; pack the checkpoint as safetensors instead"
        )
    return name


def rules_of(tokenizer: Fields) -> Rules:
    """The rules of a tokenizer.json, with what cannot be named written so that it equals no known rules."""
    normalizer = tokenizer.get("normalizer")
    stated = tokenizer.get("pre_tokenizer")
    steps = stated.get("pretokenizers") if isinstance(stated, dict) and stated.get("type") == "Sequence" else [stated]
    return Rules(
        None if normalizer is None else _plain(normalizer),
        tuple(map(_step, steps)) if isinstance(steps, list) else ("unknown",),
        tokenizer.object("model").flag("ignore_merges", False),
    )


def _plain(value: Any) -> str | None:
    if value == {"type": "Sequence", "normalizers": []}:
        return None
    return str(value["type"]) if isinstance(value, dict) and set(value) == {"type"} else "unknown"


def _step(value: Any) -> str:
    match value:
        case {"type": "Digits", "individual_digits": True}:
            return _DIGITS
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}:
            return _BYTES
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return _GPT2
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False}:
            return f"split {pattern}"
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Removed", "invert": True}:
            return f"split {pattern}"  # all that is no match goes: each pattern in NAMES matches all there can be
        case _:
            return "unknown"
