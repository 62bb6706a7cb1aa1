"""Settings that llama.cpp has no place for, family by family: refused, with nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from artifact.errors import Malformed, NotFound
from artifact.progress import Quiet
from packager.convert import Unsupported, convert
from packager.convert.gguf_header import Metadata
from tests.checkpoints import sentencepiece_model
from tests.checkpoints.families import TINY, write_tiny
from tests.checkpoints.tiny import LLAMA31_ROPE

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
SETTINGS: list[tuple[str, dict[str, Any], str]] = [
    ("mistral", {"sliding_window": 64}, "sliding window"),
    ("mixtral", {"sliding_window": 64}, "sliding window"),
    ("qwen2", {"use_sliding_window": True}, "sliding window"),
    ("qwen2", {"rope_scaling": LLAMA31_ROPE}, "llama3"),
    *(
        (name, {"rope_scaling": {**YARN, key: value}}, f"{key} must be {usual} for llama.cpp")
        for name in ("llama", "qwen2")
        for key, value, usual in (
            ("beta_fast", 16, 32),
            ("beta_slow", 0.5, 1),
            ("truncate", False, True),
            ("mscale", 0.5, "absent"),
            ("mscale_all_dim", 1.0, "absent"),
            ("extrapolation_factor", 2.0, 1),
        )
    ),
    ("qwen2", {"is_causal": False}, "is_causal"),
    ("qwen2-moe", {"norm_topk_prob": True}, "norm_topk_prob"),
    ("qwen2-moe", {"decoder_sparse_step": 2}, "decoder_sparse_step"),
    ("qwen3-moe", {"norm_topk_prob": False}, "norm_topk_prob"),
    ("qwen3-moe", {"mlp_only_layers": [0]}, "mlp_only_layers"),
    ("gemma", {"hidden_activation": "gelu"}, "hidden_activation"),
    ("gemma2", {"query_pre_attn_scalar": 16}, "query_pre_attn_scalar must be 32"),
    ("gemma2", {"layer_types": ["full_attention", "sliding_attention"]}, "sliding window"),
    *(
        ("gemma2", {key: None}, f"{key} is null")
        for key in ("attn_logit_softcapping", "final_logit_softcapping", "sliding_window")
    ),
    ("gemma3", {"sliding_window": None}, "sliding_window is null"),
    ("gemma3", {"sliding_window_pattern": 3}, "sliding window"),
    ("gemma3", {"layer_types": ["sliding_attention"] * 6}, "sliding window"),
    ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    ("phi3", {"rope_scaling": {"type": "yarn", "factor": 2}}, "longrope"),
    ("phi3-long", {"partial_rotary_factor": 0.5}, "must have 4 numbers, not 6"),
    ("olmo2", {"tie_word_embeddings": True}, "tied"),
    ("stablelm", {"tie_word_embeddings": True}, "tied"),
    ("stablelm", {"qk_layernorm": True}, "qk_layernorm"),
    ("stablelm", {"rope_scaling": {"type": "linear", "factor": 2}}, "rope scaling"),
    ("smollm3", {"no_rope_layers": [1, 1, 1, 1]}, "rotation"),
    ("smollm3", {"no_rope_layer_interval": 2}, "no_rope_layer_interval"),
    ("smollm3", {"use_sliding_window": True, "sliding_window": 64}, "sliding window"),
    ("granite", {"hidden_act": "gelu"}, "hidden_act"),
    ("gpt2", {"activation_function": "relu"}, "activation_function"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ("bert", {"hidden_act": "relu"}, "hidden_act"),
    *((name, {"architectures": ["OtherForCausalLM"]}, "OtherForCausalLM") for name in TINY),
]


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(folder: Path, error: type[Exception], words: str) -> None:
    target = folder.parent / "model.gguf"
    with pytest.raises(error, match=words) as caught:
        convert(folder, "F16", target, Quiet())
    assert "\n" not in str(caught.value)
    assert not target.exists()


@pytest.mark.parametrize(("name", "changes", "words"), SETTINGS, ids=lambda value: str(value)[:40])
def test_settings(tmp_path, name, changes, words):
    folder = write_tiny(tmp_path / "model", name)
    edit(folder / "config.json", **changes)
    refused(folder, Unsupported, words)


def test_an_expert_too_few(tmp_path):
    folder = write_tiny(tmp_path / "model", "mixtral")
    edit(folder / "config.json", num_local_experts=5)
    refused(folder, Malformed, "lacks tensor.*gate.weight|lacks tensor.*experts.4|shape")


def test_experts_that_the_config_does_not_count(tmp_path):
    folder = write_tiny(tmp_path / "model", "qwen3-moe")
    edit(folder / "config.json", num_experts=3)
    refused(folder, Malformed, "shape|does not belong")


def test_more_experts_than_any_model_has(tmp_path):
    folder = write_tiny(tmp_path / "model", "mixtral")
    edit(folder / "config.json", num_local_experts=2**31)
    refused(folder, Malformed, "at most 4096")


@pytest.mark.parametrize("name", ["phi3", "stablelm"])
@pytest.mark.parametrize("share", [1.5, 2**31])
def test_more_of_a_head_than_there_is(tmp_path, name, share):
    folder = write_tiny(tmp_path / "model", name)
    edit(folder / "config.json", partial_rotary_factor=share)
    refused(folder, Malformed, "partial_rotary_factor must be 1 at most")


@pytest.mark.parametrize("scaling", [None, LLAMA31_ROPE])
def test_a_rotation_that_is_none(tmp_path, scaling):
    folder = write_tiny(tmp_path / "model", "llama", rope_theta=1e-300, rope_scaling=scaling)
    refused(folder, Malformed, "rope_theta must be at least 1")


def test_a_context_too_short_to_scale(tmp_path):
    folder = write_tiny(tmp_path / "model", "phi3-long", original_max_position_embeddings=1)
    refused(folder, Malformed, "original_max_position_embeddings must be a whole number of at least 2")


@pytest.mark.parametrize(("kind", "number"), [("uint16", 2**16), ("uint32", -1), ("int32", 2**31), ("float32", 1e39)])
def test_a_number_that_gguf_has_no_place_for(kind, number):
    with pytest.raises(Malformed, match=r"some\.key"):
        getattr(Metadata(), kind)("some.key", number)


def test_half_a_parallel_block(tmp_path):
    """Norms that the config does not say are missing."""
    folder = write_tiny(tmp_path / "model", "stablelm-parallel")
    edit(folder / "config.json", use_parallel_residual=False)
    refused(folder, Malformed, "post_attention_layernorm")


def test_other_kinds_of_sentencepiece(tmp_path):
    folder = write_tiny(tmp_path / "model", "mistral")
    pieces = sentencepiece_model.pieces_of(320)
    model = folder / "tokenizer.model"
    model.write_bytes(sentencepiece_model.encode_model(pieces, kind=sentencepiece_model.UNIGRAM))
    refused(folder, Unsupported, "only SentencePiece BPE")
    model.write_bytes(sentencepiece_model.encode_model(pieces)[:-3])
    refused(folder, Malformed, "tokenizer.model")
    model.write_bytes(sentencepiece_model.encode_model([*pieces, ("more", 0.0, 1)]))
    refused(folder, Malformed, "has 321 tokens")
    model.write_bytes(b"")
    refused(folder, Malformed, "no tokens")
    model.unlink()
    refused(folder, NotFound, "tokenizer.json")


def test_tokens_added_beyond_the_vocabulary(tmp_path):
    folder = write_tiny(tmp_path / "model", "mistral")
    edit(folder / "tokenizer_config.json", added_tokens_decoder={"320": {"content": "<far>", "special": True}})
    refused(folder, Malformed, "<far>.*320")
    edit(folder / "tokenizer_config.json", added_tokens_decoder={"x": {"content": "<far>", "special": True}})
    refused(folder, Malformed, "not the id of a token")


@pytest.mark.parametrize("change", [{"lowercase": False}, {"strip_accents": False}, {"type": "NFKC"}])
def test_bert_that_is_not_uncased(tmp_path, change):
    folder = write_tiny(tmp_path / "model", "bert")
    document = json.loads((folder / "tokenizer.json").read_text())
    edit(folder / "tokenizer.json", normalizer={**document["normalizer"], **change})
    refused(folder, Unsupported, "uncased")


def test_pooling(tmp_path):
    folder = write_tiny(tmp_path / "model", "bert")
    edit(folder / "1_Pooling" / "config.json", pooling_mode_max_tokens=True, pooling_mode_mean_tokens=False)
    refused(folder, Unsupported, "mean, CLS or last token")
    (folder / "modules.json").write_text('[{"type": "x.Pooling", "path": "../elsewhere"}]')
    refused(folder, Malformed, "not a folder beside it")
    (folder / "modules.json").write_text("{}")
    refused(folder, Malformed, "list")
