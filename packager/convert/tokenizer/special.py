"""Which tokens have a role, and which are put around a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from artifact.errors import Malformed
from packager.convert.documents import Fields
from packager.convert.errors import Unsupported

_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding", "mask": "mask"}
"""Hugging Face's names of roles, and GGUF's (whose spelling of separator is part of the format)."""


@dataclass(frozen=True)
class SpecialTokens:
    """The ids by GGUF's name of their role, and whether a text begins with BOS and ends with EOS."""

    ids: Mapping[str, int]
    add_bos: bool
    add_eos: bool


def special_tokens(
    tokenizer: Fields, settings: Fields, config: Fields, size: int,
    stand_ins: Mapping[str, str] = MappingProxyType({}), *, closed: bool = False,
) -> SpecialTokens:  # fmt: skip
    """Roles as tokenizer_config.json gives them, else config.json; what surrounds a text as tokenizer.json does it.
    `stand_ins` are the roles that take the place of one that is not given. In a `closed` text the token behind it is
    what an embedding is made of: llama.cpp puts none there but EOS, so it becomes that, and the stated one the end of a
    turn, as llama.cpp's own converter has it (gguf-py, vocab.py)."""
    numbers = _numbers(tokenizer)
    ids, names = roles_of(numbers, settings, config, size)
    behind = _behind(tokenizer) if closed else None
    if behind in numbers and behind != names.get("eos"):
        if "eos" in ids:
            ids["eot"] = ids["eos"]
        ids["eos"], names["eos"] = numbers[behind], behind
    for role, other in stand_ins.items():
        text = _content(settings, f"{other}_token")
        if role not in names and text in numbers:
            ids[_ROLES[role]], names[role] = numbers[text], text
    first, last = _surroundings(tokenizer, settings, names)
    return SpecialTokens(ids, first, last)


def roles_of(
    numbers: Mapping[str, int], settings: Fields, config: Fields, size: int
) -> tuple[dict[str, int], dict[str, str]]:
    """The ids of the roles by GGUF's names, and the tokens by Hugging Face's, given the `numbers` of all tokens."""
    ids: dict[str, int] = {}
    names: dict[str, str] = {}
    for theirs, ours in _ROLES.items():
        text = _content(settings, f"{theirs}_token")
        if text is not None and text in numbers:
            ids[ours], names[theirs] = numbers[text], text
            continue
        number = config.get(f"{theirs}_token_id")
        if isinstance(number, int) and not isinstance(number, bool) and number >= 0:
            if number >= size:
                raise Malformed(f"{config.where}: {theirs}_token_id {number} is beyond the {size} tokens there are")
            ids[ours] = number
            names[theirs] = next((text for text, other in numbers.items() if other == number), "")
    return ids, names


def _numbers(tokenizer: Fields) -> dict[str, int]:
    numbers = dict(tokenizer.object("model").object("vocab").values)
    for entry in tokenizer.items("added_tokens"):
        token = tokenizer.nested("added_tokens", entry)
        numbers[token.text("content")] = token.integer("id", minimum=0)
    return numbers


def _content(settings: Fields, key: str) -> str | None:
    value = settings.get(key)
    if isinstance(value, dict):
        value = value.get("content")
    if value is not None and not isinstance(value, str):
        raise Malformed(f"{settings.where}: {key} must be a token, not {value!r:.60}")
    return value


def _surroundings(tokenizer: Fields, settings: Fields, names: Mapping[str, str]) -> tuple[bool, bool]:
    if tokenizer.get("post_processor") is None:
        return settings.flag("add_bos_token", False), settings.flag("add_eos_token", False)
    first = last = False
    for step in _post_processors(tokenizer):
        match step:
            case {"type": "ByteLevel"}:
                continue
            case {"type": "TemplateProcessing", "single": list(template)}:
                first, last = _template(tokenizer, template, names)
            case {"type": "BertProcessing", "cls": [str(before), _], "sep": [str(after), _]}:
                first, last = _around(tokenizer, before, after, names)
            case _:
                raise Unsupported(f"{tokenizer.where}: a post-processor of this kind is not supported: {step!r:.80}")
    return first, last


def _post_processors(tokenizer: Fields) -> list[Any]:
    processor = tokenizer.object("post_processor")
    return processor.items("processors") if processor.get("type") == "Sequence" else [dict(processor.values)]


def _behind(tokenizer: Fields) -> str | None:
    """The token that a template puts behind a text."""
    for step in _post_processors(tokenizer):
        match step:
            case {"type": "TemplateProcessing", "single": [*_, {"Sequence": _}, {"SpecialToken": {"id": str(after)}}]}:
                return after
    return None


def _template(tokenizer: Fields, template: list[Any], names: Mapping[str, str]) -> tuple[bool, bool]:
    """Read ``[BOS] A [EOS]``, with either end left out."""
    match template:
        case [{"Sequence": _}]:
            before, after = None, None
        case [{"SpecialToken": {"id": before}}, {"Sequence": _}]:
            after = None
        case [{"Sequence": _}, {"SpecialToken": {"id": after}}]:
            before = None
        case [{"SpecialToken": {"id": before}}, {"Sequence": _}, {"SpecialToken": {"id": after}}]:
            pass
        case _:
            raise Unsupported(f"{tokenizer.where}: a template of this form is not supported: {template!r:.120}")
    return _around(tokenizer, before, after, names)


def _around(tokenizer: Fields, before: Any, after: Any, names: Mapping[str, str]) -> tuple[bool, bool]:
    if before not in (None, names.get("bos")) or after not in (None, names.get("eos")):
        raise Unsupported(
            f"{tokenizer.where}: puts {before!r} before and {after!r} behind a text, which are not the BOS and EOS "
            f"tokens {names.get('bos')!r} and {names.get('eos')!r} of the configuration"
        )
    return before is not None, after is not None
