"""Qwen 3, dense and with experts, and the embedding models made of it."""

from __future__ import annotations

from packager.convert.documents import Fields
from packager.convert.families import decoder
from packager.convert.families.qwen2 import with_model
from packager.convert.family import Dimensions, Family
from packager.convert.gguf_header import Metadata


def _describe_dense(metadata: Metadata, config: Fields, dimensions: Dimensions) -> None:
    _describe(metadata, "qwen3", config, dimensions)


def _describe_experts(metadata: Metadata, config: Fields, dimensions: Dimensions) -> None:
    decoder.expect(config, "norm_topk_prob", False, True)
    _describe(metadata, "qwen3moe", config, dimensions)
    decoder.describe_sparse(metadata, "qwen3moe", config, dimensions, used=8)


def _describe(metadata: Metadata, architecture: str, config: Fields, dimensions: Dimensions) -> None:
    decoder.silu(config)
    decoder.refuse_window(config, architecture, used=False)
    decoder.expect(config, "is_causal", True, True)
    decoder.describe_decoder(metadata, architecture, config, dimensions)
    decoder.describe_rotation(metadata, architecture, config, dimensions)


def _with_experts(config: Fields) -> dict[str, int]:
    return {
        **decoder.dimensions_of(config),
        "experts": decoder.expert_count(config, "num_experts", 128),
        "expert_inner": config.integer("moe_intermediate_size", 768),
    }


_ATTENTION = (*decoder.ENDS, *decoder.NORMS, *decoder.PLAIN, *decoder.HEAD_NORMS)

QWEN3 = Family(
    architecture="qwen3",
    models=("Qwen3ForCausalLM",),
    rules=(*_ATTENTION, *decoder.MLP),
    dimensions=decoder.dimensions_of,
    describe=_describe_dense,
    computed=decoder.refuse_rope_factors,
    renamed=with_model,
    pooled=True,
)

QWEN3_MOE = Family(
    architecture="qwen3moe",
    models=("Qwen3MoeForCausalLM",),
    rules=(*_ATTENTION, *decoder.SPARSE),
    dimensions=_with_experts,
    describe=_describe_experts,
    computed=decoder.refuse_rope_factors,
)
