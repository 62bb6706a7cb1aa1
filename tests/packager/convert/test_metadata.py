"""Metadata: what the GGUF says about the model, its vocabulary and its template, read back with gguf's reader."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from artifact.progress import Quiet
from packager.convert import Unsupported, convert
from packager.convert.documents import Fields
from packager.convert.rope import factors
from tests.checkpoints.families import write_tiny
from tests.checkpoints.tiny import CHAT_TEMPLATE, write_tiny_llama
from tests.packager.convert.sentencepiece import write_sentencepiece


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def metadata_of(folder: Path, precision: str = "F16") -> dict[str, Any]:
    target = folder.parent / "model.gguf"
    convert(folder, precision, target, Quiet())
    return {key: field.contents() for key, field in gguf.GGUFReader(target).fields.items()}


def test_hyperparameters(tmp_path):
    found = metadata_of(write_tiny_llama(tmp_path / "model", layers=3, hidden=128, heads=8, kv_heads=2, context=512))
    assert {key: value for key, value in found.items() if key.startswith(("llama.", "general."))} == {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "Tiny",
        "general.size_label": "312K",
        "general.license": "apache-2.0",
        "general.tags": ["text-generation"],
        "general.file_type": 1,
        "general.quantization_version": 2,
        "llama.block_count": 3,
        "llama.context_length": 512,
        "llama.embedding_length": 128,
        "llama.feed_forward_length": 128,
        "llama.attention.head_count": 8,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 16,
        "llama.attention.value_length": 16,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": 16,
        "llama.vocab_size": 320,
    }


@pytest.mark.parametrize(("precision", "file_type"), [("F32", 0), ("F16", 1), ("Q8_0", 7), ("BF16", 32)])
def test_file_type(tmp_path, precision, file_type):
    assert metadata_of(write_tiny_llama(tmp_path / "model"), precision)["general.file_type"] == file_type


@pytest.mark.parametrize("kind", ["smollm", "llama-bpe", "gpt-2"])
def test_byte_level_vocabulary(tmp_path, kind):
    folder = write_tiny_llama(tmp_path / "model", tokenizer=kind, vocab=600)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    found = metadata_of(folder)
    ids = dict(tokenizer["model"]["vocab"])
    special = {entry["content"]: entry["id"] for entry in tokenizer["added_tokens"]}
    ids.update(special)
    assert found["tokenizer.ggml.model"] == "gpt2"
    assert found["tokenizer.ggml.pre"] == kind
    assert found["tokenizer.ggml.tokens"] == sorted(ids, key=ids.__getitem__)
    types = found["tokenizer.ggml.token_type"]
    assert [number for number, type_ in enumerate(types) if type_ == gguf.TokenType.CONTROL] == sorted(special.values())
    assert set(types) == {gguf.TokenType.CONTROL, gguf.TokenType.NORMAL}
    assert found["tokenizer.ggml.merges"] == [" ".join(pair) for pair in tokenizer["model"]["merges"]]
    roles = {"bos": "<|im_start|>", "eos": "<|im_end|>", "padding": "<|im_end|>", "unknown": "<|endoftext|>"}
    assert {role: found[f"tokenizer.ggml.{role}_token_id"] for role in roles} == {r: ids[t] for r, t in roles.items()}
    assert found["tokenizer.ggml.add_bos_token"] is (kind == "llama-bpe")
    assert found["tokenizer.ggml.add_eos_token"] is False
    assert found["tokenizer.ggml.add_space_prefix"] is False
    assert found["tokenizer.chat_template"] == CHAT_TEMPLATE


def test_older_merges_and_ids_from_the_config(tmp_path):
    folder = write_tiny_llama(tmp_path / "model")
    before = metadata_of(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = [" ".join(pair) for pair in tokenizer["model"]["merges"]]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").unlink()
    after = metadata_of(folder)
    missing = {"tokenizer.chat_template", "tokenizer.ggml.unknown_token_id"}
    assert {key: before[key] for key in before.keys() - missing if not key.startswith("GGUF.")} == {
        key: after[key] for key in after if not key.startswith("GGUF.")
    }


def test_a_vocabulary_smaller_than_the_embedding_is_filled_with_unused_tokens(tmp_path):
    folder = write_tiny_llama(tmp_path / "model", vocab=300)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    last = max(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    del tokenizer["model"]["vocab"][last]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    found = metadata_of(folder)
    assert found["tokenizer.ggml.tokens"][299] == "[PAD299]"
    assert found["tokenizer.ggml.token_type"][299] == gguf.TokenType.UNUSED


def test_added_tokens_that_are_not_special(tmp_path):
    folder = write_tiny_llama(tmp_path / "model", vocab=301)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    del tokenizer["model"]["vocab"][max(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)]
    tokenizer["added_tokens"].append({"id": 300, "content": "two\u2581words", "special": False})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    found = metadata_of(folder)
    assert found["tokenizer.ggml.tokens"][300] == "two words"
    assert found["tokenizer.ggml.token_type"][300] == gguf.TokenType.USER_DEFINED


def test_chat_template_file_goes_first(tmp_path):
    folder = write_tiny_llama(tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{{ 'from the file' }}")
    assert metadata_of(folder)["tokenizer.chat_template"] == "{{ 'from the file' }}"


def test_named_chat_templates(tmp_path):
    folder = write_tiny_llama(tmp_path / "model")
    templates = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    edit(folder / "tokenizer_config.json", chat_template=templates)
    found = metadata_of(folder)
    assert found["tokenizer.chat_template"] == "plain"
    assert found["tokenizer.chat_template.tool_use"] == "tools"
    assert found["tokenizer.chat_templates"] == ["tool_use"]


def test_no_chat_template(tmp_path):
    assert "tokenizer.chat_template" not in metadata_of(write_tiny_llama(tmp_path / "model", chat_template=None))


def test_linear_and_yarn_rope(tmp_path):
    linear = write_tiny_llama(tmp_path / "linear", rope_scaling={"type": "linear", "factor": 2.5})
    found = metadata_of(linear)
    assert (found["llama.rope.scaling.type"], found["llama.rope.scaling.factor"]) == ("linear", 2.5)
    scaling = {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 64, "beta_fast": 32}
    found = metadata_of(write_tiny_llama(tmp_path / "yarn", rope_scaling=scaling))
    assert {key.rpartition("rope.scaling.")[2]: value for key, value in found.items() if "rope.scaling" in key} == {
        "type": "yarn", "factor": 4.0, "original_context_length": 64, "yarn_beta_fast": 32.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("stated", "scale"),
    [({}, 1 + 1 / 3), ({"attention_factor": 1.25, "factor": 9.0}, 1.25**2), ({"factor": 8.0}, 1.5)],
)
def test_what_longrope_scales_by(tmp_path, stated, scale):
    """As stated, else by the stated factor, else by how much longer the context has become."""
    folder = write_tiny(tmp_path / "model", "phi3-long")
    config = json.loads((folder / "config.json").read_text())
    edit(folder / "config.json", rope_scaling={**config["rope_scaling"], **stated})
    assert metadata_of(folder)["phi3.rope.scaling.attn_factor"] == pytest.approx(scale**0.5)


@pytest.mark.parametrize(("stated", "written"), [(1.0, 1 / (1 + 0.1 * math.log(4))), (1 + 0.1 * math.log(4), 1.0)])
def test_yarns_factor_for_attention_is_what_llama_cpp_has_to_add_to_its_own(tmp_path, stated, written):
    scaling = {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 64, "attention_factor": stated}
    found = metadata_of(write_tiny_llama(tmp_path / "model", rope_scaling=scaling))
    assert found["llama.rope.scaling.attn_factor"] == pytest.approx(written)
    assert "llama.rope.scaling.yarn_attn_factor" not in found


def test_gemma_2_without_a_model_type(tmp_path):
    folder = write_tiny(tmp_path / "model", "gemma2")
    edit(folder / "config.json", model_type=None)
    assert metadata_of(folder)["gemma2.attention.sliding_window"] == 32


def test_rope_as_newer_configs_write_it(tmp_path):
    folder = write_tiny_llama(tmp_path / "model")
    edit(folder / "config.json", rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    assert metadata_of(folder)["llama.rope.freq_base"] == 500000.0


def test_factors_of_published_llama_models():
    """Llama 3.1 8B, dimensions 128: the values in between are those llama.cpp's converter writes."""
    scaling = {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    }  # fmt: skip
    found = factors(Fields("config.json", {"rope_theta": 500000.0, "rope_scaling": scaling}), 128)
    between = [value for value in found if value not in (1, 8)]
    assert between == [
        np.float32(text) for text in ("1.2074839", "1.5534146", "2.026313", "2.69453", "3.6842532", "5.257327")
    ]


