"""Granite 3, dense: Llama with multipliers."""

from __future__ import annotations

from packager.convert.documents import Fields
from packager.convert.families import decoder
from packager.convert.family import Dimensions, Family
from packager.convert.gguf_header import Metadata

_SCALES = (
    ("attention_multiplier", "attention.scale"),
    ("embedding_multiplier", "embedding_scale"),
    ("residual_multiplier", "residual_scale"),
    ("logits_scaling", "logit_scale"),
)


def _describe(metadata: Metadata, config: Fields, dimensions: Dimensions) -> None:
    decoder.silu(config)
    decoder.require_even_heads(config, dimensions)
    decoder.describe_decoder(metadata, "granite", config, dimensions)
    decoder.describe_rotation(metadata, "granite", config, dimensions)
    for theirs, ours in _SCALES:
        metadata.float32(f"granite.{ours}", config.number(theirs, 1.0))


GRANITE = Family(
    architecture="granite",
    models=("GraniteForCausalLM",),
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
