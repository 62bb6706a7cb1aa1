"""Tiny checkpoints of every family that is converted: each parameter random, each feature of its config in use.

The tensors are those that transformers gives the architecture. Windows, where a family has them, are shorter than the
prompts that tests send.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.checkpoints.sentencepiece_model import write_sentencepiece_model
from tests.checkpoints.shards import Array, Weight, write_checkpoint, write_json
from tests.checkpoints.tiny import LLAMA31_ROPE, write_byte_level
from tests.checkpoints.wordpiece import tokens_of, write_wordpiece

Shapes = dict[str, tuple[int, ...]]

VOCABULARY = 320
_BASE = {
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": VOCABULARY,
}


def _decoder(
    config: Mapping[str, Any],
    *,
    biases: tuple[str, ...] = (),
    qk_norm: str = "",
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm"),
    norm_bias: bool = False,
    mlp: bool = True,
) -> Shapes:
    """Llama's tensors, and what its descendants add: biases, norms of queries and keys (per ``head`` or over the
    whole ``row``), other layer norms."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, keys = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    layer: Shapes = {
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
    }
    if mlp:
        layer |= {f"mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        layer["mlp.down_proj.weight"] = (hidden, inner)
    layer |= {f"{name}.bias": layer[f"{name}.weight"][:1] for name in biases}
    if qk_norm:
        layer["self_attn.q_norm.weight"] = (head if qk_norm == "head" else queries,)
        layer["self_attn.k_norm.weight"] = (head if qk_norm == "head" else keys,)
    kinds = ("weight", "bias") if norm_bias else ("weight",)
    layer |= {f"{norm}.{kind}": (hidden,) for norm in norms for kind in kinds}
    shapes: Shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for number in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    shapes |= {f"model.norm.{kind}": (hidden,) for kind in kinds}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_ALL = (*_QKV, "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_SANDWICH = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)


def _with_layers(shapes: Shapes, layers: int, layer: Shapes) -> Shapes:
    return shapes | {
        f"model.layers.{number}.{name}": shape for number in range(layers) for name, shape in layer.items()
    }


def _mixtral(config: Mapping[str, Any]) -> Shapes:
    hidden, inner, experts = config["hidden_size"], config["intermediate_size"], config["num_local_experts"]
    layer: Shapes = {"block_sparse_moe.gate.weight": (experts, hidden)}
    for number in range(experts):
        for name, shape in (("w1", (inner, hidden)), ("w2", (hidden, inner)), ("w3", (inner, hidden))):
            layer[f"block_sparse_moe.experts.{number}.{name}.weight"] = shape
    return _with_layers(_decoder(config, mlp=False), config["num_hidden_layers"], layer)


def _qwen_moe(config: Mapping[str, Any]) -> Shapes:
    hidden, inner, experts = config["hidden_size"], config["moe_intermediate_size"], config["num_experts"]
    layer: Shapes = {"mlp.gate.weight": (experts, hidden)}
    blocks = [(f"mlp.experts.{number}", inner) for number in range(experts)]
    if "shared_expert_intermediate_size" in config:
        layer["mlp.shared_expert_gate.weight"] = (1, hidden)
        blocks.append(("mlp.shared_expert", config["shared_expert_intermediate_size"]))
        shapes = _decoder(config, mlp=False, biases=_QKV)
    else:
        shapes = _decoder(config, mlp=False, qk_norm="head")
    for block, width in blocks:
        layer |= {f"{block}.{name}_proj.weight": (width, hidden) for name in ("gate", "up")}
        layer[f"{block}.down_proj.weight"] = (hidden, width)
    return _with_layers(shapes, config["num_hidden_layers"], layer)


def _phi3(config: Mapping[str, Any]) -> Shapes:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    separate = tuple(f"{name}.weight" for name in _QKV)
    shapes = {name: shape for name, shape in _decoder(config, mlp=False).items() if not name.endswith(separate)}
    keys = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    layer = {
        "self_attn.qkv_proj.weight": (hidden + 2 * keys, hidden),
        "mlp.gate_up_proj.weight": (2 * inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    return _with_layers(shapes, config["num_hidden_layers"], layer)


def _stablelm(config: Mapping[str, Any]) -> Shapes:
    norms = ("input_layernorm",) if config["use_parallel_residual"] else ("input_layernorm", "post_attention_layernorm")
    return _decoder(config, biases=_QKV if config["use_qkv_bias"] else (), norms=norms, norm_bias=True)


def _gpt2(config: Mapping[str, Any]) -> Shapes:
    hidden = config["n_embd"]
    shapes: Shapes = {"wte.weight": (config["vocab_size"], hidden), "wpe.weight": (config["n_positions"], hidden)}
    for number in range(config["n_layer"]):
        for name, rows, columns in (
            ("attn.c_attn", hidden, 3 * hidden),
            ("attn.c_proj", hidden, hidden),
            ("mlp.c_fc", hidden, 4 * hidden),
            ("mlp.c_proj", 4 * hidden, hidden),
        ):
            shapes |= {f"h.{number}.{name}.weight": (rows, columns), f"h.{number}.{name}.bias": (columns,)}
        shapes |= {f"h.{number}.{norm}.{kind}": (hidden,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")}
    return shapes | {"ln_f.weight": (hidden,), "ln_f.bias": (hidden,)}


def _bert(config: Mapping[str, Any]) -> Shapes:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    shapes: Shapes = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], hidden),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], hidden),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], hidden),
        "pooler.dense.weight": (hidden, hidden),
        "pooler.dense.bias": (hidden,),
    }
    norms = ["embeddings.LayerNorm"]
    for number in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{number}"
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
        for name, rows, columns in (
            *((f"attention.self.{part}", hidden, hidden) for part in ("query", "key", "value")),
            ("attention.output.dense", hidden, hidden),
            ("intermediate.dense", inner, hidden),
            ("output.dense", hidden, inner),
        ):
            shapes |= {f"{layer}.{name}.weight": (rows, columns), f"{layer}.{name}.bias": (rows,)}
    return shapes | {f"{norm}.{kind}": (hidden,) for norm in norms for kind in ("weight", "bias")}


