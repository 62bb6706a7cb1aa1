"""OLMo 2: norms behind attention and feed-forward, and over all queries and keys of a row."""

from __future__ import annotations

from packager.convert.documents import Fields
from packager.convert.families import decoder
from packager.convert.family import Dimensions, Family, Rule
from packager.convert.gguf_header import Metadata


def _describe(metadata: Metadata, config: Fields, dimensions: Dimensions) -> None:
    decoder.silu(config)
    decoder.require_output(config, "olmo2")
    decoder.require_even_heads(config, dimensions)
    decoder.describe_decoder(metadata, "olmo2", config, dimensions)
    decoder.describe_rotation(metadata, "olmo2", config, dimensions)


OLMO2 = Family(
    architecture="olmo2",
    models=("Olmo2ForCausalLM",),
    rules=(
        *decoder.ENDS,
        *decoder.layer_norms(decoder.SANDWICH[1::2]),
        *decoder.PLAIN,
        Rule(f"{decoder.LAYER}self_attn.q_norm.weight", "blk.{}.attn_q_norm.weight", ("queries",)),
        Rule(f"{decoder.LAYER}self_attn.k_norm.weight", "blk.{}.attn_k_norm.weight", ("keys",)),
        *decoder.MLP,
    ),
    dimensions=decoder.dimensions_of,
    describe=_describe,
    computed=decoder.refuse_rope_factors,
)
