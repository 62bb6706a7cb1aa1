"""Llama 1 to 3.3, and what shares its architecture: SmolLM 1 and 2, TinyLlama, Mistral without a sliding window,
Mixtral."""

from __future__ import annotations

from packager.convert.documents import Fields
from packager.convert.families import decoder
from packager.convert.family import Dimensions, Family, Rule
from packager.convert.gguf_header import Metadata


def _describe(metadata: Metadata, config: Fields, dimensions: Dimensions) -> None:
    decoder.silu(config)
    decoder.refuse_window(config, "llama")
    decoder.describe_decoder(metadata, "llama", config, dimensions)
    decoder.describe_rotation(metadata, "llama", config, dimensions)
    if "experts" in dimensions:
        metadata.uint32("llama.expert_count", dimensions["experts"])
        metadata.uint32("llama.expert_used_count", config.integer("num_experts_per_tok", 2))


def _with_experts(config: Fields) -> dict[str, int]:
    return {**decoder.dimensions_of(config), "experts": decoder.expert_count(config, "num_local_experts", 8)}


LLAMA = Family(
    architecture="llama",
    models=("LlamaForCausalLM", "MistralForCausalLM"),
    rules=(
        *decoder.ENDS,
        *decoder.NORMS,
        *decoder.ROTATED,
        *decoder.ROTATED_BIASES,
        *decoder.MLP,
        *decoder.OTHER_BIASES,
    ),
    dimensions=decoder.dimensions_of,
    describe=_describe,
    computed=decoder.rope_factors,
)

_MOE = "block_sparse_moe"

MIXTRAL = Family(
    architecture="llama",
    models=("MixtralForCausalLM",),
    rules=(
        *decoder.ENDS,
        *decoder.NORMS,
        *decoder.ROTATED,
        Rule(f"{decoder.LAYER}{_MOE}.gate.weight", "blk.{}.ffn_gate_inp.weight", ("experts", "hidden")),
        *decoder.experts((f"{_MOE}.experts.{{}}.w1", f"{_MOE}.experts.{{}}.w3", f"{_MOE}.experts.{{}}.w2"), "inner"),
    ),
    dimensions=_with_experts,
    describe=_describe,
    computed=decoder.rope_factors,
)
