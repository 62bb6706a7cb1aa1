"""Llama 1 to 3.3, and what shares its architecture: SmolLM 1 and 2, TinyLlama, Mistral without a sliding window."""

from __future__ import annotations

from collections.abc import Mapping

from artifact.errors import Malformed
from packager.convert import rope
from packager.convert.documents import Fields
from packager.convert.encoding import Floats
from packager.convert.errors import Unsupported
from packager.convert.family import Family, Rule
from packager.convert.gguf_header import Metadata

_MAX_LAYERS = 1024


def _dimensions(config: Fields) -> dict[str, int]:
    heads = config.integer("num_attention_heads")
    hidden = config.integer("hidden_size")
    head = config.integer("head_dim", hidden // heads if hidden % heads == 0 else 1)
    kv_heads = config.integer("num_key_value_heads", heads)
    layers = config.integer("num_hidden_layers")
    if head % 2 or heads % kv_heads or layers > _MAX_LAYERS:
        raise Malformed(f"{config.where}: {heads} heads of {head}, {kv_heads} for keys, {layers} layers do not fit")
    return {
        "layers": layers,
        "hidden": hidden,
        "inner": config.integer("intermediate_size"),
        "heads": heads,
        "kv_heads": kv_heads,
        "head": head,
        "queries": heads * head,
        "keys": kv_heads * head,
        "vocabulary": config.integer("vocab_size"),
    }


def _describe(metadata: Metadata, config: Fields, dimensions: Mapping[str, int]) -> None:
    if config.text("hidden_act", "silu") != "silu":
        raise Unsupported(f"{config.where}: hidden_act must be silu in a Llama model, not {config.get('hidden_act')!r}")
    context = config.integer("max_position_embeddings")
    if config.integer("sliding_window", context) < context:
        raise Unsupported(f"{config.where}: GGUF's llama architecture has no sliding window: pack it as safetensors")
    metadata.uint32("llama.block_count", dimensions["layers"])
    metadata.uint32("llama.context_length", context)
    metadata.uint32("llama.embedding_length", dimensions["hidden"])
    metadata.uint32("llama.feed_forward_length", dimensions["inner"])
    metadata.uint32("llama.attention.head_count", dimensions["heads"])
    metadata.uint32("llama.attention.head_count_kv", dimensions["kv_heads"])
    rope.describe(metadata, "llama", config)
    metadata.float32("llama.attention.layer_norm_rms_epsilon", config.number("rms_norm_eps", 1e-6))
    metadata.uint32("llama.attention.key_length", dimensions["head"])
    metadata.uint32("llama.attention.value_length", dimensions["head"])
    metadata.uint32("llama.vocab_size", dimensions["vocabulary"])
    metadata.uint32("llama.rope.dimension_count", dimensions["head"])


def _computed(config: Fields, dimensions: Mapping[str, int]) -> dict[str, Floats]:
    factors = rope.factors(config, dimensions["head"])
    return {} if factors is None else {"rope_freqs.weight": factors}


_LAYER = "model.layers.{}."
_BIASES = tuple(
    Rule(f"{_LAYER}{source}.bias", f"blk.{{}}.{target}.bias", (shape,), heads, optional=True)
    for source, target, shape, heads in (
        ("self_attn.q_proj", "attn_q", "queries", "heads"),
        ("self_attn.k_proj", "attn_k", "keys", "kv_heads"),
        ("self_attn.v_proj", "attn_v", "keys", None),
        ("self_attn.o_proj", "attn_output", "hidden", None),
        ("mlp.gate_proj", "ffn_gate", "inner", None),
        ("mlp.up_proj", "ffn_up", "inner", None),
        ("mlp.down_proj", "ffn_down", "hidden", None),
    )
)

LLAMA = Family(
    architecture="llama",
    models=("LlamaForCausalLM", "MistralForCausalLM"),
    rules=(
        Rule("model.embed_tokens.weight", "token_embd.weight", ("vocabulary", "hidden")),
        Rule("model.norm.weight", "output_norm.weight", ("hidden",)),
        Rule("lm_head.weight", "output.weight", ("vocabulary", "hidden"), untied=True),
        Rule(f"{_LAYER}input_layernorm.weight", "blk.{}.attn_norm.weight", ("hidden",)),
        Rule(f"{_LAYER}self_attn.q_proj.weight", "blk.{}.attn_q.weight", ("queries", "hidden"), heads="heads"),
        Rule(f"{_LAYER}self_attn.k_proj.weight", "blk.{}.attn_k.weight", ("keys", "hidden"), heads="kv_heads"),
        Rule(f"{_LAYER}self_attn.v_proj.weight", "blk.{}.attn_v.weight", ("keys", "hidden")),
        Rule(f"{_LAYER}self_attn.o_proj.weight", "blk.{}.attn_output.weight", ("hidden", "queries")),
        Rule(f"{_LAYER}post_attention_layernorm.weight", "blk.{}.ffn_norm.weight", ("hidden",)),
        Rule(f"{_LAYER}mlp.gate_proj.weight", "blk.{}.ffn_gate.weight", ("inner", "hidden")),
        Rule(f"{_LAYER}mlp.up_proj.weight", "blk.{}.ffn_up.weight", ("inner", "hidden")),
        Rule(f"{_LAYER}mlp.down_proj.weight", "blk.{}.ffn_down.weight", ("hidden", "inner")),
        *_BIASES,
    ),
    dimensions=_dimensions,
    describe=_describe,
    computed=_computed,
    ignored=(".rotary_emb.inv_freq", ".attention.masked_bias", ".attention.bias"),
)