def test_sentencepiece_vocabulary(tmp_path):
    folder = write_tiny_llama(tmp_path / "model", vocab=380)
    tokens, merges = write_sentencepiece(folder, 380)
    found = metadata_of(folder)
    assert (found["tokenizer.ggml.model"], found["tokenizer.ggml.pre"]) == ("llama", "default")
    assert found["tokenizer.ggml.tokens"] == tokens
    scores = dict(zip(tokens, found["tokenizer.ggml.scores"], strict=True))
    made = [left + right for left, right in merges]
    assert sorted(made, key=scores.__getitem__, reverse=True) == made
    assert max(score for token, score in scores.items() if token not in made) < min(map(scores.__getitem__, made))
    types = found["tokenizer.ggml.token_type"]
    normal = [gguf.TokenType.NORMAL] * (380 - 259)
    assert types == [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.BYTE] * 256 + normal
    assert found["tokenizer.ggml.add_bos_token"] is True
    assert found["tokenizer.ggml.add_space_prefix"] is True
    assert found["tokenizer.ggml.bos_token_id"] == 1


def test_sentencepiece_as_newer_files_write_it(tmp_path):
    folder = write_tiny_llama(tmp_path / "model", vocab=380)
    write_sentencepiece(folder, 380)
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "never", "split": False}
    edit(folder / "tokenizer.json", normalizer=None, pre_tokenizer=metaspace)
    assert metadata_of(folder)["tokenizer.ggml.add_space_prefix"] is False
    edit(folder / "tokenizer.json", normalizer={"type": "NFKC"})
    with pytest.raises(Unsupported, match="SentencePiece"):
        metadata_of(folder)