@dataclass(frozen=True)
class Tiny:
    """A tiny checkpoint: its config over `_BASE` (None removes a field), its tensors, its tokenizer."""

    model: str
    type: str
    shapes: Callable[[Mapping[str, Any]], Shapes]
    changes: Mapping[str, Any]
    tokenizer: str = "llama-bpe"
    dtype: str = "F32"

    @property
    def config(self) -> dict[str, Any]:
        values = {"architectures": [self.model], "model_type": self.type, **_BASE, **self.changes}
        return {key: value for key, value in values.items() if value is not None}


def _gemma(**changes: Any) -> dict[str, Any]:
    return {
        "head_dim": 32, "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-06, "tie_word_embeddings": True, "query_pre_attn_scalar": 32, **changes,
    }  # fmt: skip


def _sandwich(**more: Any) -> Callable[[Mapping[str, Any]], Shapes]:
    return lambda config: _decoder(config, norms=_SANDWICH, **more)


def _phi3_changes(original: int) -> dict[str, Any]:
    factors = {"long_factor": [1.0 + n / 2 for n in range(6)], "short_factor": [1.0 + n / 16 for n in range(6)]}
    return {
        "partial_rotary_factor": 0.75, "original_max_position_embeddings": original, "sliding_window": None,
        "max_position_embeddings": 4 * original, "rope_scaling": {"type": "longrope", **factors}, "pad_token_id": 0,
    }  # fmt: skip


_QWEN2_MOE = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 96,
    "norm_topk_prob": False, "decoder_sparse_step": 1, "mlp_only_layers": [],
}  # fmt: skip
_QWEN3_MOE = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True, "head_dim": 32,
    "decoder_sparse_step": 1, "mlp_only_layers": [],
}  # fmt: skip
_GPT2 = {
    "n_embd": 48, "n_head": 4, "n_layer": 2, "n_positions": 256, "n_ctx": 256, "layer_norm_epsilon": 1e-05,
    "activation_function": "gelu_new", "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 0,
    **dict.fromkeys(set(_BASE) - {"vocab_size", "bos_token_id", "eos_token_id", "tie_word_embeddings"}),
}  # fmt: skip
_BERT = {
    "hidden_act": "gelu", "layer_norm_eps": 1e-12, "num_key_value_heads": None, "rms_norm_eps": None,
    "rope_theta": None, "type_vocab_size": 2, "pad_token_id": 0, "position_embedding_type": "absolute",
    "attention_bias": None, "tie_word_embeddings": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
_STABLELM = {
    "layer_norm_eps": 1e-05, "rms_norm_eps": None, "partial_rotary_factor": 0.25, "use_qkv_bias": True,
    "qk_layernorm": False, "use_parallel_residual": False,
}  # fmt: skip
_GRANITE = {
    "attention_multiplier": 0.1, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0,
    "mlp_bias": False, "tie_word_embeddings": True,
}  # fmt: skip
_SMOLLM3 = {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0], "no_rope_layer_interval": 4, "pad_token_id": 2}
_MIXTRAL = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}

