"""The checkpoints that are compared with what others make of them: a tiny one of every family, and those that are
published in another shape than their family's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.checkpoints.families import TINY, write_tiny

EMBEDDING = "qwen3-embedding"
CHECKPOINTS = {name: tiny.model for name, tiny in TINY.items()} | {EMBEDDING: "Qwen3ForCausalLM"}
"""Every checkpoint, with the name of its architecture."""

CLOSING, STATED = "<|endoftext|>", "<|im_end|>"
"""The token that Qwen 3 Embedding puts behind a text, and the one it says is EOS."""


def write(folder: Path, name: str, **changes: Any) -> Path:
    """Write the checkpoint `name`, its config changed by `changes`, and return the folder."""
    if name == EMBEDDING:
        return write_embedding(folder, **changes)
    return write_tiny(folder, name, **changes)


def write_embedding(folder: Path, family: str = "qwen3", **changes: Any) -> Path:
    """The checkpoint of `family` in the shape of Qwen3-Embedding: no head, no ``model.`` in front of the tensors'
    names, a token behind each text that is not the stated EOS, the last token's vector as the text's."""
    write_tiny(folder, family, **changes)
    _rename_tensors(folder / "model.safetensors")
    module = {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
    (folder / "modules.json").write_text(json.dumps([module]))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_lasttoken": True}))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    ids = {entry["content"]: entry["id"] for entry in tokenizer["added_tokens"]}
    single = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": CLOSING, "type_id": 0}}]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 0}}, single[1]]
    closing = {"id": CLOSING, "ids": [ids[CLOSING]], "tokens": [CLOSING]}
    template = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": {CLOSING: closing}}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    tokenizer["post_processor"] = {"type": "Sequence", "processors": [level, template]}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def _rename_tensors(path: Path) -> None:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    tensors = raw[8 + length :]
    assert [*header][-1] == "lm_head.weight"
    begin, end = header.pop("lm_head.weight")["data_offsets"]
    assert end == len(tensors)
    text = json.dumps({name.removeprefix("model."): entry for name, entry in header.items()}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + tensors[:begin])
