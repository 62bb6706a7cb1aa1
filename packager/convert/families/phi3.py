"""Phi 3, 3.5 and 4: queries, keys and values in one matrix, gate and up in another, as llama.cpp has them too.

llama.cpp does not apply the sliding window of this architecture, though GGUF states it.
"""

from __future__ import annotations

import math

import numpy as np

from packager.convert import rope
from packager.convert.documents import Fields
from packager.convert.encoding import Floats
from packager.convert.errors import Unsupported
from packager.convert.families import decoder
from packager.convert.family import Dimensions, Family, Rule
from packager.convert.gguf_header import Metadata

_LONG = ("longrope", "su")


def _dimensions(config: Fields) -> dict[str, int]:
    sizes = decoder.dimensions_of(config)
    share = rope.rotated_share(config, 1.0)
    return {
        **sizes,
        "fused": sizes["queries"] + 2 * sizes["keys"],
        "double": 2 * sizes["inner"],
        "rotated": int(share * sizes["hidden"]) // sizes["heads"],
    }


def _describe(metadata: Metadata, config: Fields, dimensions: Dimensions) -> None:
    decoder.silu(config)
    decoder.require_even_heads(config, dimensions)
    decoder.describe_decoder(metadata, "phi3", config, dimensions)
    metadata.uint32("phi3.rope.scaling.original_context_length", _original_context(config))
    metadata.uint32("phi3.rope.dimension_count", dimensions["rotated"])
    metadata.float32("phi3.rope.freq_base", rope.theta(config))
    if _is_long(config):
        metadata.float32("phi3.rope.scaling.attn_factor", _attention_factor(config))
    metadata.float32("phi3.attention.layer_norm_rms_epsilon", config.number("rms_norm_eps", 1e-5))
    metadata.uint32("phi3.attention.sliding_window", config.integer("sliding_window", 0, minimum=0))


def _original_context(config: Fields) -> int:
    key = "original_max_position_embeddings"
    return config.integer(key, rope.scaling_of(config).integer(key, 4096, minimum=2), minimum=2)


def _is_long(config: Fields) -> bool:
    kind = rope.kind_of(config, _LONG)
    if kind not in ("default", *_LONG):
        raise Unsupported(f"{config.where}: rope scaling {kind!r} is not supported in a Phi 3 model: longrope is")
    return kind in _LONG


def _attention_factor(config: Fields) -> float:
    """By which longrope scales rotated vectors (transformers, modeling_rope_utils.py)."""
    scaling, original = rope.scaling_of(config), _original_context(config)
    if scaling.get("attention_factor") is not None:
        return scaling.number("attention_factor")
    scale = scaling.number("factor", config.integer("max_position_embeddings") / original)
    return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0


def _computed(config: Fields, dimensions: Dimensions) -> dict[str, Floats]:
    if not _is_long(config):
        return {}
    return {f"rope_factors_{name}.weight": _factors(config, f"{name}_factor", dimensions) for name in ("long", "short")}


def _factors(config: Fields, key: str, dimensions: Dimensions) -> Floats:
    scaling = rope.scaling_of(config)
    values = scaling.items(key)
    if len(values) != dimensions["rotated"] // 2:
        raise Unsupported(f"{scaling.where}: {key} must have {dimensions['rotated'] // 2} numbers, not {len(values)}")
    numbers = scaling.nested(key, {str(place): value for place, value in enumerate(values)})
    return np.array([numbers.number(str(place)) for place in range(len(values))], dtype=np.float32)


PHI3 = Family(
    architecture="phi3",
    models=("Phi3ForCausalLM",),
    rules=(
        *decoder.ENDS,
        *decoder.NORMS,
        Rule(f"{decoder.LAYER}self_attn.qkv_proj.weight", "blk.{}.attn_qkv.weight", ("fused", "hidden")),
        Rule(f"{decoder.LAYER}self_attn.o_proj.weight", "blk.{}.attn_output.weight", ("hidden", "queries")),
        Rule(f"{decoder.LAYER}mlp.gate_up_proj.weight", "blk.{}.ffn_up.weight", ("double", "hidden")),
        Rule(f"{decoder.LAYER}mlp.down_proj.weight", "blk.{}.ffn_down.weight", ("hidden", "inner")),
    ),
    dimensions=_dimensions,
    describe=_describe,
    computed=_computed,
)
