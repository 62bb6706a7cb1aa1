"""SentencePiece's own file, tokenizer.model, for checkpoints without a tokenizer.json.

Source: google/sentencepiece, src/sentencepiece_model.proto.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from artifact.errors import Malformed
from packager.convert.documents import Fields, read_bytes, read_object_if_any
from packager.convert.errors import Unsupported
from packager.convert.gguf_header import Metadata
from packager.convert.tokenizer.protobuf import Value, fields
from packager.convert.tokenizer.special import SpecialTokens, roles_of
from packager.convert.tokenizer.vocabulary import MAX_TOKENS, Kind, looks_special

_MAX_MODEL = 32 * 1024 * 1024
_BPE = 2
_UNUSED_SCORE, _ADDED_SCORE = -10000.0, -1000.0
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_MODEL_TYPE, _SUFFIX, _BYTE_FALLBACK = 3, 24, 35
_CHARSMAP, _DUMMY_PREFIX, _EXTRA_SPACES, _ESCAPE = 2, 3, 4, 5


@dataclass(frozen=True)
class Piece:
    """One token, its score, and what it is."""

    text: str
    score: float
    kind: Kind


def describe(metadata: Metadata, folder: Path, settings: Fields, config: Fields, size: int) -> SpecialTokens:
    """Write the keys of a vocabulary of `size` tokens. Raises `Malformed` or `Unsupported`."""
    if size > MAX_TOKENS:
        raise Malformed(f"{config.where}: a vocabulary of {size} tokens is larger than {MAX_TOKENS}")
    path = folder / "tokenizer.model"
    pieces, prefix = read_model(read_bytes(path, _MAX_MODEL), str(path))
    if len(pieces) > size:
        raise Malformed(f"{path} has {len(pieces)} tokens, the model's vocabulary has {size} entries")
    numbers = {piece.text: number for number, piece in enumerate(pieces)}
    pieces += [Piece(f"[PAD{number}]", _UNUSED_SCORE, Kind.UNUSED) for number in range(len(pieces), size)]
    for number, (text, special) in _added(folder, settings, size).items():
        control = special or looks_special(text)
        shown = text if control else text.replace("\u2581", " ")
        pieces[number] = Piece(shown, _ADDED_SCORE, Kind.CONTROL if control else Kind.USER_DEFINED)
        numbers[text] = number
    metadata.string("tokenizer.ggml.model", "llama")
    metadata.string("tokenizer.ggml.pre", "default")
    metadata.flag("tokenizer.ggml.add_space_prefix", prefix)
    metadata.strings("tokenizer.ggml.tokens", [piece.text for piece in pieces])
    metadata.float32s("tokenizer.ggml.scores", [piece.score for piece in pieces])
    metadata.int32s("tokenizer.ggml.token_type", [piece.kind for piece in pieces])
    ids, _ = roles_of(numbers, settings, config, size)
    return SpecialTokens(ids, settings.flag("add_bos_token", True), settings.flag("add_eos_token", False))


def read_model(raw: bytes, what: str) -> tuple[list[Piece], bool]:
    """The pieces, and whether text gets a space in front. Raises `Malformed` for a broken file, `Unsupported` for one
    with other rules than llama.cpp's."""
    pieces: list[Piece] = []
    trainer: dict[int, Value] = {}
    normalizer: dict[int, Value] = {}
    for number, value in fields(memoryview(raw), what):
        if number == _PIECES:
            pieces.append(_piece(_message(value, what), f"{what}: token {len(pieces)}"))
        elif number == _TRAINER:
            trainer.update(fields(_message(value, what), what))
        elif number == _NORMALIZER:
            normalizer.update(fields(_message(value, what), what))
    if not pieces:
        raise Malformed(f"{what} holds no tokens")
    if trainer.get(_MODEL_TYPE, 1) != _BPE or not trainer.get(_BYTE_FALLBACK, 0) or trainer.get(_SUFFIX, 0):
        raise Unsupported(f"{what}: only SentencePiece BPE with byte fallback is supported")
    if normalizer.get(_CHARSMAP, b"") or normalizer.get(_EXTRA_SPACES, 1) or not normalizer.get(_ESCAPE, 1):
        raise Unsupported(f"{what}: a SentencePiece tokenizer with these normalisation rules is not supported")
    return pieces, bool(normalizer.get(_DUMMY_PREFIX, 1))


def _message(value: Value, what: str) -> memoryview:
    if not isinstance(value, memoryview):
        raise Malformed(f"{what} is no SentencePiece model")
    return value


def _piece(message: memoryview, what: str) -> Piece:
    values: Mapping[int, Value] = dict(fields(message, what))
    score, kind = values.get(2, 0.0), values.get(3, Kind.NORMAL)
    if not isinstance(score, float) or not math.isfinite(score) or not isinstance(kind, int):
        raise Malformed(f"{what} has no number for a score or its kind")
    try:
        return Piece(str(_message(values.get(1, 0), what), "utf-8"), score, Kind(kind))
    except ValueError:
        raise Malformed(f"{what} is not text, or of unknown kind") from None


def _added(folder: Path, settings: Fields, size: int) -> dict[int, tuple[str, bool]]:
    """Added tokens by their ids: the text, and whether it is marked as special."""
    added: dict[int, tuple[str, bool]] = {}
    older = read_object_if_any(folder / "added_tokens.json")
    for text in older.values:
        added[older.integer(text, minimum=0)] = text, False
    decoder = settings.object("added_tokens_decoder")
    for key, value in decoder.values.items():
        if not key.isascii() or not key.isdigit():
            raise Malformed(f"{decoder.where}: not the id of a token: {key!r:.40}")
        token = decoder.nested(key, value)
        added[int(key)] = token.text("content"), token.flag("special", False)
    for number, (text, _) in added.items():
        if number >= size:
            raise Malformed(f"{folder}: token {text!r:.60} has id {number}, the vocabulary has {size} entries")
    return added
