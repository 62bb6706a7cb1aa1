"""A tokenizer.model of Llama 2's kind: SentencePiece's protocol buffer, written field by field.

Source: google/sentencepiece, src/sentencepiece_model.proto.
"""

from __future__ import annotations

import struct
from pathlib import Path

from tests.checkpoints.bpe import CORPUS, train_merges
from tests.checkpoints.shards import write_json

SPACE = "\u2581"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
BPE, UNIGRAM = 2, 1

Piece = tuple[str, float, int]


def pieces_of(vocab: int) -> list[Piece]:
    """Exactly `vocab` pieces: three special ones, the letters of a text, what joins them, a byte each, fillers."""
    letters = sorted({SPACE, *CORPUS.replace(" ", SPACE)})
    room = vocab - 3 - 256 - len(letters)
    merges = [(left + right).replace("Ġ", SPACE) for left, right in train_merges(room)]
    pieces = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    pieces += [(f"<0x{value:02X}>", 0.0, BYTE) for value in range(256)]
    pieces += [(text, -float(rank), NORMAL) for rank, text in enumerate(merges)]
    pieces += [(text, -float(len(merges) + rank), NORMAL) for rank, text in enumerate(letters)]
    assert len(pieces) == len({text for text, _, _ in pieces}) == vocab
    return pieces


def write_sentencepiece_model(folder: Path, vocab: int, *, prefix: bool = True) -> list[Piece]:
    """Write tokenizer.model and tokenizer_config.json; the pieces."""
    pieces = pieces_of(vocab)
    (folder / "tokenizer.model").write_bytes(encode_model(pieces, prefix=prefix))
    settings = {
        "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        "tokenizer_class": "LlamaTokenizer",
    }  # fmt: skip
    write_json(folder / "tokenizer_config.json", settings)
    return pieces


def encode_model(pieces: list[Piece], *, kind: int = BPE, prefix: bool = True) -> bytes:
    """A ModelProto: the pieces, the trainer's model type, the normaliser (``identity``)."""
    encoded = b"".join(
        _bytes(1, _bytes(1, text.encode()) + b"\x15" + struct.pack("<f", score) + _number(3, type_))
        for text, score, type_ in pieces
    )
    trainer = _number(3, kind) + _number(4, len(pieces)) + _number(35, 1)
    normalizer = _bytes(1, b"identity") + _number(3, int(prefix)) + _number(4, 0) + _number(5, 1)
    return encoded + _bytes(2, trainer) + _bytes(3, normalizer)


def _varint(value: int) -> bytes:
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value