TINY: dict[str, Tiny] = {
    "llama": Tiny("LlamaForCausalLM", "llama", lambda c: _decoder(c, biases=_ALL),
                  {"attention_bias": True, "mlp_bias": True}, "smollm"),
    "llama-3.1": Tiny("LlamaForCausalLM", "llama", _decoder, {"hidden_size": 128, "rope_scaling": LLAMA31_ROPE},
                      dtype="BF16"),
    "mistral": Tiny("MistralForCausalLM", "mistral", _decoder, {"head_dim": 32}, "sentencepiece", "BF16"),
    "mixtral": Tiny("MixtralForCausalLM", "mixtral", _mixtral, _MIXTRAL, "sentencepiece"),
    "qwen2": Tiny("Qwen2ForCausalLM", "qwen2", lambda c: _decoder(c, biases=_QKV),
                  {"tie_word_embeddings": True, "use_sliding_window": False, "sliding_window": 32}, "qwen2", "BF16"),
    "qwen2-moe": Tiny("Qwen2MoeForCausalLM", "qwen2_moe", _qwen_moe, _QWEN2_MOE, "qwen2"),
    "qwen3": Tiny("Qwen3ForCausalLM", "qwen3", lambda c: _decoder(c, qk_norm="head"), {"head_dim": 32}, "qwen2"),
    "qwen3-moe": Tiny("Qwen3MoeForCausalLM", "qwen3_moe", _qwen_moe, _QWEN3_MOE, "qwen2"),
    "gemma": Tiny("GemmaForCausalLM", "gemma", _decoder, _gemma(), "sentencepiece", "BF16"),
    "gemma2": Tiny("Gemma2ForCausalLM", "gemma2", _sandwich(),
                   _gemma(attn_logit_softcapping=5.0, final_logit_softcapping=3.0, sliding_window=32), "sentencepiece"),
    "gemma3": Tiny("Gemma3ForCausalLM", "gemma3_text", _sandwich(qk_norm="head"),
                   _gemma(num_hidden_layers=6, sliding_window=32, rope_local_base_freq=500.0,
                          sliding_window_pattern=6), "sentencepiece"),
    "phi3": Tiny("Phi3ForCausalLM", "phi3", _phi3, {"sliding_window": None, "pad_token_id": 0}, "sentencepiece"),
    "phi3-long": Tiny("Phi3ForCausalLM", "phi3", _phi3, _phi3_changes(64), "sentencepiece", "BF16"),
    "phi3-short": Tiny("Phi3ForCausalLM", "phi3", _phi3, _phi3_changes(1024), "sentencepiece", "BF16"),
    "olmo2": Tiny("Olmo2ForCausalLM", "olmo2",
                  lambda c: _decoder(c, qk_norm="row", norms=_SANDWICH[1::2]),
                  {"pad_token_id": 0}, "dbrx"),
    "granite": Tiny("GraniteForCausalLM", "granite", _decoder, _GRANITE, "smollm", "F16"),
    "smollm3": Tiny("SmolLM3ForCausalLM", "smollm3", _decoder, _SMOLLM3),
    "stablelm": Tiny("StableLmForCausalLM", "stablelm", _stablelm, _STABLELM, "stablelm2"),
    "stablelm-parallel": Tiny("StableLmForCausalLM", "stablelm", _stablelm,
                              {**_STABLELM, "use_qkv_bias": False, "use_parallel_residual": True},
                              "stablelm2"),
    "gpt2": Tiny("GPT2LMHeadModel", "gpt2", _gpt2, _GPT2, "gpt-2"),
    "bert": Tiny("BertModel", "bert", _bert, _BERT, "wordpiece"),
}  # fmt: skip
"""Every family, each at least once."""


def write_tiny(folder: Path, name: str, **changes: Any) -> Path:
    """Write the checkpoint `name` of `TINY`, its config changed by `changes`, and return the folder."""
    tiny = TINY[name]
    folder.mkdir(parents=True, exist_ok=True)
    config = {**tiny.config, **changes}
    if tiny.tokenizer == "sentencepiece":
        write_sentencepiece_model(folder, VOCABULARY, prefix=not tiny.type.startswith("gemma"))
    elif tiny.tokenizer == "wordpiece":
        write_wordpiece(folder, tokens_of(VOCABULARY))
        _write_pooling(folder)
    else:
        config.update(write_byte_level(folder, VOCABULARY, 256, tiny.tokenizer, None))
    write_json(folder / "config.json", config)
    weights = {key: Weight(shape, _random(key, shape, config)) for key, shape in tiny.shapes(config).items()}
    write_checkpoint(folder, [weights], dict.fromkeys(weights, tiny.dtype))
    return folder


def _write_pooling(folder: Path) -> None:
    """The files by which sentence-transformers knows what becomes of the last layer."""
    module = {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
    write_json(folder / "modules.json", [module])
    (folder / "1_Pooling").mkdir(exist_ok=True)
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True})


def _random(name: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> Callable[[], Array]:
    """Norms around what leaves a value as it is (Gemma stores the distance from it), biases around zero."""
    centre = 0 if name.endswith("bias") or config["model_type"].startswith("gemma") else 1

    def make() -> Array:
        generator = np.random.default_rng([7, zlib.crc32(name.encode())])
        values = generator.standard_normal(shape, dtype=np.float32)
        return centre + values * np.float32(0.2) if len(shape) == 1 else values / np.float32(shape[-1] ** 0.5)

    return make
