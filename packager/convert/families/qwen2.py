"""Qwen 1.5, 2 and 2.5, dense and with experts."""

from __future__ import annotations

from packager.convert.documents import Fields
from packager.convert.families import decoder
from packager.convert.family import Dimensions, Family, Rule
from packager.convert.gguf_header import Metadata


def _describe_dense(metadata: Metadata, config: Fields, dimensions: Dimensions) -> None:
    _describe(metadata, "qwen2", config, dimensions)


def _describe_experts(metadata: Metadata, config: Fields, dimensions: Dimensions) -> None:
    decoder.require_output(config, "qwen2moe")
    decoder.require_even_heads(config, dimensions)
    decoder.expect(config, "norm_topk_prob", False, False)
    _describe(metadata, "qwen2moe", config, dimensions)
    decoder.describe_sparse(metadata, "qwen2moe", config, dimensions, used=4)
    metadata.uint32("qwen2moe.expert_shared_feed_forward_length", dimensions["shared"])


def _describe(metadata: Metadata, architecture: str, config: Fields, dimensions: Dimensions) -> None:
    decoder.silu(config)
    decoder.refuse_window(config, architecture, used=False)
    decoder.expect(config, "is_causal", True, True)
    decoder.describe_decoder(metadata, architecture, config, dimensions)
    decoder.describe_rotation(metadata, architecture, config, dimensions)


def with_model(name: str) -> str:
    """The name of a tensor in a model with a head: embedding models are published without one, and without ``model.``
    in front of the names."""
    return f"model.{name}" if name.startswith(("embed_tokens.", "layers.", "norm.")) else name


def _with_experts(config: Fields) -> dict[str, int]:
    return {
        **decoder.dimensions_of(config),
        "experts": decoder.expert_count(config, "num_experts", 60),
        "expert_inner": config.integer("moe_intermediate_size", 1408),
        "shared": config.integer("shared_expert_intermediate_size", 5632),
        "one": 1,
    }


QWEN2 = Family(
    architecture="qwen2",
    models=("Qwen2ForCausalLM",),
    rules=(*decoder.ENDS, *decoder.NORMS, *decoder.PLAIN, *decoder.PLAIN_BIASES, *decoder.MLP),
    dimensions=decoder.dimensions_of,
    describe=_describe_dense,
    computed=decoder.refuse_rope_factors,
    renamed=with_model,
    pooled=True,
)

_SHARED = f"{decoder.LAYER}mlp.shared_expert"

QWEN2_MOE = Family(
    architecture="qwen2moe",
    models=("Qwen2MoeForCausalLM",),
    rules=(
        *decoder.ENDS,
        *decoder.NORMS,
        *decoder.PLAIN,
        *decoder.PLAIN_BIASES,
        *decoder.SPARSE,
        Rule(f"{_SHARED}_gate.weight", "blk.{}.ffn_gate_inp_shexp.weight", ("one", "hidden")),
        Rule(f"{_SHARED}.gate_proj.weight", "blk.{}.ffn_gate_shexp.weight", ("shared", "hidden")),
        Rule(f"{_SHARED}.up_proj.weight", "blk.{}.ffn_up_shexp.weight", ("shared", "hidden")),
        Rule(f"{_SHARED}.down_proj.weight", "blk.{}.ffn_down_shexp.weight", ("hidden", "shared")),
    ),
    dimensions=_with_experts,
    describe=_describe_experts,
    computed=decoder.refuse_rope_factors,
)
