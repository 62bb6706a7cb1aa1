"""StableLM 3B and StableLM 2: layer norms with biases, a part of each head rotated.

Models with a norm for each head (StableLM 2 12B) are refused: llama.cpp's own converter cannot convert them either,
so nothing would vouch for the result.
"""

from __future__ import annotations

from dataclasses import replace

from packager.convert import rope
from packager.convert.documents import Fields
from packager.convert.errors import Unsupported
from packager.convert.families import decoder
from packager.convert.family import Dimensions, Family, Rule
from packager.convert.gguf_header import Metadata


def _dimensions(config: Fields) -> dict[str, int]:
    """Attention and feed-forward side by side share one norm: llama.cpp knows them by the lack of another."""
    return {
        **decoder.dimensions_of(config),
        "two_norms": 0 if config.flag("use_parallel_residual", False) else 1,
        "biases": 1 if config.flag("use_qkv_bias", False) else 0,
    }


def _describe(metadata: Metadata, config: Fields, dimensions: Dimensions) -> None:
    decoder.silu(config)
    decoder.require_output(config, "stablelm")
    decoder.require_even_heads(config, dimensions)
    decoder.expect(config, "qk_layernorm", False, False)
    if rope.kind_of(config) != "default":
        raise Unsupported(f"{config.where}: rope scaling is not supported in a StableLM model")
    decoder.describe_decoder(metadata, "stablelm", config, dimensions)
    rope.describe(metadata, "stablelm", config)
    metadata.uint32("stablelm.rope.dimension_count", int(rope.rotated_share(config, 0.25) * dimensions["head"]))
    metadata.flag("stablelm.use_parallel_residual", config.flag("use_parallel_residual", False))
    metadata.float32("stablelm.attention.layer_norm_epsilon", config.number("layer_norm_eps", 1e-5))


def _norm(source: str, target: str, when: str | None = None) -> tuple[Rule, ...]:
    return tuple(
        Rule(f"{decoder.LAYER}{source}.{kind}", f"blk.{{}}.{target}.{kind}", ("hidden",), when=when)
        for kind in ("weight", "bias")
    )


STABLELM = Family(
    architecture="stablelm",
    models=("StableLmForCausalLM", "StableLMEpochForCausalLM"),
    rules=(
        *decoder.ENDS,
        Rule("model.norm.bias", "output_norm.bias", ("hidden",)),
        *_norm("input_layernorm", "attn_norm"),
        *_norm("post_attention_layernorm", "ffn_norm", when="two_norms"),
        *decoder.PLAIN,
        *(replace(rule, optional=False, when="biases") for rule in decoder.PLAIN_BIASES),
        *decoder.MLP,
    ),
    dimensions=_dimensions,
    describe=_describe,
)
